"""The lock around each change of a file that several processes write."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .locks import open_file, try_lock, unlock

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_TIMEOUT = 10.0  # seconds; a write takes microseconds, so a longer wait means a stopped process

_POLL_INTERVAL = 0.001  # seconds


class LockTimeoutError(TimeoutError):
    """Another process holds a lock for too long."""


@contextmanager
def guarded(path: str | os.PathLike[str], timeout: float) -> Iterator[int]:
    """Hold the lock on the file *path*, made if need be; yields its descriptor, open for reading and writing.

    :param timeout: seconds to wait for the process that has it.
    :raises OSError: the file cannot be opened or locked, or is not a regular file.
    :raises LockTimeoutError: another process, or another thread, still has it.
    """
    # Opened anew each time: a descriptor that threads or a forked child share would share the lock, too.
    fd = open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        deadline = time.monotonic() + timeout
        while not try_lock(fd):
            if time.monotonic() > deadline:
                raise LockTimeoutError(str(path))
            time.sleep(_POLL_INTERVAL)
        try:
            yield fd
        finally:
            unlock(fd)  # closing does not do it where another thread forks just now
    finally:
        os.close(fd)
