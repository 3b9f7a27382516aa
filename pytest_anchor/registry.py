"""The record on disk of every session that a run creates.

One folder for each run::

    .pytest_anchor/
        .gitignore
        <run>/
            journal.jsonl   one JSON line for each event, only ever appended to
            journal.lock    guards every write
            main.owner      a lock file for each process that creates sessions,
            gw0.owner       held while it lives; the kernel releases it at any death

The journal's events, each with the ``nonce`` of the creation that it is about:

``intent``   written before the request: ``owner``, ``test``, ``time``, ``base_url``, ``fingerprint``
``refused``  the API did not create it
``lost``     the answer never came: a session may exist
``created``  its ``id``
``failed``   an attempt to end it did not succeed: ``error``
``ended``    it is over: ``how`` (``test``, ``teardown``, ``sweep``), ``already``, ``note``
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

from .errors import AnchorRegistryError
from .settings import REGISTRY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_TIMEOUT = 10.0  # seconds; a write takes microseconds, so a longer wait means a stopped process

_LOCK_PAUSE = 0.001  # seconds between attempts

JOURNAL = "journal.jsonl"

# How the next writer closes off a line that a kill left torn; JSON text has no such byte.
_TORN = b"\0"

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)


@dataclass
class Record:
    """What the journal knows of one creation."""

    nonce: str
    owner: str = "?"
    test: str = "?"
    time: float = 0.0
    base_url: str = ""
    fingerprint: str = ""
    id: str | None = None
    state: str = "pending"  # pending, lost, refused, open, ended
    how: str = ""
    already: bool = False
    note: str = ""
    error: dict[str, Any] | None = None  # of the last failure; its ``tries`` count those of all before

    def apply(self, event: str, fields: dict[str, Any]) -> None:
        """Take one event in; to take it in again changes nothing.

        :raises ValueError: it is no event; so do TypeError, KeyError and OverflowError say.
        """
        if event == "intent":
            self.owner, self.test = str(fields["owner"]), str(fields["test"])
            self.base_url, self.fingerprint = str(fields["base_url"]), str(fields["fingerprint"])
            self.time = float(fields["time"])
        elif event == "created":
            self.id, self.state, self.error = str(fields["id"]), "open", None
        elif event == "refused":
            self.state = event
        elif event == "lost":
            self.error, self.time = _error_fields(fields["error"]), float(fields["time"])
            self.state = event
        elif event == "failed":
            self.error = _error_fields(fields["error"])
        elif event == "ended":
            self.how, self.already = str(fields["how"]), bool(fields["already"])
            self.note = str(fields.get("note", ""))
            self.state, self.error = "ended", None
        else:
            raise ValueError(event)

    @property
    def open(self) -> bool:
        """Whether a session is known that has not been confirmed to be over."""
        return self.state == "open"

    @property
    def unresolved(self) -> bool:
        """Whether a session may exist whose id is not known."""
        return self.state in ("pending", "lost")


@dataclass
class State:
    """All records of a run, in the order of their intents."""

    records: dict[str, Record] = field(default_factory=dict)
    unreadable: int = 0  # lines that are no events and not merely a kill's torn last line

    def apply(self, line: dict[str, Any]) -> None:
        """Take one event in."""
        nonce = str(line["nonce"])
        record = self.records.get(nonce) or Record(nonce)
        record.apply(line["event"], line)
        self.records[nonce] = record


def _error_fields(error: dict[str, Any]) -> dict[str, Any]:
    """An error's fields as the journal keeps them, each of its proper type."""
    status = error["status"]
    texts = {name: str(error[name]) for name in ("code", "message", "remedy")}
    return {"status": None if status is None else int(status), "tries": int(error["tries"]), **texts}


