"""What a run keeps of its tests to look at. None of it changes an outcome, nor takes longer than its bound."""

from __future__ import annotations

import base64
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..background import DaemonThreadPool
from ..errors import AnchorAPIError, AnchorRegistryError, printable
from .output import OutputFolder
from .recordings import Recordings, reason_without_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ..api import AnchorAPI
    from ..registry.journal import Run
    from ..registry.records import Record
    from ..settings import Settings

AT_ONCE = 16  # calls
FAILURES_IN_A_ROW = 3  # after which no further screenshot is asked for
NONE: Mapping[str, Sequence[bytes]] = {}
TOO_LATE = "the API did not answer in the time there was for it"


class Screenshot(NamedTuple):
    """A screenshot of a session, or why there is none."""

    path: str = ""
    problem: str = ""
    content: bytes = b""


class Evidence:
    """Takes and keeps a run's evidence. Safe to use from several threads.

    :param open_api: makes the API for it: one of its own, so that an answer of 429 holds up no end of a session.
    """

    def __init__(self, settings: Settings, run: Run, open_api: Callable[[], AnchorAPI]) -> None:
        self._run = run
        self._folder = settings.output
        self._output = OutputFolder(settings.output, settings.folder.name)
        self._api = open_api()
        self._recordings: Recordings | None = None
        if settings.recording != "off":
            only_failed = settings.recording == "retain-on-failure"
            self._recordings = Recordings(open_api(), run, self._output, only_failed=only_failed)
        self._lock = threading.Lock()
        self._failures = 0  # in a row
        self._missing = 0
        self._problem = ""  # the last one

    def clean(self) -> None:
        """Remove what earlier runs have left in the folder."""
        try:
            self._output.clean()
        except OSError as error:
            with self._lock:
                self._problem = self._problem or f"what earlier runs left could not be removed: {_reason(error)}"

    def screenshots(
        self, test: str, records: Iterable[Record], timeout: float, pages: Mapping[str, Sequence[bytes]] = NONE
    ) -> dict[str, list[Screenshot]]:
        """Take a screenshot of each session, all at once.

        :param timeout: seconds for all of them.
        :param pages: screenshots that the test's process has taken of a session's pages, by nonce.
        :returns: by nonce, those that could not be taken in time among them.
        """
        records = list(records)
        deadline = time.monotonic() + timeout
        taken: dict[str, list[Screenshot]] = {}
        changed = threading.Condition()

        def take(record: Record) -> None:
            images = [Screenshot(content=one) for one in pages.get(record.nonce, ())]
            kept = [self._keep(test, one) for one in images or [self._take(record, deadline)]]
            with changed:
                if is_over:
                    _remove(kept)
                else:
                    taken[record.nonce] = kept
                changed.notify()

        is_over = False
        pool = DaemonThreadPool(AT_ONCE, "screenshots")
        for record in records:
            pool.submit(partial(take, record))
        with changed:
            changed.wait_for(lambda: len(taken) == len(records), max(deadline - time.monotonic(), 0.0))
            is_over = True
        pool.stop()
        late = [Screenshot(problem=TOO_LATE)]
        found = {record.nonce: taken.get(record.nonce, late) for record in records}
        self._count(one for some in found.values() for one in some)
        for nonce, some in found.items():
            for path in filter(None, (one.path for one in some)):
                with suppress(AnchorRegistryError):
                    self._run.append("evidence", nonce, test=test, kind="screenshot", path=path)
        return found

    def _take(self, record: Record, deadline: float) -> Screenshot:
        if self._failures >= FAILURES_IN_A_ROW:
            return Screenshot(problem=f"given up after {FAILURES_IN_A_ROW} failures in a row")
        try:
            return Screenshot(content=self._api.screenshot(str(record.id), deadline=deadline))
        except AnchorAPIError as error:
            return Screenshot(problem=reason_without_id(error, record))

    def _keep(self, test: str, screenshot: Screenshot) -> Screenshot:
        if screenshot.problem:
            return screenshot
        try:
            path = self._output.write(test, "screenshot.png", screenshot.content)
        except OSError as error:
            return Screenshot(problem=_reason(error))
        return screenshot._replace(path=path)

    def _count(self, screenshots: Iterable[Screenshot]) -> None:
        with self._lock:
            for screenshot in screenshots:
                if screenshot.path:
                    self._failures = 0
                    continue
                if self._failures < FAILURES_IN_A_ROW:
                    self._problem = screenshot.problem
                self._failures += 1
                self._missing += 1

    def test_is_over(self, nonces: Iterable[str]) -> None:
        """Begin to fetch the recordings of a test's sessions."""
        if self._recordings is not None:
            self._recordings.fetch(record for nonce in nonces if (record := self._run.state.records.get(nonce)))

    def finish(self, should_continue: Callable[[], bool]) -> None:
        """Wait for the recordings of the run, whose sessions are over, as long as there is time for them."""
        if self._recordings is not None:
            self._recordings.fetch(self._run.state.records.values())
            self._recordings.wait(should_continue)

    def lines(self) -> Iterator[tuple[str, bool]]:
        """What the summary says of it, and whether that is a trouble."""
        with self._lock:
            if self._missing:
                what = "1 screenshot" if self._missing == 1 else f"{self._missing} screenshots"
                yield f"{what} could not be taken: {printable(self._problem)}", True
            elif self._problem:
                yield printable(self._problem), True
        if self._recordings is not None:
            yield from self._recordings.lines(self._folder)


def as_values(screenshots: dict[str, list[Screenshot]], *, with_content: bool) -> dict[str, Any]:
    """What the test process needs of them, as plain built-ins."""
    return {
        nonce: [
            {
                "path": one.path,
                "problem": one.problem,
                "content": base64.b64encode(one.content).decode() if with_content and one.path else "",
            }
            for one in some
        ]
        for nonce, some in screenshots.items()
    }


def _remove(screenshots: Iterable[Screenshot]) -> None:
    """Remove what came too late."""
    for one in screenshots:
        if one.path:
            with suppress(OSError):
                Path(one.path).unlink()


def _reason(error: OSError) -> str:
    return f"{error.strerror or error}: {error.filename}" if error.filename else error.strerror or str(error)
