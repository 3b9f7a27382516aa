"""The options: one table, from which the command line, the ini file, the environment and the help are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import AnchorConfigError
from ..settings import (
    BASE_URL_VARIABLE,
    CHROMIUM_VARIABLE,
    DEFAULT_BASE_URL,
    KEY_VARIABLES,
    REGISTRY_NAME,
    REPORT_VARIABLE,
    SHARED_LIMITS_VARIABLE,
    SWEEP_AT_ONCE,
    SWEEP_TIMEOUT,
    Settings,
    check_base_url,
    check_choice,
    check_hosts,
    check_max_sessions,
    check_minutes,
    check_number,
    check_report,
    check_run_id,
    check_seconds,
    check_shared_limits,
    check_span,
    ci_run_id,
    ci_shard,
    key_from_environment,
    new_invocation,
    refuse_password,
    socket_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

OUTPUT_NAME = "anchor-results"
LEASE_RANGE = (1.0, 600.0)  # seconds
FORWARDED_HOSTS = "localhost,127.0.0.1,[::1],*.localhost,localhost.localdomain"


class Option(NamedTuple):
    """One option. This table is the one place for their defaults.

    :param default: as text, ``""`` for none.
    :param default_help: what that comes to, in words.
    :param variable: the environment variable that gives it, too.
    :param check: makes a value of the option's text; it is given the option's name as well.
    :param setting: the field of :class:`Settings` that it sets; its own name if empty.
    """

    metavar: str
    help: str
    default: str = ""
    default_help: str = ""
    variable: str = ""
    check: Callable[[str, str], Any] = lambda _name, value: value
    setting: str = ""

    @property
    def full_help(self) -> str:
        """The help with the environment variable and the default."""
        more = [f"environment: {self.variable}"] if self.variable else []
        more.append(f"default: {self.default_help or self.default}")
        return f"{self.help} ({'; '.join(more)})"


def _lease(name: str, value: str) -> float:
    least, most = LEASE_RANGE
    if not least <= (seconds := check_seconds(name, value)) <= most:
        raise AnchorConfigError(f"{name} takes {least:g} to {most:g} seconds, not {value!r}")
    return seconds


OPTIONS = {
    "base_url": Option(
        "URL",
        "URL of Anchor's API",
        DEFAULT_BASE_URL,
        variable=BASE_URL_VARIABLE,
        check=lambda _name, value: check_base_url(value),
    ),
    "on_leak": Option(
        "fail|warn",
        "what a session that could not be ended does to the exit status: fail or warn",
        "fail",
        check=lambda name, value: check_choice(name, value, ("fail", "warn")),
    ),
    "sweep_timeout": Option(
        "SECONDS", "seconds that the final sweep may take", str(SWEEP_TIMEOUT), check=check_seconds
    ),
    "sweep_at_once": Option(
        "N",
        "sessions that a sweep ends at the same time",
        str(SWEEP_AT_ONCE),
        check=lambda name, value: check_number(name, value, 1, 256),
    ),
    "create_timeout": Option(
        "SECONDS", "seconds that a creation waits for the plan's limits, at most", "300", check=check_seconds
    ),
    "create_retries": Option(
        "N",
        "how often a creation that met a transient failure is tried again",
        "2",
        check=lambda name, value: check_number(name, value, 0, 10),
    ),
    "max_sessions": Option(
        "N|auto|off",
        "sessions open at once, over all runs of this registry: a number, auto (the plan's) or off",
        "auto",
        check=check_max_sessions,
    ),
    "prefetch": Option(
        "N",
        "sessions that each process creates ahead for its next tests",
        "0",
        check=lambda name, value: check_number(name, value, 0, 100),
    ),
    "end": Option(
        "inline|background",
        "when a teardown's sessions are ended: before the next test, inline, or meanwhile, in the background",
        "inline",
        check=lambda name, value: check_choice(name, value, ("inline", "background")) == "background",
        setting="end_in_background",
    ),
    "run_id": Option(
        "ID",
        "name of the run in its sessions' tags, which shards may share",
        default_help="the CI's, or random",
        check=lambda _name, value: check_run_id(value),
    ),
    "reaper": Option(
        "on|off",
        "whether the sessions of a run that is killed are ended: on or off",
        "on",
        check=lambda name, value: check_choice(name, value, ("on", "off")) == "on",
    ),
    "playwright": Option(
        "off|worker|test",
        "where Playwright's browsers run: on this machine, off; on a session that each worker keeps, worker; or on one "
        "of each test's own, test",
        "off",
        check=lambda name, value: check_choice(name, value, ("off", "worker", "test")),
    ),
    "context": Option(
        "new|recorded",
        "with --anchor-playwright test, a test's first browser context: new, or the session's own, recorded",
        "new",
        setting="recorded",
        check=lambda name, value: check_choice(name, value, ("new", "recorded")) == "recorded",
    ),
    "forward": Option(
        "auto|on|off",
        "whether the test machine's localhost is there for the browsers, too: on, off, or auto, which is on unless "
        "they run on this machine anyway; needs pytest-anchor[playwright]",
        "auto",
        check=lambda name, value: check_choice(name, value, ("auto", "on", "off")),
    ),
    "forward_hosts": Option(
        "HOSTS",
        "the names by which they reach it, separated by commas",
        FORWARDED_HOSTS,
        check=check_hosts,
    ),
    "budget": Option(
        "MINUTES",
        "minutes of browser, over all sessions, after which the run creates no further one",
        default_help="as many as it takes",
        check=check_minutes,
    ),
    "keep": Option(
        "off|failed",
        "whether the sessions of tests that fail stay open for a while, for a person to look at: off or failed; where "
        "CI is set, only the command line counts",
        "off",
        check=lambda name, value: check_choice(name, value, ("off", "failed")) == "failed",
    ),
    "keep_for": Option(
        "TIME",
        "how long: a number with s, m or h",
        "15m",
        check=check_span,
    ),
    "mark_outcome": Option(
        "on|off",
        "whether sessions carry the test, the worker and, once they are over, the outcome in their tags: on or off",
        "on",
        check=lambda name, value: check_choice(name, value, ("on", "off")) == "on",
    ),
    "links": Option(
        "on|off",
        "whether the terminal and the reports show sessions' links and ids, by which others can look at them: on or "
        "off; the id of a session that leaked is always shown",
        "on",
        check=lambda name, value: check_choice(name, value, ("on", "off")) == "on",
    ),
    "screenshot": Option(
        "on|off|only-on-failure",
        "whether a screenshot is taken of the sessions of a test: of each test, of none, or of one that fails",
        "only-on-failure",
        check=lambda name, value: check_choice(name, value, ("on", "off", "only-on-failure")),
    ),
    "recording": Option(
        "on|off|retain-on-failure",
        "whether the recordings of sessions are downloaded once they are over: of all, of none, or of those whose test "
        "has failed",
        "off",
        check=lambda name, value: check_choice(name, value, ("on", "off", "retain-on-failure")),
    ),
    "report": Option(
        "FILE",
        "draw a picture of the run at its end: FILE.html, which needs pytest-anchor[report], or FILE.json",
        default_help="none is drawn",
        variable=REPORT_VARIABLE,
        check=check_report,
    ),
    "shared_limits": Option(
        "URL",
        "Redis or Valkey server by which the runs of several machines share the plan's limits (redis://, rediss://, "
        "unix://); needs pytest-anchor[redis]",
        default_help="none: the runs of this registry share them",
        variable=SHARED_LIMITS_VARIABLE,
        check=lambda name, value: value and check_shared_limits(name, value),
    ),
    "shared_lease": Option(
        "SECONDS",
        "seconds after which a run that does not reach that server any more loses its slots there",
        "30",
        check=_lease,
    ),
    "chromium": Option(
        "PATH",
        "the Chromium for --anchor-local",
        default_help="looked for on PATH and in the usual places",
        variable=CHROMIUM_VARIABLE,
        check=lambda _name, value: _program(value),
    ),
}
_REGISTRY_HELP = f"folder for the record of created sessions (default: {REGISTRY_NAME} in pytest's rootdir)"
_OUTPUT_HELP = (
    f"folder for screenshots and recordings, one inside it for each test (default: {OUTPUT_NAME} in pytest's rootdir)"
)
_LOCAL_HELP = "serve Anchor's API on this machine with local Chromium: free, offline, needs pytest-anchor[local]"


def add_options(parser: pytest.Parser) -> None:
    """Declare all options, on the command line and in the ini file."""
    group = parser.getgroup(
        "anchor",
        f"Anchor Browser sessions (pytest-anchor); the API key is read from {' or '.join(KEY_VARIABLES)}",
    )
    for name, option in OPTIONS.items():
        group.addoption(_flag(name), dest=f"anchor_{name}", metavar=option.metavar, help=option.full_help)
        parser.addini(f"anchor_{name}", option.full_help)
    group.addoption("--anchor-registry", dest="anchor_registry", metavar="DIR", help=_REGISTRY_HELP)
    parser.addini("anchor_registry", _REGISTRY_HELP)
    group.addoption("--anchor-output", dest="anchor_output", metavar="DIR", help=_OUTPUT_HELP)
    parser.addini("anchor_output", _OUTPUT_HELP)
    group.addoption("--anchor-local", action="store_true", dest="anchor_local", help=_LOCAL_HELP)
    parser.addini("anchor_local", _LOCAL_HELP, type="bool", default=False)


def playwright_mode(config: pytest.Config) -> str:
    """Where Playwright's browsers are to run, as far as it can be told before all options are parsed."""
    given = getattr(config.known_args_namespace, "anchor_playwright", None) or config.getini("anchor_playwright")
    return str(given or OPTIONS["playwright"].default)


