"""Command line, environment and ini files, read once into one checked, frozen object."""

from __future__ import annotations

import os
import re
from binascii import crc32
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import AnchorConfigError, Secret, printable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

DEFAULT_BASE_URL = "https://api.anchorbrowser.io"
KEY_VARIABLES = ("ANCHORBROWSER_API_KEY", "ANCHOR_API_KEY")
BASE_URL_VARIABLE = "ANCHORBROWSER_BASE_URL"
CHROMIUM_VARIABLE = "PYTEST_ANCHOR_CHROMIUM"
REPORT_VARIABLE = "PYTEST_ANCHOR_REPORT"
SHARED_LIMITS_VARIABLE = "PYTEST_ANCHOR_SHARED_LIMITS"
REGISTRY_NAME = ".pytest_anchor"
SWEEP_TIMEOUT = 60  # seconds
SWEEP_AT_ONCE = 16  # sessions that a sweep ends at the same time
SECRETS = ("api_key", "shared_limits")  # fields of the settings that are, or may hold, what no one must see
KEYWORDS = ("session", "browser", "integrations", "identities")  # of a creation, as in POST /v1/sessions
DAY = 86400.0  # seconds
MAX_RUN_ID = 100  # characters
MAX_OWNER = 60  # characters
HAS_SOCKETS = os.name == "posix"
MAX_SOCKET_PATH = 103  # bytes; the kernel's limit on macOS, Linux has four more
MAX_SOCKET_NAME = len("/1234567.0123456789ab/socket")  # bytes, of a process and a thread of it

# What the CI services call the run of a pipeline. Not its attempts: the next one is to see what the last one left.
_CI = {
    "github": ("GITHUB_RUN_ID",),
    "gitlab": ("CI_PIPELINE_ID",),
    "buildkite": ("BUILDKITE_BUILD_ID",),
    "circleci": ("CIRCLE_WORKFLOW_ID",),
    "azure": ("BUILD_BUILDID",),
    "jenkins": ("BUILD_TAG",),
}

# What the CI services call one of several machines that share a run.
_SHARDS = ("CI_NODE_INDEX", "CIRCLE_NODE_INDEX", "BUILDKITE_PARALLEL_JOB", "SYSTEM_JOBPOSITIONINPHASE")


