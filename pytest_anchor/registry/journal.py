"""The record on disk of every session that a run creates.

One folder for each run::

    .pytest_anchor/
        .gitignore
        <run>/
            journal.jsonl   one JSON line for each event, only ever appended to
            journal.lock    guards every write
            broker.lock     held by the run's broker while it lives; the kernel releases it at any death
            gw0.4711.pid    one for each process of the run, for when the broker is killed
            sweep.lock      held by whichever process sweeps the run after its death

The journal's events, each with the ``nonce`` of the creation that it is about:

``intent``   written before the request: ``owner``, ``test``, ``time``, ``base_url``, ``fingerprint``,
             ``run_id``, the folder's own ``place``, which tells a copy from the original, ``ahead``
             where no test has asked for it yet, and ``retried``, how often it had failed before
``refused``  there is no session: the API did not create it, or does not know it long after
``lost``     the answer never came: a session may exist
``created``  its ``id``, and a ``seal`` that only the API key can make: who edits the file has no id ended
``taken``    a test has asked for what was created ahead: ``test``
``failed``   an attempt to end it did not succeed: ``error``
``ended``    it is over: ``how``, ``already``, ``note``
``waited``   a test had to wait for what the plan allows: ``seconds``
"""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import Timeout, lock_descriptor, unlock_descriptor

from ..errors import AnchorRegistryError
from ..settings import REGISTRY_NAME
from ..tags import is_session_id
from .locks import BROKER_LOCK, JOURNAL, JOURNAL_LOCK, SWEEP_LOCK, hold, is_live, open_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_TIMEOUT = 10.0  # seconds; a write takes microseconds, so a longer wait means a stopped process

_LOCK_PAUSE = 0.001  # seconds between attempts

MOST = 1_000_000  # what no number of tries, and no status, comes to

MAX_LINE = 1 << 20  # bytes; ours are short, so a longer one is nobody's record

# How the next writer closes off a line that a kill left torn; JSON text has no such byte.
_TORN = b"\0"


@dataclass
class Record:
    """What the journal knows of one creation."""

    nonce: str
    owner: str = "?"
    test: str = "?"
    time: float = 0.0
    base_url: str = ""
    fingerprint: str = ""
    run_id: str = ""
    folder_inode: int = 0
    ahead: bool = False  # created before a test asked for it, and none has
    retried: int = 0  # how often a creation for the same request had failed before
    id: str | None = None
    signature: str = ""
    state: str = "pending"  # pending, lost, refused, open, ended
    ended_by: str = ""
    already: bool = False
    note: str = ""
    error: dict[str, Any] | None = None  # of the last failure; its ``tries`` count those of all before

    def apply(self, event: str, fields: dict[str, Any]) -> None:
        """Take one event in; to take it in again changes nothing.

        :raises ValueError: it is no event; so do TypeError, KeyError, AttributeError and OverflowError say.
        """
        if event == "intent":
            self.owner, self.test = str(fields["owner"]), str(fields["test"])
            self.base_url, self.fingerprint = str(fields["base_url"]), str(fields["fingerprint"])
            self.run_id, self.folder_inode = str(fields["run_id"]), int(fields["folder_inode"])
            self.time = float(fields["time"])
            self.ahead, self.retried = bool(fields.get("ahead", False)), _count(fields.get("retried", 0))
        elif event == "taken":
            self.test, self.ahead = str(fields["test"]), False
        elif event == "created":
            if not (is_session_id(fields["id"]) and fields["signature"].isascii()):
                raise ValueError(event)
            self.id, self.signature = fields["id"], fields["signature"]
            if self.state != "ended":  # by whoever was faster
                self.state, self.error = "open", None
        elif event == "refused":
            self.state = event
        elif event == "lost":
            self.error, self.time = _error_fields(fields["error"]), float(fields["time"])
            self.state = event
        elif event == "failed":
            self.error = _error_fields(fields["error"])
        elif event == "ended":
            self.ended_by, self.already = str(fields["ended_by"]), bool(fields["already"])
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
    waits: dict[str, float] = field(default_factory=dict)  # seconds, by the nonce of what was waited for

    @property
    def settled(self) -> bool:
        """Whether nothing can be running, as far as this record tells."""
        return not (self.unreadable or any(one.open or one.unresolved for one in self.records.values()))

    def apply(self, line: dict[str, Any]) -> None:
        """Take one event in."""
        nonce = str(line["nonce"])
        if not nonce.isascii():
            raise ValueError(nonce)
        if line["event"] == "waited":
            seconds = float(line["seconds"])
            if not 0 <= seconds <= MOST:
                raise ValueError(seconds)
            self.waits[nonce] = seconds
            return
        record = self.records.get(nonce) or Record(nonce)
        record.apply(line["event"], line)
        self.records[nonce] = record


def _count(value: Any) -> int:
    if not 0 <= (number := int(value)) <= MOST:
        raise ValueError(value)
    return number


