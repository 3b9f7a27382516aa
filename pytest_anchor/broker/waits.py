"""What the creations of a run wait for, for the terminal of another process."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_INTERVAL = 30.0  # seconds between lines on a terminal


class Waits:
    """What each creation waits for at the moment. Safe to use from several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waits: dict[object, str] = {}  # by the request, the one that began to wait first first

    def report(self, request: object, text: str) -> None:
        """Take in what a request waits for."""
        with self._changed:
            self._waits[request] = text
            self._changed.notify_all()

    def remove(self, request: object) -> None:
        """Take in that a request does not wait any more."""
        with self._changed:
            self._waits.pop(request, None)

    def follow(self, report: Callable[[str], object]) -> None:
        """Report what is waited for, at once and again after a while, until *report* raises OSError."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waits)
                text = next(iter(self._waits.values()))
                more = f", and {len(self._waits) - 1} more wait" if len(self._waits) > 1 else ""
            report(f"{text}{more}")
            time.sleep(LINE_INTERVAL)
