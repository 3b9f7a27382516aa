"""Which runs live, by the lock that a run's broker holds: the kernel releases a lock at any death."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

try:
    import fcntl
except ImportError:  # Windows, where no run gets as far as to a lock
    fcntl = None  # type: ignore[assignment]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

JOURNAL = "journal.jsonl"
JOURNAL_LOCK = "journal.lock"  # made once the broker's lock is held
BROKER_LOCK = "broker.lock"  # held by the run's broker while it lives
SWEEP_LOCK = "sweep.lock"  # held by the process that sweeps the run after its death
REAPER_LOCK = "reaper.lock"  # held by the broker while it does that itself
_PROCESS = ".pid"
_QUOTED = (("%", "%25"), ("/", "%2F"), ("\0", "%00"))  # in the name of a process, for that of a file
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_PAUSE = 0.005  # seconds
_ATTEMPTS = 40  # a process that asks whether a lock is held has it for a moment itself
_POLL_INTERVAL = 0.25  # seconds


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a run has made the folder: what else lies in a registry is not ours, and not looked into."""
    return any(os.path.lexists(os.path.join(folder, name)) for name in (JOURNAL, JOURNAL_LOCK))


def is_live(folder: str | os.PathLike[str]) -> bool:
    """Whether the run in *folder* goes on, or may go on where that cannot be found out.

    Its broker serves it, or was killed and any of its processes lives, which will start another.
    """
    try:
        # In this order: a broker that takes over has its lock before it forgets a process.
        if any(map(_lives, _processes(folder))):
            return True
        return is_held(os.path.join(folder, BROKER_LOCK)) and not is_held(os.path.join(folder, REAPER_LOCK))
    except OSError:
        return True


def wait_until_over(folder: str | os.PathLike[str]) -> None:
    """Block until the run in *folder* has neither a broker nor a process that could start one.

    The kernel wakes the waiter when the lock is released, by whatever death. It is taken shared, so that several
    may wait and none is mistaken for the broker.
    """
    while True:
        _wait(os.path.join(folder, BROKER_LOCK))
        if not is_live(folder):
            return
        time.sleep(_POLL_INTERVAL)


def note_process(folder: str | os.PathLike[str], name: str, pid: int) -> None:
    """Record that a process belongs to the run in *folder*, for when its broker is killed.

    :raises OSError: it could not be.
    """
    fd = open_file(_process_file(folder, name, pid), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, f"{pid} {started(pid)}".encode())
    finally:
        os.close(fd)


def forget_process(folder: str | os.PathLike[str], name: str, pid: int) -> None:
    """Remove what :func:`note_process` has written."""
    with suppress(OSError):
        os.unlink(_process_file(folder, name, pid))


def process_names(folder: str | os.PathLike[str]) -> Iterator[tuple[str, int]]:
    """The names and pids of the processes of the run in *folder* that live."""
    for path in _processes(folder):
        name, _, pid = os.path.basename(path).removesuffix(_PROCESS).rpartition(".")
        if pid.isdecimal() and _lives(path):
            for char, code in reversed(_QUOTED):
                name = name.replace(code, char)
            yield name, int(pid)


def _process_file(folder: str | os.PathLike[str], name: str, pid: int) -> str:
    for char, code in _QUOTED:
        name = name.replace(char, code)
    return os.path.join(folder, f"{name}.{pid}{_PROCESS}")


def _processes(folder: str | os.PathLike[str]) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        names = []
    return (os.path.join(folder, name) for name in names if name.endswith(_PROCESS))


def _lives(path: str) -> bool:
    """Whether the process lives that a file is about, and no other with its pid."""
    pid, _, then = read_small(path).partition(" ")
    return pid.isdecimal() and int(pid) > 0 and started(int(pid)) == then != ""


def started(pid: int) -> str:
    """When a process started, in whatever unit; ``""`` if there is no such process, or only what is left of it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        if os.path.exists("/proc/self/stat"):
            return ""
    try:  # macOS
        os.kill(pid, 0)
    except PermissionError:
        pass
    except OSError:
        return ""
    return "?"


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """Open a file that lies in a run's folder, made for this user only if *flags* allow it.

    :raises OSError: it cannot be opened, or is a link, a pipe or anything else that is not a file.
    """
    fd = os.open(path, flags | _FLAGS, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EPERM, "it is not a file", os.fspath(path))
    return fd


def write_small(path: str | os.PathLike[str], text: str) -> None:
    """Write a small file that lies in a run's folder, for this user only; what cannot be written is missing."""
    with suppress(OSError):
        fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(fd, text.encode("utf-8", "backslashreplace"))
        finally:
            os.close(fd)


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

    :raises OSError: that cannot be found out.
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
    """Open a lock file; ``None`` where there is none, or something that cannot be a lock file."""
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
