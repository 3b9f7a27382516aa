"""The file in which a run records every session that it creates.

One folder for each run::

    .pytest_anchor/
        .gitignore
        <run>/
            journal.jsonl   one JSON line for each event, only ever appended to: see :mod:`.records`
            journal.lock    guards every write
            broker.lock     held by the run's broker while it lives; the kernel releases it at any death
            gw0.4711.pid    one for each process of the run, for when the broker is killed
            sweep.lock      held by the process that sweeps the run after its death
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import Timeout

from .file_lock import LOCK_TIMEOUT, guarded
from .folders import check_file, make_folder, unusable
from .locks import BROKER_LOCK, JOURNAL, JOURNAL_LOCK, SWEEP_LOCK, hold, is_live
from .records import Record, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE = 1 << 20  # bytes; the events are short, so a longer line is none

# How the next writer closes off a line that a kill left torn; JSON text has no such byte.
_TORN = b"\0"


class Run:
    """One run's folder, as one process sees it. Safe to use from several threads.

    What this object appends, its ``state`` knows at once; what others do, once it has been read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State()
        self._offset = 0
        self._writing = threading.RLock()  # taken before the other, where both are
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
            make_folder(self.folder.parent, with_gitignore=True)
            make_folder(self.folder)
            deadline = time.monotonic() + LOCK_TIMEOUT
            while (lock := hold(self.folder / BROKER_LOCK)) is None:
                if time.monotonic() > deadline:
                    raise Timeout(str(self.folder / BROKER_LOCK))
            self._broker_lock = lock
            with self._guarded():
                self._folder_inode = self.folder.stat().st_ino
        except (OSError, Timeout) as error:
            raise unusable(self.folder.parent, error) from error

    def leave(self) -> None:
        """Release the broker's lock."""
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
        with self.exclusive(), self._reading:
            if self._broker_lock is None or self.is_in_place:
                return
            self.leave()
            self.join()
            self._offset = 0
            for record in list(self.state.records.values()):
                self.add(record)

    def known(self, nonce: str) -> Record:
        """The record of a creation that is on record."""
        return self.state.records.get(nonce) or self.read().records[nonce]

    def claim(self) -> bool:
        """Hold the right to sweep this run after its death, until :meth:`release` or this process's own death.

        :returns: whether no other process has it, and the run's folder is there.
        :raises AnchorRegistryError: something odd is in the place of the lock.
        """
        path = self.folder / SWEEP_LOCK
        try:
            first = not path.exists()
            self._claim = hold(path)
            self._folder_inode = self.folder.stat().st_ino
            if first and self._claim is not None:
                last = (self.folder / JOURNAL).stat().st_mtime
                os.utime(path, (last, last))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise unusable(self.folder, error) from error
        return self._claim is not None

    def release(self) -> None:
        """Release the claim."""
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
        """The inode, which tells this folder from a copy of it; fixed once it has been joined or claimed."""
        return self._folder_inode or self.folder.stat().st_ino

    def owns(self, record: Record) -> bool:
        """Whether a record was made in this folder and not in a copy of it; waits while the folder is made anew."""
        with self._reading:
            return record.folder_inode == self.folder_inode

    @contextmanager
    def exclusive(self, deadline: float = float("inf")) -> Iterator[None]:
        """Let no other thread of this process write, or make the folder anew, meanwhile.

        :param deadline: in ``time.monotonic()`` seconds, until which to wait for it at most.
        :raises TimeoutError: another thread was still at it then.
        """
        if not self._writing.acquire(timeout=min(max(deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)):
            raise TimeoutError("another thread is still writing to it")
        try:
            yield
        finally:
            self._writing.release()

    def append(self, event: str, nonce: str, *, deadline: float = float("inf"), **fields: Any) -> None:
        """Write one event, with the time and an intent's ``folder_inode`` unless they are given.

        :param deadline: in ``time.monotonic()`` seconds, until which to wait for another writer at most.
        :raises AnchorRegistryError: it could not be written; nothing of it stays in the file.
        """
        line = {"event": event, "nonce": nonce, "time": round(time.time(), 6), **fields}
        try:
            with self.exclusive(deadline):
                if event == "intent":
                    line.setdefault("folder_inode", self.folder_inode)
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
            raise unusable(self.folder, error) from error

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
        with self.exclusive():
            record.folder_inode = self.folder_inode
            self.state.records[record.nonce] = record
            if not (record.open or record.unresolved):
                return
            intent = ("owner", "test", "time", "base_url", "fingerprint", "run_id", "ahead", "retried")
            self.append("intent", record.nonce, **{name: getattr(record, name) for name in intent})
            if record.id is not None:
                when = {} if record.created_at is None else {"time": record.created_at}
                self.append("created", record.nonce, id=record.id, signature=record.signature, **when)

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
                check_file(file.fileno())
                file.seek(self._offset)
                self._take_lines(file)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise unusable(self.folder, error) from error
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
            size = before = check_file(fd).st_size
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
            self._lock_timeout = 0.0  # a process that is stopped is waited for once, not for each of a hundred records
            raise