class Run:
    """One run's folder, as one of its processes sees it. Safe to use from several threads."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder
        self.owner = owner
        self.state = State()
        self._offset = 0
        self._reading = threading.Lock()
        self._owner_lock: FileLock | None = None

    def join(self) -> None:
        """Make the folder, and hold this owner's lock until :meth:`leave`.

        :raises AnchorRegistryError: the folder cannot be made, written or trusted.
        """
        try:
            _trusted_folder(self.folder.parent, with_gitignore=True)
            _trusted_folder(self.folder)
            lock = FileLock(self.folder / f"{self.owner}.owner", mode=0o600)
            lock.acquire(timeout=LOCK_TIMEOUT, poll_interval=0.01)
            self._owner_lock = lock
            with self._guarded():
                pass
        except (OSError, Timeout) as error:
            raise _unusable(self.folder.parent, error) from error

    def leave(self) -> None:
        """Let this owner's lock go."""
        if self._owner_lock is not None:
            self._owner_lock.release()
            self._owner_lock = None

    def append(self, event: str, nonce: str, **fields: Any) -> None:
        """Write one event.

        :raises AnchorRegistryError: it could not be written; nothing of it stays in the file.
        """
        line = json.dumps({"event": event, "nonce": nonce, **fields}, separators=(",", ":")).encode() + b"\n"
        try:
            with self._guarded():
                self._write(line)
        except (OSError, Timeout) as error:
            raise _unusable(self.folder, error) from error

    def read(self) -> State:
        """Take in what all owners have written since the last call.

        :raises AnchorRegistryError: the journal cannot be read.
        """
        with self._reading:
            return self._read()

    def _read(self) -> State:
        try:
            with (self.folder / JOURNAL).open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return self.state
        except OSError as error:
            raise _unusable(self.folder, error) from error
        whole, newline, _torn = new.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.split(b"\n") if newline else ():
            self._take(line)
        return self.state

    def remove(self) -> None:
        """Delete the folder: nothing in it is open."""
        with suppress(OSError):
            for entry in list(self.folder.iterdir()):
                entry.unlink()
            self.folder.rmdir()

    def is_alive(self, owner: str) -> bool:
        """Whether the process that is *owner* lives."""
        return is_held(self.folder / f"{owner}.owner")

    def _take(self, line: bytes) -> None:
        if line.endswith(_TORN):
            return
        try:
            self.state.apply(json.loads(line))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            self.state.unreadable += 1

    def _write(self, line: bytes) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | _NOFOLLOW | getattr(os, "O_BINARY", 0)
        fd = os.open(self.folder / JOURNAL, flags, 0o600)
        try:
            size = os.fstat(fd).st_size
            try:
                if size:
                    os.lseek(fd, -1, os.SEEK_END)
                    if os.read(fd, 1) != b"\n":
                        line = _TORN + b"\n" + line
                if os.write(fd, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(fd, size)
                raise
        finally:
            os.close(fd)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        # Opened anew each time: a descriptor that threads or a forked child share would share the lock, too.
        fd = os.open(self.folder / "journal.lock", os.O_RDWR | os.O_CREAT | _NOFOLLOW, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT
            while not lock_descriptor(fd, blocking=False):
                if time.monotonic() > deadline:
                    raise Timeout(str(self.folder / "journal.lock"))
                time.sleep(_LOCK_PAUSE)
            try:
                yield
            finally:
                unlock_descriptor(fd)  # closing does not do it where another thread forks just now
        finally:
            os.close(fd)


def wait_for_owners(folder: Path) -> None:
    """Block until no process of the run in *folder* is left that holds an owner's lock.

    The kernel wakes the waiter when a lock is released, by whatever death. Locks are taken
    shared, so that several may wait and none is mistaken for an owner.
    """
    while True:
        owners = sorted(folder.glob("*.owner"))
        for owner in owners:
            _wait_for_lock(owner)
        if not any(is_held(owner) for owner in folder.glob("*.owner")):
            return


if sys.platform == "win32":

    def is_held(path: Path) -> bool:
        """Whether a living process holds the lock on the file *path*."""
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True

    def _wait_for_lock(path: Path) -> None:
        with FileLock(path).acquire(poll_interval=1.0):
            pass

else:
    import fcntl

    def is_held(path: Path) -> bool:
        """Whether a living process holds the lock on the file *path*."""
        return not _flock(path, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def _wait_for_lock(path: Path) -> None:
        _flock(path, fcntl.LOCK_SH)

    def _flock(path: Path, how: int) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, how)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True


def _trusted_folder(path: Path, *, with_gitignore: bool = False) -> None:
    """Make *path* for this user only; refuse one that somebody else could have prepared or could change."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        info = path.lstat()
        if not stat.S_ISDIR(info.st_mode):
            raise OSError(errno.ENOTDIR, "it is a link or a file, not a folder", str(path)) from None
        if sys.platform != "win32":
            if info.st_uid != os.geteuid():
                raise OSError(
                    errno.EPERM, f"it belongs to user {info.st_uid}, not to {os.geteuid()}", str(path)
                ) from None
            if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX:
                raise OSError(errno.EPERM, "other users may write in it", str(path)) from None
        with_gitignore = with_gitignore and path.name == REGISTRY_NAME
    ignore = path / ".gitignore"
    if with_gitignore and not ignore.exists():
        ignore.write_text("# Made by pytest-anchor.\n*\n", encoding="utf-8")


def _unusable(folder: Path, error: Exception) -> AnchorRegistryError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, Timeout):
        why = f"another process has held its lock for over {LOCK_TIMEOUT:.0f} seconds"
    return AnchorRegistryError(
        f"the session registry {str(folder)!r} cannot be used: {why}. No session is created without a record: "
        "make the folder writable, or name another one with --anchor-registry DIR."
    )
