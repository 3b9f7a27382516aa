"""The progress line of a sweep, and writing to a terminal that may be gone."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from ..launcher import elapsed

if TYPE_CHECKING:
    from typing import TextIO

QUIET = 1.0  # seconds before anything is shown
EVERY = 10.0  # seconds between lines where the terminal cannot rewrite one
WIDTH = 30  # columns of the bar, or what the terminal has room for


class Progress:
    """Shows on the terminal how far a sweep is; it may be called as often as you like.

    :param reporter: pytest's terminal reporter, a :class:`Console`, or ``None`` to show nothing.
    """

    def __init__(self, reporter: Any) -> None:
        self._reporter = reporter
        self._next = elapsed() + QUIET
        self._drawn = False

    def __call__(self, done: int, total: int) -> None:
        """Show that *done* of *total* are done, if a line is due."""
        now = elapsed()
        if self._reporter is None or now < self._next:
            return
        try:
            if not self._drawn:
                begin_line(self._reporter)
            if self._reporter.isatty:
                self._reporter.rewrite(_line(done, total, bar=True), erase=True)
                self._drawn = True
                self._next = now + QUIET / 4
            else:
                self._reporter.write_line(_line(done, total, bar=False))
                self._next = now + EVERY
        except Exception:  # noqa: BLE001 - the terminal is gone, or a test has replaced what this uses: the sweep goes on
            self._reporter, self._drawn = None, False

    def clear(self) -> None:
        """Take the line back, so that something else can be written in its place."""
        if self._drawn:
            self._reporter.rewrite("", erase=True)
            self._drawn = False


def begin_line(reporter: Any) -> None:
    """Have what is written next begin a line, also after dots that pytest forgets: with ``-q``, and pytest-xdist's."""
    reporter.ensure_newline()
    writer = getattr(reporter, "_tw", None)
    if writer is not None and writer.width_of_current_line:
        reporter.write_line("")


class Console:
    """A plain stream with what a progress line uses of pytest's terminal reporter."""

    def __init__(self, stream: TextIO | None) -> None:
        self.isatty = stream is not None and stream.isatty()
        self._stream = stream
        self._width = 0

    def ensure_newline(self) -> None:
        """Nothing else begins a line here without ending it."""

    def rewrite(self, line: str, *, erase: bool) -> None:
        """Write *line* in the place of the last, and stay at its beginning."""
        write(self._stream, f"\r{line.ljust(self._width if erase else 0)}\r")
        self._width = len(line)

    def write_line(self, line: str) -> None:
        """Write *line* and go to the next."""
        write(self._stream, f"{line}\n")


def write(stream: TextIO | None, text: str) -> None:
    """Write *text*, unless its reader is gone: that must not keep a session from being ended.

    :param stream: ``None`` where it was closed before the process began.
    """
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:  # the reader has gone, or the disk is full; what is still in the buffer goes nowhere, too
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _line(done: int, total: int, *, bar: bool) -> str:
    if not total:
        return "anchor: looking for sessions whose creation was not answered"
    what, count = "anchor: ending sessions", f"{done} of {total}"
    room = shutil.get_terminal_size().columns - len(f"{what} [] {count}") - 1
    width = min(WIDTH, room) if bar else 0
    if width < 3:
        return f"{what}: {count}"
    full = width * done // total
    return f"{what} [{'#' * full}{'.' * (width - full)}] {count}"
