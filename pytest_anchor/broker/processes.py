"""The living processes of a run, as the kernel reports their deaths."""

from __future__ import annotations

import os
import select
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from ..registry.locks import started

if TYPE_CHECKING:
    from collections.abc import Callable

POLL_INTERVAL = 0.2  # seconds, where the kernel does not report deaths


class Process(NamedTuple):
    """A process of the run: what it calls itself, and its pid."""

    name: str
    pid: int


class Processes:
    """The living processes of the run. A thread for each waits for its death.

    :param gone: called with each that dies, in a thread of its own.
    """

    def __init__(self, gone: Callable[[Process], object]) -> None:
        self._gone = gone
        self._lock = threading.Lock()
        self._living: set[Process] = set()
        self._over: set[Process] = set()  # that have left the run

    @property
    def living(self) -> set[Process]:
        """The processes that live and have not left the run."""
        with self._lock:
            return set(self._living)

    def lives(self, name: str) -> bool:
        """Whether a process of that name lives."""
        return any(process.name == name for process in self.living)

    def add(self, process: Process) -> bool:
        """Watch a process.

        :returns: whether it is a part of the run: one that has left is not any more.
        """
        with self._lock:
            if process in self._over:
                return False
            if process in self._living:
                return True
            self._living.add(process)
        threading.Thread(target=self._watch, args=(process,), name=f"watch-{process.pid}", daemon=True).start()
        return True

    def remove(self, process: Process) -> bool:
        """Take in that a process is over.

        :returns: whether it was known to live.
        """
        with self._lock:
            self._over.add(process)
            known = process in self._living
            self._living.discard(process)
            return known

    def _watch(self, process: Process) -> None:
        _wait_for_death(process.pid)
        if self.remove(process):
            self._gone(process)


def _wait_for_death(pid: int) -> None:
    """Block until the process is over, a zombie included."""
    with suppress(AttributeError, OSError):  # no Linux, an old one, or one that forbids it
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll()
        finally:
            os.close(fd)
        return
    with suppress(AttributeError, OSError):  # macOS, and the BSDs
        queue = select.kqueue()  # type: ignore[attr-defined]
        death = select.kevent(pid, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT)  # type: ignore[attr-defined]
        try:
            queue.control([death], 1)
        except ProcessLookupError:
            pass
        finally:
            queue.close()
        return
    then = started(pid)
    while started(pid) == then != "":
        time.sleep(POLL_INTERVAL)
