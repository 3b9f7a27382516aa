"""Has the picture of the run written, where that was asked for: it changes nothing but a line of the summary."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import printable, redact
from ..reporting.summary import YELLOW, Line

if TYPE_CHECKING:
    from ..registry.records import State
    from ..report.model import Status
    from ..settings import Settings

WRITE_TIMEOUT = 20.0  # seconds that the end of a run waits for it; 10,000 sessions take two


class PictureWriter:
    """Writes ``--anchor-report FILE``.

    :ivar status: what has become of the run so far.
    """

    def __init__(self, settings: Settings) -> None:
        # A worker on another machine has its records in its controller's picture.
        self._path = Path(settings.report) if settings.report and not settings.own_registry else None
        self._key = settings.api_key or "\0"
        self._since = time.time_ns()  # when the file was written last, or this run began
        self.status: Status = "killed"

    def write(self, state: State, credits_used: float | None = None) -> list[Line]:
        """Write it at the end of the run, and return what there is to say about it."""
        if self._path is None or not state.records:
            return []
        problems: list[str] = []
        thread = threading.Thread(target=self._write, args=(self._path, state, credits_used, problems), daemon=True)
        try:
            thread.start()
            thread.join(WRITE_TIMEOUT)
            if thread.is_alive():
                problems.append(f"it is not done after {WRITE_TIMEOUT:.0f} s")
        except RuntimeError as error:  # no more threads can be started
            problems.append(str(error))
        path = printable(str(self._path), 4096)
        if problems:
            return [Line(f"the picture of the run could not be written to {path}: {problems[0]}", YELLOW)]
        return [Line(f"the picture of the run is in {path}")]

    def write_late(self, state: State) -> None:
        """Write what has become of the run since, unless another run has written that file meanwhile."""
        if self._path is not None and _modified(self._path) <= self._since:
            self.write(state)

    def _write(self, path: Path, state: State, credits_used: float | None, problems: list[str]) -> None:
        try:
            from ..report.write import write_report

            write_report(path, state, self.status, time.time(), credits_used)
            self._since = _modified(path)
        except Exception as error:  # noqa: BLE001 - whatever it is, no outcome depends on it
            why = (
                error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
            )
            problems.append(printable(redact(why, self._key)))


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
