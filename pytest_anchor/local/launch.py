"""Starts the run's own local backend, once, from whichever of its processes is first."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from .. import detached
from ..errors import AnchorConfigError
from ..registry.locks import is_held, read_small
from ..settings import BASE_URL_VARIABLE

START_TIMEOUT = 20.0  # seconds until it listens
_ADDRESS = "local.url"
ALIVE = "local.alive"  # a lock that the backend of the run in this folder holds while it lives


def local_base_url(folder: Path, key: str, chromium: str) -> str:
    """The base URL of the local backend of the run in *folder*, started if it is not yet there.

    It watches the owners' locks in *folder* and goes, with every Chromium, when none is held.

    :param chromium: the browser's path, ``""`` to look for one.
    :raises AnchorConfigError: it cannot be started, with its own words.
    """
    __tracebackhide__ = True
    address = folder / _ADDRESS
    with FileLock(folder / "local.lock", mode=0o600):
        if not address.exists():
            address.write_text(_start(folder, key, chromium), encoding="ascii")
        return address.read_text(encoding="ascii")


def backend_of(folder: Path) -> str:
    """The base URL of the local backend that the run in *folder* has, or had; ``""`` for none."""
    return read_small(folder / _ADDRESS) if (folder / ALIVE).exists() else ""


def is_gone(folder: Path) -> bool:
    """Whether the run in *folder* had a local backend that lives no more, nor does any of its browsers."""
    try:
        return bool(backend_of(folder)) and not is_held(folder / ALIVE)
    except OSError:
        return False


def _start(folder: Path, key: str, chromium: str) -> str:
    __tracebackhide__ = True
    arguments = ["pytest_anchor", "local", "--key-from-stdin", "--watch-run", str(folder)]
    if chromium:
        # It works in another folder; a bare name is looked for on PATH.
        arguments += ["--chromium", str(Path(chromium).absolute()) if os.sep in chromium else chromium]
    try:
        line = detached.spawn_helper(arguments, key, folder / "local.log", timeout=START_TIMEOUT)
    except detached.StartError as error:
        raise AnchorConfigError(f"the local backend did not start: {error}") from None
    name, _, base_url = line.partition("=")
    if name != BASE_URL_VARIABLE:
        raise AnchorConfigError(f"the local backend did not start: {line}")
    return base_url
