"""Which processes live, by the lock files that they hold: the kernel releases a lock at any death.

The reaper waits in here for hours, so nothing large is imported.
"""

from __future__ import annotations

import errno
import os
import stat
import time

try:
    import fcntl
except ImportError:  # Windows, where no run gets as far as to a lock
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

JOURNAL = "journal.jsonl"
JOURNAL_LOCK = "journal.lock"  # made once the first owner's lock is held
_OWNER = ".owner"
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
CAN_TELL = fcntl is not None  # whether this system lets go of a lock at any death
_PAUSE = 0.005  # seconds
_ATTEMPTS = 40  # somebody who asks whether a lock is held has it for a moment himself


def owner_lock(folder: str | os.PathLike[str], owner: str) -> str:
    """The path of the lock that *owner* of the run in *folder* holds while it lives."""
    return os.path.join(folder, owner + _OWNER)


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a run has made the folder: what else lies in a registry is somebody's, and not looked into."""
    return any(os.path.lexists(os.path.join(folder, name)) for name in (JOURNAL, JOURNAL_LOCK))


def has_owners(folder: str | os.PathLike[str]) -> bool:
    """Whether any process of the run in *folder* lives, or that cannot be told."""
    try:
        return any(map(is_held, _owners(folder)))
    except OSError:
        return True


def wait_for_owners(folder: str | os.PathLike[str]) -> None:
    """Block until no process of the run in *folder* is left that holds an owner's lock.

    The kernel wakes the waiter when a lock is released, by whatever death. Locks are taken
    shared, so that several may wait and none is mistaken for an owner.
    """
    while True:
        for owner in _owners(folder):
            _wait(owner)
        if not has_owners(folder):
            return


def _owners(folder: str | os.PathLike[str]) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        names = []
    return (os.path.join(folder, name) for name in names if name.endswith(_OWNER))


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file that lies in a run's folder, made for this user only if *flags* allow it.

    :raises OSError: it cannot be opened, or is a link, a pipe or anything else that is no file.
    """
    fd = os.open(path, flags | _FLAGS, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EPERM, "it is no file", os.fspath(path))
    return fd


def read_small(path: str | os.PathLike[str]) -> str:
    """The text of a small file that lies in a run's folder, ``""`` if there is none."""
    try:
        fd = open_file(path, os.O_RDONLY)
    except OSError:
        return ""
    try:
        return os.read(fd, 65536).decode("utf-8", "replace")
    finally:
        os.close(fd)


def hold(path: str | os.PathLike[str]) -> int | None:
    """Hold the lock on the file *path*, made if need be, until the returned descriptor is closed.

    :returns: ``None`` if another process holds it.
    :raises OSError: the file cannot be opened.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o600)
    for _ in range(_ATTEMPTS):
        if _lock(fd, fcntl.LOCK_EX):
            return fd
        time.sleep(_PAUSE)
    os.close(fd)
    return None


def is_held(path: str | os.PathLike[str]) -> bool:
    """Whether a living process holds the lock on the file *path*.

    :raises OSError: that cannot be told.
    """
    fd = _open(path)
    if fd is None:
        return False
    try:
        return not _lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _wait(path: str) -> None:
    try:
        fd = _open(path)
    except OSError:
        time.sleep(1.0)
        return
    if fd is None:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _open(path: str | os.PathLike[str]) -> int | None:
    """Open a lock file; ``None`` where there is none, or something that nobody can have locked as one."""
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _lock(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