class Settings(NamedTuple):  # a dataclass takes a millisecond to make, which every run with this plugin would pay
    """The settings of one process of a run; :mod:`.plugin.options` has the defaults.

    :param run_id: names the run in the sessions' tags.
    :param folder: where the run keeps its journal; made when the first session is asked for.
    :param owner: ``main``, or an xdist worker's ``gw0``, ``gw1``…
    :param base_url: without a trailing slash; not used when *local*.
    :param api_key: ``None`` if the environment has none.
    :param local: whether the run serves itself a local backend.
    :param chromium: the browser of the local backend, ``""`` to look for one.
    :param on_leak: ``fail`` or ``warn``.
    :param sweep_timeout: seconds that the final sweep may take.
    :param reaper: whether a process watches the run and sweeps if it is killed.
    :param sweep_at_once: sessions that it ends at the same time.
    :param create_timeout: seconds that a creation may wait for the plan's limits.
    :param create_retries: how often a creation that met a transient failure is tried again.
    :param max_sessions: sessions at once in all runs of the registry; ``None`` for the plan's number, 0 for no cap.
    :param prefetch: sessions that a process creates ahead, at most.
    :param end_in_background: whether a teardown leaves its sessions' end to the background.
    :param playwright: where Playwright's browsers run: ``off`` here, or on a session per ``worker`` or ``test``.
    :param recorded: whether a test's first context is the session's own, which Anchor records.
    :param forward: ``auto``, ``on`` or ``off``; see :attr:`forwarded_hosts`.
    :param forward_hosts: the names by which sessions' browsers reach the test machine, with commas between them.
    :param budget: minutes of browser after which the run creates no session, 0 for any number.
    :param keep: whether the sessions of failed tests stay open for a while.
    :param keep_for: seconds.
    :param mark_outcome: whether tests and their outcomes become tags of their sessions.
    :param links: whether reports show sessions' links and ids, which let others look at the sessions.
    :param screenshot: ``on``, ``off`` or ``only-on-failure``.
    :param recording: ``on``, ``off`` or ``retain-on-failure``.
    :param output: the folder for screenshots and the like, absolute; ``""`` for none.
    :param report: the file for the picture of the run, ``""`` for none.
    :param shared_limits: URL of the server by which the runs of several machines share the plan, ``""`` for none.
    :param shared_lease: seconds after which a run that does not reach that server counts as gone.
    :param shard: which of several machines that share a CI run this is, ``""`` where that is not known.
    :param own_registry: whether this is a worker that keeps its own, as it sees another disk than the controller.
    :param socket_folder: where the run's processes on this machine find its broker.
    :param main_pid: the process that the run is over with, 0 where it is on another machine.
    """

    run_id: str
    folder: Path
    owner: str
    base_url: str
    api_key: str | None
    local: bool
    chromium: str
    on_leak: str
    sweep_timeout: float
    reaper: bool
    sweep_at_once: int
    create_timeout: float
    create_retries: int
    max_sessions: int | None
    prefetch: int
    end_in_background: bool
    playwright: str
    recorded: bool
    forward: str
    forward_hosts: str
    budget: float
    keep: bool
    keep_for: float
    mark_outcome: bool
    links: bool
    screenshot: str
    recording: str
    shared_limits: str
    shared_lease: float
    output: str = ""
    report: str = ""
    shard: str = ""
    own_registry: bool = False
    socket_folder: str = ""
    main_pid: int = 0

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in self._asdict().items() if name not in SECRETS)
        return f"Settings({', '.join(shown)})"

    @property
    def forwarded_hosts(self) -> list[str]:
        """The names by which sessions' browsers reach the test machine, none where nothing is forwarded."""
        is_here = self.local or _is_local_url(self.base_url)
        return [] if self.forward == "off" or (self.forward == "auto" and is_here) else self.forward_hosts.split(",")

    def for_worker(self, owner: str, *, shares_disk: bool = True) -> dict[str, Any]:
        """The same settings for a worker, as plain built-ins.

        Neither a real key nor a server's password crosses: a worker reads them from its own environment, which it
        inherits.
        The local backend's is made up for this run and worth nothing outside it.

        :param shares_disk: whether it sees this machine's folders; if not, it keeps a registry of its own.
        """
        owner = re.sub(r"[^A-Za-z0-9._-]", "-", owner)[
            :MAX_OWNER
        ]  # `--tx popen//id=…` names it, a file is named after it
        values = {**self._asdict(), "folder": str(self.folder), "owner": owner}
        if not shares_disk:
            values |= {"folder": self.folder.name, "own_registry": True, "socket_folder": "", "main_pid": 0}
            values["output"] = os.path.basename(self.output)
        if not self.local:
            del values["api_key"]
        if has_password(self.shared_limits):
            del values["shared_limits"]
        return values

    @classmethod
    def of_worker(cls, values: dict[str, Any], rootdir: Path) -> Settings:
        """What :meth:`for_worker` made, back in the worker.

        :param rootdir: the worker's own, for a registry of its own.
        """
        folder = rootdir / REGISTRY_NAME / values["folder"]  # an absolute one stands for itself
        sockets = values["socket_folder"] or socket_folder(worker_sockets(folder))
        output = values["output"] and os.path.join(rootdir, values["output"])
        own = {"folder": folder, "socket_folder": sockets, "output": output}
        secrets = {"api_key": key_from_environment(), "shared_limits": os.environ.get(SHARED_LIMITS_VARIABLE, "")}
        return cls(**{**secrets, **values, **own})


def socket_folder(name: str) -> str:
    """The folder for the sockets of the run's broker, for *name*, which no other run on this machine has.

    :returns: ``""`` on Windows, where no session is created.
    :raises AnchorConfigError: the system's folder for temporary files has too long a name for a socket.
    """
    if not HAS_SOCKETS:
        return ""
    folders = [os.environ.get("TMPDIR", ""), "/tmp"]  # noqa: S108 - of a fresh name, and checked
    for folder in folders:
        path = os.path.join(os.path.abspath(folder), f"pytest-anchor-{name}")
        if os.path.isdir(folder) and len(os.fsencode(path)) + MAX_SOCKET_NAME <= MAX_SOCKET_PATH:
            return path
    raise AnchorConfigError(f"TMPDIR is {folders[0]!r}, too long for the path of a socket: set it to a shorter one")