def _error_fields(error: dict[str, Any]) -> dict[str, Any]:
    """An error's fields as the journal keeps them, each of its proper type."""
    status, tries = error["status"], int(error["tries"])
    if not (0 <= tries <= MOST and (status is None or 0 <= int(status) <= MOST)):
        raise ValueError(error)
    texts = {name: str(error[name]) for name in ("code", "message", "remedy")}
    return {"status": None if status is None else int(status), "tries": tries, **texts}


class Run:
    """One run's folder, as one process sees it. Safe to use from several threads.

    What this object appends, its ``state`` knows at once; what others do, once it has been read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State()
        self._offset = 0
        self._reading = threading.RLock()
        self._broker_lock: int | None = None
        self._claim: int | None = None
        self._folder_inode: int | None = None
        self._lock_timeout = LOCK_TIMEOUT

    def join(self) -> None:
        """Make the folder, and hold the broker's lock until :meth:`leave`.

        :raises AnchorRegistryError: the folder cannot be made, written or trusted.
        """
        try:
            _trusted_folder(self.folder.parent, with_gitignore=True)
            _trusted_folder(self.folder)
            deadline = time.monotonic() + LOCK_TIMEOUT
            while (lock := hold(self.folder / BROKER_LOCK)) is None:
                if time.monotonic() > deadline:
                    raise Timeout(str(self.folder / BROKER_LOCK))
            self._broker_lock = lock
            with self._guarded():
                self._folder_inode = self.folder_inode
        except (OSError, Timeout) as error:
            raise _unusable(self.folder.parent, error) from error

    def leave(self) -> None:
        """Let the broker's lock go."""
        if self._broker_lock is not None:
            os.close(self._broker_lock)
            self._broker_lock = None

    @property
    def is_in_place(self) -> bool:
        """Whether the folder that was joined is still there."""
        return os.path.lexists(self.folder / BROKER_LOCK)

    def restore(self) -> None:
        """Make the folder anew where it was removed, and write down again what may be running.

        :raises AnchorRegistryError: the registry cannot be used any more.
        """
        with self._reading:
            if self._broker_lock is None or self.is_in_place:
                return
            self.leave()
            self._folder_inode = None
            self.join()
            self._offset = 0
            for record in list(self.state.records.values()):
                self.add(record)

    def known(self, nonce: str) -> Record:
        """The record of a creation that is on record."""
        return self.state.records.get(nonce) or self.read().records[nonce]

    def claim(self) -> bool:
        """Hold the right to sweep this run after its death, until :meth:`release` or this process's own death.

        :returns: whether nobody else has it, and the run's folder is there.
        :raises AnchorRegistryError: something odd is in the place of the lock.
        """
        path = self.folder / SWEEP_LOCK
        try:
            first = not path.exists()
            self._claim = hold(path)
            self._folder_inode = self.folder_inode
            if first and self._claim is not None:
                last = (self.folder / JOURNAL).stat().st_mtime
                os.utime(path, (last, last))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return self._claim is not None

    def release(self) -> None:
        """Let the claim go."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    @property
    def died(self) -> float:
        """When the last owner wrote its last, in seconds since the epoch; known once the run has been claimed."""
        with suppress(OSError):
            return (self.folder / SWEEP_LOCK).stat().st_mtime
        return time.time()

    @property
    def folder_inode(self) -> int:
        """What tells this folder from a copy of it; known for good once it has been joined or claimed."""
        return self._folder_inode or self.folder.stat().st_ino

    def append(self, event: str, nonce: str, *, deadline: float = float("inf"), **fields: Any) -> None:
        """Write one event.

        :param deadline: in ``time.monotonic()`` seconds, until which to wait for another writer at most.
        :raises AnchorRegistryError: it could not be written; nothing of it stays in the file.
        """
        line = {"event": event, "nonce": nonce, **fields}
        try:
            try:
                self._append(line, deadline)
            except FileNotFoundError:
                if self._broker_lock is None:
                    raise
                self.restore()
                if "folder_inode" in line:
                    line["folder_inode"] = self.folder_inode
                self._append(line, deadline)
        except (OSError, Timeout) as error:
            raise _unusable(self.folder, error) from error

    def _append(self, event: dict[str, Any], deadline: float) -> None:
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        with self._guarded(deadline):
            before = self._write(line)
            with self._reading:
                if before == 0:  # it is the first line, or the journal was removed
                    self._offset = 0
                if self._offset == before:  # no other process has written meanwhile
                    self._take(line[:-1])
                    self._offset += len(line)

    def add(self, record: Record) -> None:
        """Take over what another registry knows of a creation of this run.

        What may be running is written down as well.

        :raises AnchorRegistryError: it could not be.
        """
        record.folder_inode = self.folder_inode
        self.state.records[record.nonce] = record
        if not (record.open or record.unresolved):
            return
        intent = ("owner", "test", "time", "base_url", "fingerprint", "run_id", "folder_inode", "ahead", "retried")
        self.append("intent", record.nonce, **{name: getattr(record, name) for name in intent})
        if record.id is not None:
            self.append("created", record.nonce, id=record.id, signature=record.signature)

    def read(self) -> State:
        """Take in what all owners have written since the last call.

        :raises AnchorRegistryError: the journal cannot be read.
        """
        with self._reading:
            return self._read()

    def _read(self) -> State:
        try:
            # A pipe in its place would block the opening, and a link lead elsewhere.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with os.fdopen(os.open(self.folder / JOURNAL, flags), "rb") as file:
                _check_file(file.fileno())
                file.seek(self._offset)
                self._take_lines(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise _unusable(self.folder, error) from error
        return self.state

    def _take_lines(self, file: BinaryIO) -> None:
        skipping = False
        while piece := file.readline(MAX_LINE):
            whole = piece.endswith(b"\n")
            if not (whole or skipping or len(piece) == MAX_LINE):
                return  # torn by a kill, or being written just now
            if whole and not skipping:
                self._take(piece[:-1])
            elif not skipping:
                self.state.unreadable += 1
            self._offset += len(piece)  # last: what Ctrl-C interrupts is taken again
            skipping = not whole

    def remove(self) -> None:
        """Delete the folder: nothing in it is open."""
        with suppress(OSError):
            for entry in list(self.folder.iterdir()):
                entry.unlink()
            self.folder.rmdir()

    @property
    def is_live(self) -> bool:
        """Whether the run goes on."""
        return is_live(self.folder)

    def _take(self, line: bytes) -> None:
        if line.endswith(_TORN):
            return
        try:
            self.state.apply(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            self.state.unreadable += 1

    def _write(self, line: bytes) -> int:
        """Write one line at the end of the journal.

        :returns: where it begins; -1 where it had to close off another.
        """
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        fd = os.open(self.folder / JOURNAL, flags, 0o600)
        try:
            size = before = _check_file(fd).st_size
            try:
                if size:
                    os.lseek(fd, -1, os.SEEK_END)
                    if os.read(fd, 1) != b"\n":
                        line, before = _TORN + b"\n" + line, -1
                if os.write(fd, line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                os.ftruncate(fd, size)
                raise
            return before
        finally:
            os.close(fd)

    @contextmanager
    def _guarded(self, deadline: float = float("inf")) -> Iterator[None]:
        patience = min(self._lock_timeout, max(deadline - time.monotonic(), 0.0))
        try:
            with guarded(self.folder / JOURNAL_LOCK, patience):
                self._lock_timeout = LOCK_TIMEOUT
                yield
        except Timeout:
            self._lock_timeout = 0.0  # who waited once in vain does not do so for each of a hundred records
            raise


@contextmanager
def guarded(path: str | os.PathLike[str], timeout: float) -> Iterator[int]:
    """Hold the lock on the file *path*, made if need be; yields its descriptor, open for reading and writing.

    :param timeout: seconds to wait for whoever has it.
    :raises OSError: the file cannot be opened, or is no file.
    :raises filelock.Timeout: somebody else has it.
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


