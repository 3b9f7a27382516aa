"""Starts a helper process that outlives the run: the reaper, the local backend."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .registry.locks import open_file, read_small
from .settings import KEY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Sequence


class StartError(Exception):
    """The helper did not start; the message is what it printed, if anything."""


def spawn_helper(arguments: Sequence[str], secret: str, log: Path, *, timeout: float) -> str:
    """Start ``python -m`` with *arguments*, and return the first line that it prints.

    Ctrl-C and a kill of the run's process group pass it by.

    :param secret: one line for its standard input: neither arguments nor environment hold a key.
    :param log: the file that takes its standard error.
    :param timeout: seconds until it must have printed its line.
    :raises StartError: it did not.
    """
    try:
        with os.fdopen(open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=_environment(),
                start_new_session=True,
                cwd=log.parent,  # Python 3.10 imports from there first, and the run's own folder holds no modules
                text=True,
            )
    except OSError as error:
        raise StartError(error.strerror or str(error)) from None
    assert process.stdin is not None
    assert process.stdout is not None
    first: list[str] = []
    reader = threading.Thread(target=lambda: first.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    with suppress(OSError):  # it has died already, and its log says why
        process.stdin.write(f"{secret}\n")
    with suppress(OSError):
        process.stdin.close()
    reader.join(timeout)
    line = first[0].strip() if first else ""
    if not line:
        process.kill()
        process.wait()
        reader.join(1.0)  # a child of its own may have inherited the pipe
    if not reader.is_alive():
        process.stdout.close()
    if not line:
        raise StartError(read_small(log).strip() or "it did not say why")
    # Waits for it as long as this process lives, so that it never becomes a zombie.
    threading.Thread(target=process.wait, name="pytest-anchor-wait", daemon=True).start()
    return line


def _environment() -> dict[str, str]:
    """Return our environment without the keys; with it, the child finds this package, in a checkout too."""
    kept = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
    kept["PYTHONSAFEPATH"] = "1"  # a json.py in the working directory is not what the child is to import
    # Relative ones lead elsewhere from where the child works.
    paths = [path for path in kept.get("PYTHONPATH", "").split(os.pathsep) if Path(path).is_absolute()]
    parent = str(Path(__file__).parents[1].absolute())
    if parent not in sysconfig.get_paths().values():
        paths.append(parent)
    if paths:
        kept["PYTHONPATH"] = os.pathsep.join(paths)
    else:
        kept.pop("PYTHONPATH", None)
    return kept
