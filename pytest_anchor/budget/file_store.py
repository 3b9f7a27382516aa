"""The limits' state in a file, for all that share a registry on one machine: the store that needs no server.

One small file for each account, rewritten as a whole under a lock::

    .pytest_anchor/limits-<account>.json

Whatever is wrong with it costs speed at most: the API keeps its own limits. What this process learned itself it knows
without the file, too.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from filelock import Timeout

from ..registry.file_lock import LOCK_TIMEOUT, guarded
from ..registry.locks import open_file
from .rules import keep_own, merge
from .state import State, dump, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .state import QueueEntry, Slot
    from .store import Result

MAX_FILE = 4 << 20  # bytes


class FileStore:
    """A :class:`~.store.Store` in a file. Safe to use from several threads.

    :param folder: where the file lies: the registry, or the run's own folder for a backend of its own.
    :param account: names the account: :attr:`AnchorAPI.account`.
    :param run: the name of the run that uses it.
    :param owner: the name of its process that does; ``""`` where it is for all of them.
    """

    def __init__(self, folder: Path, account: str, run: str, owner: str) -> None:
        self._path = os.fspath(folder / f"limits-{account}.json")
        self._run = run
        self._owner = owner
        self._memory = State()
        self._saved = True
        self._lock_timeout = LOCK_TIMEOUT
        self._mutex = threading.RLock()

    def read(self) -> tuple[State, float]:
        """The state and the time; what is in memory where the file could not be written."""
        return _read(self._path) if self._saved else self._memory, time.time()

    def update(self, rule: Callable[[State, float], tuple[State, Result]]) -> Result:
        """Replace the state by what *rule* makes of it, in memory only where the file cannot be used."""
        with self._mutex, ExitStack() as stack:
            file: int | None = None
            try:
                file = stack.enter_context(guarded(self._path, self._lock_timeout))
                state = parse(_first_line(os.pread(file, MAX_FILE, 0)))
                self._lock_timeout = LOCK_TIMEOUT
            except Timeout:
                state = self._memory
                self._lock_timeout = 0.0  # a process that is stopped is waited for once
            except OSError:
                state, file = keep_own(self._memory, self._is_own), None
                self._lock_timeout = 0.0
            if not self._saved:
                state = merge(state, self._memory, self._is_own)
            self._memory, result = rule(state, time.time())
            if file is None:
                self._saved = False
            elif not self._saved or self._memory != state:
                self._saved = _write(file, self._memory)
            return result

    def adopt(self, known: State) -> None:
        """Take over what another store knew: it is merged into the file with the next change."""
        with self._mutex:
            self._memory, self._saved = known, False

    @property
    def known(self) -> State:
        """The state as of the last change."""
        return self._memory

    @property
    def is_current(self) -> bool:
        """Whether what was decided last still holds, as it always does: the kernel tells of deaths."""
        return True

    def _is_own(self, _nonce: str, holder: Slot | QueueEntry) -> bool:
        return holder.run == self._run and self._owner in ("", holder.owner)


def _read(path: str) -> State:
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
            return parse(_first_line(file.read(MAX_FILE)))
    except OSError:
        return State()


def _first_line(text: bytes) -> bytes:
    return text.partition(b"\n")[0]  # a kill may have left what follows


def _write(file: int, state: State) -> bool:
    """Write *state* in one piece, so that no kill can leave half of it."""
    text = dump(state) + b"\n"
    try:
        is_whole = os.pwrite(file, text, 0) == len(text)
        os.ftruncate(file, len(text))
    except OSError:
        return False
    return is_whole