def check_registry(path: Path) -> bool:
    """Return whether there is a registry at *path*.

    :raises AnchorRegistryError: somebody else could have prepared it, or could change it.
    """
    try:
        _check_folder(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _unusable(path, error) from error
    return True


def is_own_folder(path: Path) -> bool:
    """Whether *path* is a folder that nobody else has made, and no link to one."""
    try:
        _check_folder(path)
    except OSError:
        return False
    return True


def _trusted_folder(path: Path, *, with_gitignore: bool = False) -> None:
    """Make *path* for this user only; refuse one that somebody else could have prepared or could change."""
    made = False
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
        made = True
    if not made:
        _check_folder(path)
        with_gitignore = with_gitignore and path.name == REGISTRY_NAME
    ignore = path / ".gitignore"
    if with_gitignore and not ignore.exists():
        ignore.write_text("# Made by pytest-anchor.\n*\n", encoding="utf-8")


def _check_folder(path: Path) -> None:
    info = path.lstat()
    if not stat.S_ISDIR(info.st_mode):
        raise OSError(errno.ENOTDIR, "it is a link or a file, not a folder", str(path))
    if info.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"it belongs to user {info.st_uid}, not to {os.geteuid()}", str(path))
    if info.st_mode & 0o022 and not info.st_mode & stat.S_ISVTX and _has_modes(path):
        raise OSError(errno.EPERM, "other users may write in it", str(path))


def _has_modes(folder: Path) -> bool:
    """Whether the file system of *folder* keeps modes: where every folder looks open, that tells nothing."""
    probe = folder / f".modes-{os.getpid()}"
    probe.mkdir(mode=0o700)
    try:
        return not probe.lstat().st_mode & 0o022
    finally:
        probe.rmdir()


def _check_file(fd: int) -> os.stat_result:
    """Refuse what is no file of this user's."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EPERM, f"its {JOURNAL} is no file")
    if info.st_uid != os.geteuid():
        raise OSError(errno.EPERM, f"its {JOURNAL} belongs to user {info.st_uid}, not to {os.geteuid()}")
    return info


def _unusable(folder: Path, error: Exception) -> AnchorRegistryError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, Timeout):
        why = f"another process has held its lock for over {LOCK_TIMEOUT:.0f} seconds"
    return AnchorRegistryError(
        f"the session registry {str(folder)!r} cannot be used: {why}. No session is created without a record: "
        "make the folder writable, or name another one with --anchor-registry DIR."
    )
