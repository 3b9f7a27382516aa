"""SIGTERM ends a run the way Ctrl-C does: fixtures tear down, and the sweep runs."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

from ..delegation import THREAD
from ..launcher import getpid

if TYPE_CHECKING:
    from collections.abc import Callable


class Termination:
    """Turns SIGTERM into a ``KeyboardInterrupt``, where nobody else handles it.

    :param active: whether there is anything to tear down; while not, the signal does what it always does.
    """

    def __init__(self, active: Callable[[], bool]) -> None:
        self._active = active
        self._pid = 0

    def catch(self) -> None:
        """Begin; does nothing outside the main thread, or where the signal is handled or ignored already."""
        if delegation := THREAD.delegation:  # the task is one of the main thread, or of another
            delegation.call_soon(self.catch)
            return
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            self._pid = getpid()
            signal.signal(signal.SIGTERM, self._interrupt)

    def undo(self) -> None:
        """Stop, unless somebody else has taken the signal over."""
        if signal.getsignal(signal.SIGTERM) == self._interrupt:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _interrupt(self, number: int, _frame: object) -> None:
        __tracebackhide__ = True  # pytest names the line that it came in
        if getpid() == self._pid and self._active():
            raise KeyboardInterrupt("SIGTERM")
        signal.signal(number, signal.SIG_DFL)  # also in a child that a test forked
        os.kill(getpid(), number)