def worker_sockets(folder: Path) -> str:
    """The name for :func:`socket_folder` of a worker that keeps its own registry, with the run's *folder* in it."""
    return f"{folder.name}-{crc32(os.fsencode(folder)):08x}"


def socket_identity(info: os.stat_result) -> list[int]:
    """What tells a socket's file from one that is made in its place later, which may get the same inode."""
    return [info.st_ino, info.st_mtime_ns]


def new_invocation() -> str:
    """A fresh name for one invocation of pytest, and for its folder: 16 hexadecimal digits."""
    return os.urandom(8).hex()


def ci_run_id(environ: Mapping[str, str] = os.environ) -> str:
    """The run id that all shards of the CI run under way share, ``""`` where there is none."""
    for service, names in _CI.items():
        if environ.get(names[0]):
            words = [service, *(environ.get(name, "") for name in names)]
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, words)))
            # The number of the build is what a mere cut would take off.
            return name if len(name) <= MAX_RUN_ID else f"{name[: MAX_RUN_ID - 17]}-{_digest(name)}"
    return ""


def _digest(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()[:16]


def ci_shard(environ: Mapping[str, str] = os.environ) -> str:
    """Which of several machines that share a CI run this is, ``""`` where that is not known."""
    found = next((environ[name] for name in _SHARDS if environ.get(name)), "")
    return found if re.fullmatch(r"[A-Za-z0-9._-]{1,20}", found) else ""


def check_run_id(value: str) -> str:
    """Return *value* if it can be part of a tag.

    :raises AnchorConfigError: it cannot: a comma separates tags in the API's queries.
    """
    if not re.fullmatch(rf"[A-Za-z0-9._-]{{1,{MAX_RUN_ID}}}", value):
        raise AnchorConfigError(
            f"the run id {printable(value)!r} must be 1 to {MAX_RUN_ID} letters, digits, dots, dashes and underscores"
        )
    return value


def key_from_environment() -> Secret | None:
    """The first API key that the environment holds, or ``None``."""
    return next((Secret(key) for name in KEY_VARIABLES if (key := os.environ.get(name))), None)


def check_key(key: str | None) -> str:
    """Return *key* if it can be sent.

    :raises AnchorConfigError: there is none, or it cannot be a header's value.
    """
    __tracebackhide__ = True  # pytest shows a frame's arguments
    names = " or ".join(KEY_VARIABLES)
    if not key:
        raise AnchorConfigError(
            f"there is no API key: set {names} to the one from Anchor's dashboard, "
            "or run with --anchor-local to use a Chromium on this machine."
        )
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise AnchorConfigError(
            f"the API key in {names} cannot be sent in a header: it has spaces around it, line breaks, or "
            "characters beyond ASCII. Set it again from Anchor's dashboard, or run with --anchor-local."
        )
    return key


def check_base_url(value: str) -> str:
    """Return *value* without its trailing slash if the key may be sent there.

    :raises AnchorConfigError: it is not an http(s) URL, or plain http to another machine.
    """
    if value == DEFAULT_BASE_URL:
        return value
    from urllib.parse import urlsplit  # takes milliseconds that most runs need not pay

    shown = printable(value)
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if (
        parts.scheme not in ("http", "https")
        or not host
        or not value.isascii()
        or not value.isprintable()
        or " " in value
    ):
        raise AnchorConfigError(
            f"the base URL {shown!r} is not an http:// or https:// URL; the default is {DEFAULT_BASE_URL}"
        )
    if parts.username is not None or "?" in value or "#" in value:
        raise AnchorConfigError(f"the base URL for {host!r} may have a path, but no user, query or fragment")
    if parts.scheme == "http" and not _is_loopback(host):
        raise AnchorConfigError(
            f"the base URL {shown!r} would send the API key in the clear: use https://, "
            "or http:// to this machine only (localhost, 127.0.0.1)"
        )
    return value.rstrip("/")


def check_shared_limits(name: str, value: str) -> str:
    """Return *value* if it is the URL of a server that runs may share.

    :raises AnchorConfigError: it is not.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(value)
        _ = parts.port
        is_complete = bool(parts.path if parts.scheme == "unix" else parts.hostname)
    except ValueError:
        is_complete = False
    if not (is_complete and value.isprintable() and parts.scheme in ("redis", "rediss", "unix")):
        raise AnchorConfigError(
            f"{name} takes the URL of a Redis or Valkey server, such as redis://HOST:6379/0, rediss://HOST:6379/0 or "
            "unix:///run/redis.sock; what was given is none"
        )
    return Secret(value) if has_password(value) else value


def has_password(url: str) -> bool:
    """Whether the URL of a server has a password in it."""
    if "@" not in url and "password" not in url:
        return False
    from urllib.parse import parse_qsl, urlsplit

    parts = urlsplit(url)
    return parts.password is not None or any(name == "password" for name, _ in parse_qsl(parts.query))


def refuse_password(name: str, url: str) -> None:
    """Refuse a URL with a password, where others can see it.

    :raises AnchorConfigError: it has one.
    """
    if has_password(url):
        raise AnchorConfigError(
            f"{name} must not have a password in it, since options and ini files are seen by others: set the whole URL "
            f"in the environment, {SHARED_LIMITS_VARIABLE}"
        )


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def check_hosts(name: str, value: str) -> str:
    """Return *value*, hosts with commas between them, without spaces and in small letters.

    :raises AnchorConfigError: one of them is no host.
    """
    hosts = [host.strip().lower() for host in value.split(",") if host.strip()]
    for host in hosts:
        if not re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:]+\]", host):
            raise AnchorConfigError(
                f"{name} takes hosts separated by commas, such as localhost, *.localhost, 127.0.0.1 or [::1], "
                f"not {printable(host)!r}: no scheme, no port, and a star only before the first dot"
            )
    return ",".join(hosts)


def _is_local_url(url: str) -> bool:
    """Whether a base URL is on this machine."""
    from urllib.parse import urlsplit

    return _is_loopback(urlsplit(url).hostname or "")


def check_seconds(name: str, value: str) -> float:
    """Return *value* as a positive number of seconds.

    :raises AnchorConfigError: it is none.
    """
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise AnchorConfigError(f"{name} takes a number of seconds above 0, not {value!r}")
    return seconds


def check_span(name: str, value: str) -> float:
    """Return the seconds that *value* means, a day at most.

    :raises AnchorConfigError: it means none.
    """
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([smh])", value)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not 0 < seconds <= DAY:
        raise AnchorConfigError(f"{name} takes a time such as 90s, 15m or 1h, up to 24h, not {printable(value)!r}")
    return seconds


def check_minutes(name: str, value: str) -> float:
    """Return *value* as a positive number of minutes, 0 for no value.

    :raises AnchorConfigError: it is none.
    """
    try:
        minutes = float(value or 0)
    except ValueError:
        minutes = -1.0
    if value and not 0 < minutes < 1e6:
        raise AnchorConfigError(f"{name} takes a number of minutes above 0, not {printable(value)!r}")
    return minutes


def check_number(name: str, value: str, least: int, most: int = 10_000) -> int:
    """Return *value* as a whole number.

    :raises AnchorConfigError: it is none, or not from *least* to *most*.
    """
    number = _whole_number(value)
    if not least <= number <= most:
        raise AnchorConfigError(f"{name} takes a whole number from {least} to {most}, not {printable(value)!r}")
    return number


def check_max_sessions(name: str, value: str) -> int | None:
    """Return the cap that *value* means: ``None`` for ``auto``, 0 for ``off``.

    :raises AnchorConfigError: it means none.
    """
    words = {"auto": None, "off": 0}
    if value in words:
        return words[value]
    if (number := _whole_number(value)) < 1:
        raise AnchorConfigError(f"{name} takes auto, off or a whole number above 0, not {printable(value)!r}")
    return number


def _whole_number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1


def check_report(name: str, value: str) -> str:
    """Return *value* if the picture of a run can be written to a file of that name, or if it is empty.

    :raises AnchorConfigError: it cannot.
    """
    if value and not value.endswith((".html", ".json")):
        raise AnchorConfigError(f"{name} takes a file whose name ends in .html or .json, not {printable(value)!r}")
    if value.endswith(".html"):
        from importlib.util import find_spec

        if find_spec("jinja2") is None:
            raise AnchorConfigError(
                f"{name} {printable(value)} needs Jinja2: pip install 'pytest-anchor[report]', or name a file that "
                "ends in .json, which needs nothing."
            )
    return value


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> str:
    """Return *value* if it is one of *valid*.

    :raises AnchorConfigError: it is not.
    """
    if value not in valid:
        raise AnchorConfigError(f"{name} takes {' or '.join(valid)}, not {value!r}")
    return value