def read_settings(config: pytest.Config) -> Settings:
    """What the command line, the environment and the ini file say; the first of them wins.

    :raises AnchorConfigError: a value cannot be used.
    """
    invocation = new_invocation()
    base_url = config.getoption("anchor_base_url") or os.environ.get(BASE_URL_VARIABLE)
    if config.getoption("anchor_base_url") and config.getoption("anchor_local"):
        raise AnchorConfigError("--anchor-local and --anchor-base-url exclude each other: give one of them")
    local = bool(config.getoption("anchor_local") or (config.getini("anchor_local") and not base_url))
    values = {
        option.setting or name: option.check(_flag(name), _text(config, name, option, invocation))
        for name, option in OPTIONS.items()
        if not (local and name == "base_url")
    }
    _check_context(values["playwright"], recorded=values["recorded"])
    values["report"] = str(_path(config, "report", REPORT_VARIABLE) or "")
    for given in (config.getoption("anchor_shared_limits"), config.getini("anchor_shared_limits")):
        refuse_password("--anchor-shared-limits", given or "")
    return Settings(
        **{"base_url": "", **values},
        folder=(_path(config, "registry") or config.rootpath / REGISTRY_NAME) / invocation,
        output=os.path.abspath(_path(config, "output") or config.rootpath / OUTPUT_NAME),
        owner="main",
        api_key=f"local-{os.urandom(16).hex()}" if local else key_from_environment(),
        local=local,
        shard=ci_shard(),
        socket_folder=socket_folder(invocation),
        main_pid=os.getpid(),
    )


