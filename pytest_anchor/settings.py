"""Command line, environment and ini files, read once into one checked, frozen object."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import AnchorConfigError, printable

DEFAULT_BASE_URL = "https://api.anchorbrowser.io"
KEY_VARIABLES = ("ANCHORBROWSER_API_KEY", "ANCHOR_API_KEY")
BASE_URL_VARIABLE = "ANCHORBROWSER_BASE_URL"
REGISTRY_NAME = ".pytest_anchor"
KEYWORDS = ("session", "browser", "integrations", "identities")  # of a creation, as in POST /v1/sessions
ON_LEAK = ("fail", "warn")


@dataclass(frozen=True)
class Settings:
    """What one process of a run was told.

    :param run_id: names the run in the sessions' tags.
    :param folder: where the run keeps its journal; made when the first session is asked for.
    :param owner: ``main``, or an xdist worker's ``gw0``, ``gw1``…
    :param base_url: without a trailing slash; not used when *local*.
    :param api_key: ``None`` if the environment has none.
    :param local: whether the run serves itself a local backend.
    :param chromium: the browser of the local backend, ``""`` to look for one.
    :param on_leak: ``fail`` or ``warn``.
    :param sweep_timeout: seconds that the final sweep may take.
    """

    run_id: str
    folder: Path
    owner: str
    base_url: str
    api_key: str | None = field(repr=False)
    local: bool
    chromium: str
    on_leak: str
    sweep_timeout: float

    def for_worker(self, owner: str) -> dict[str, Any]:
        """The same settings for a worker, as plain built-ins.

        A real key does not cross: a worker reads it from its own environment, which it inherits.
        The local backend's is made up for this run and worth nothing outside it.
        """
        values = {**vars(self), "folder": str(self.folder), "owner": owner}
        if not self.local:
            del values["api_key"]
        return values

    @classmethod
    def of_worker(cls, values: dict[str, Any]) -> Settings:
        """What :meth:`for_worker` made, back in the worker."""
        return cls(**{"api_key": key_from_environment(), **values, "folder": Path(values["folder"])})


def new_run_id() -> str:
    """A fresh name for a run: 16 hexadecimal digits."""
    return os.urandom(8).hex()


def key_from_environment() -> str | None:
    """The first API key that the environment holds, or ``None``."""
    return next((key for name in KEY_VARIABLES if (key := os.environ.get(name))), None)


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

    :raises AnchorConfigError: it is no http(s) URL, or plain http to another machine.
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
            f"the base URL {shown!r} is no http:// or https:// URL; the default is {DEFAULT_BASE_URL}"
        )
    if parts.username is not None or "?" in value or "#" in value:
        raise AnchorConfigError(f"the base URL for {host!r} may have a path, but no user, query or fragment")
    if parts.scheme == "http" and not _is_loopback(host):
        raise AnchorConfigError(
            f"the base URL {shown!r} would send the API key in the clear: use https://, "
            "or http:// to this machine only (localhost, 127.0.0.1)"
        )
    return value.rstrip("/")


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


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


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> str:
    """Return *value* if it is one of *valid*.

    :raises AnchorConfigError: it is not.
    """
    if value not in valid:
        raise AnchorConfigError(f"{name} takes {' or '.join(valid)}, not {value!r}")
    return value
