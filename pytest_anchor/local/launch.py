"""Starts the run's own local backend, once, from whichever of its processes is first."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from filelock import FileLock

from ..errors import AnchorConfigError
from ..settings import BASE_URL_VARIABLE

START_TIMEOUT = 20.0  # seconds until it listens


def local_base_url(folder: Path, key: str, chromium: str) -> str:
    """The base URL of the local backend of the run in *folder*, started if it is not yet there.

    It watches the owners' locks in *folder* and goes, with every Chromium, when none is held.

    :param chromium: the browser's path, ``""`` to look for one.
    :raises AnchorConfigError: it cannot be started, with its own words.
    """
    address = folder / "local.url"
    with FileLock(folder / "local.lock", mode=0o600):
        if not address.exists():
            address.write_text(_start(folder, key, chromium), encoding="ascii")
        return address.read_text(encoding="ascii")


def _start(folder: Path, key: str, chromium: str) -> str:
    command = [sys.executable, "-m", "pytest_anchor", "local", "--key-from-stdin", "--watch-run", str(folder)]
    if chromium:
        command += ["--chromium", chromium]
    log = folder / "local.log"
    with log.open("wb") as stderr:
        # A session of its own: Ctrl-C and a kill of the run's group pass it by, and the sweep still finds it.
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=child_environment(),
            start_new_session=True,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    first: list[str] = []
    reader = threading.Thread(target=lambda: first.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        process.stdin.write(f"{key}\n")
        process.stdin.close()
    except OSError:
        pass  # it has died already, and its log says why
    reader.join(START_TIMEOUT)
    name, _, base_url = first[0].strip().partition("=") if first else ("", "", "")
    if name != BASE_URL_VARIABLE:
        process.kill()
        process.wait()
        said = log.read_text(encoding="utf-8", errors="replace").strip()
        raise AnchorConfigError(f"the local backend did not start: {said or 'it did not say why'}")
    process.stdout.close()
    # Waits for it as long as this process lives, so that it never becomes a zombie.
    threading.Thread(target=process.wait, name="pytest-anchor-local", daemon=True).start()
    return base_url


def child_environment() -> dict[str, str]:
    """The environment for a child that runs this package, from a checkout too."""
    parent = str(Path(__file__).parents[2])
    path = os.environ.get("PYTHONPATH", "")
    if parent in sysconfig.get_paths().values():
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, parent)))}
