"""The lock around each change of a file that several processes write."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import Timeout, lock_descriptor, unlock_descriptor

from .locks import open_file

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT = 10.0  # seconds; a write takes microseconds, so a longer wait means a stopped process

_LOCK_PAUSE = 0.001  # seconds between attempts


@contextmanager
def guarded(path: str | os.PathLike[str], timeout: float) -> Iterator[int]:
    """Hold the lock on the file *path*, made if need be; yields its descriptor, open for reading and writing.

    :param timeout: seconds to wait for the process that holds it.
    :raises OSError: the file cannot be opened, or is no file.
    :raises filelock.Timeout: another process holds it.
    """
    # Opened anew each time: a descriptor that threads or a forked child share would share the lock, too.
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + timeout
        while not lock_descriptor(fd, blocking=False):
            if time.monotonic() > deadline:
                raise Timeout(str(path))
            time.sleep(_LOCK_PAUSE)
        try:
            yield fd
        finally:
            unlock_descriptor(fd)  # closing does not do it where another thread forks just now
    finally:
        os.close(fd)
