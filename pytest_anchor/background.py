"""Daemon threads for work that must not hold up its caller."""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class DaemonThreadPool:
    """Daemon threads, started as calls come, at most *size*; each ends when nothing is left to do.

    An API that never answers can hold neither a caller beyond its timeout, nor the process at its exit.
    After a fork, the child's pool is empty.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._stopped = False
        self._empty()

    def _empty(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._todo: deque[Callable[[], object]] = deque()
        self._threads = 0

    def _here(self) -> threading.Condition:
        if self._pid != os.getpid():
            self._empty()
        return self._changed

    def submit(self, call: Callable[[], object]) -> None:
        """Have *call* called, the oldest first; what it returns or raises is dropped.

        Where no thread can be started, one that runs calls it, or else this very thread.
        """
        with self._here():
            if self._stopped:
                return
            self._todo.append(call)
            if self._threads >= self._size:
                return
            self._threads += 1
        try:
            threading.Thread(target=self._work, args=(BaseException,), name=self._name, daemon=True).start()
        except RuntimeError:
            with self._changed:
                alone = self._threads == 1
                self._threads -= not alone
            if alone:
                self._work(Exception)

    def wait(self, timeout: float) -> bool:
        """Wait until all that was submitted is done, or forgotten.

        :param timeout: seconds.
        :returns: whether it is.
        """
        with self._here():
            return self._changed.wait_for(lambda: not (self._threads or self._todo), timeout)

    def stop(self) -> None:
        """Forget what has not begun, and all that is submitted from now on."""
        with self._here():
            self._stopped = True
            self._todo.clear()
            self._changed.notify_all()

    def _work(self, dropped: type[BaseException]) -> None:
        try:
            while (call := self._next()) is not None:
                with suppress(dropped):
                    call()
        except BaseException:  # Ctrl-C, where a caller does the work
            with self._changed:
                self._threads -= 1
            raise

    def _next(self) -> Callable[[], object] | None:
        """The next call; ``None`` if there is none: the thread exits then."""
        with self._changed:
            if self._todo:
                return self._todo.popleft()
            self._threads -= 1
            self._changed.notify_all()
            return None
