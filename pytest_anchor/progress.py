"""The progress line of a sweep that takes its time."""

from __future__ import annotations

import time
from typing import Any

QUIET = 1.0  # seconds before anything is said
EVERY = 10.0  # seconds between lines where the terminal cannot rewrite one


class Progress:
    """Says on the terminal how far a sweep is; call it as often as you like.

    :param reporter: pytest's terminal reporter, or ``None`` to say nothing.
    """

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._next = time.monotonic() + QUIET

    def __call__(self, done: int, total: int) -> None:
        """Say that *done* of *total* are done, if it is time to say something."""
        now = time.monotonic()
        if self._reporter is None or now < self._next:
            return
        self._reporter.ensure_newline()
        what = (
            f"ending sessions: {done} of {total}" if total else "looking for sessions whose creation was not answered"
        )
        if self._reporter.isatty:
            self._reporter.rewrite(f"anchor: {what}", erase=True)
            self._next = now + QUIET / 4
        else:
            self._reporter.write_line(f"anchor: {what}")
            self._next = now + EVERY