def _text(config: pytest.Config, name: str, option: Option, invocation: str) -> str:
    given = config.getoption(f"anchor_{name}") or (option.variable and os.environ.get(option.variable))
    default = ci_run_id() or invocation if name == "run_id" else option.default
    if name == "keep" and os.environ.get("CI"):  # it costs money, and nobody is there to look
        return str(given or default)
    return str(given or config.getini(f"anchor_{name}") or default)


def _check_context(playwright: str, *, recorded: bool) -> None:
    if recorded and playwright == "worker":
        raise AnchorConfigError(
            "--anchor-context recorded needs --anchor-playwright test: a session's own context cannot be cleared of "
            "what a test has left in it, so each test needs a session of its own"
        )


def _path(config: pytest.Config, name: str, variable: str = "") -> Path | None:
    """The absolute path that an option gives: in an ini file, it is relative to that."""
    if given := config.getoption(f"anchor_{name}") or (variable and os.environ.get(variable)):
        return Path(config.invocation_params.dir, os.path.expanduser(given))
    beside = config.inipath.parent if config.inipath else config.rootpath
    ini = config.getini(f"anchor_{name}")
    return Path(beside, os.path.expanduser(ini)) if ini else None


def _program(text: str) -> str:
    """The path of a program that is given as one; a bare name is looked for on PATH, wherever that is done."""
    return os.path.abspath(os.path.expanduser(text)) if os.sep in text else text


def _flag(name: str) -> str:
    return f"--anchor-{name.replace('_', '-')}"
