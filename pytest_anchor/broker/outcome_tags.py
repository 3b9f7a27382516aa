"""Writes what became of tests into their sessions' tags, for Anchor's dashboard.

``PUT`` replaces all tags, and by these the sweep finds what the record does not know. So it is sent only once a session
is confirmed to be over: no sweep needs its tags any more.
"""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

from ..background import DaemonThreadPool
from ..errors import AnchorAPIError, printable
from ..tags import named_tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ..api import AnchorAPI
    from ..registry.records import Record

AT_ONCE = 4  # calls
CALL_TIMEOUT = 10.0  # seconds
FINISH_TIMEOUT = 2.0  # seconds that the end of a run waits for what is under way
SILENT = 3  # calls without a usable answer, in a row, after which no other is made
WORST = ("failed", "error", "xpassed", "passed", "xfailed", "skipped")  # outcomes, of several the first


class OutcomeTags:
    """Marks sessions that are over. Safe to use from several threads.

    :param api: one of its own, so that an answer of 429 holds up no end of a session.
    """

    def __init__(self, api: AnchorAPI) -> None:
        self._api = api
        self._lock = threading.Lock()
        self._tags: dict[str, list[str]] = {}  # of sessions that are not marked yet, by nonce
        self._pool = DaemonThreadPool(AT_ONCE, "outcome-tags")
        self._first = threading.Lock()  # held by each call until one is accepted: of several, all would be refused
        self._is_accepted = False
        self._failures = 0  # in a row
        self._problem = ""  # why no other is marked

    def created(self, nonce: str, tags: list[str]) -> None:
        """Take in a session's tags, which are sent again with the outcome."""
        with self._lock:
            self._tags[nonce] = tags

    def mark(self, records: Iterable[Record]) -> None:
        """Mark those of the sessions that are over, and that tests have had."""
        for record in list(records):
            if record.state == "ended" and record.tests:
                with self._lock:
                    tags = self._tags.pop(record.nonce, None)
                    if tags is None or self._problem:
                        continue
                outcomes = {tested.outcome for tested in record.tests.values()}
                outcome = next(one for one in WORST if one in outcomes)
                self._pool.submit(partial(self._mark, str(record.id), [*tags, named_tag("outcome", outcome)]))

    def finish(self) -> None:
        """Wait for what is under way, for a moment."""
        if not self._pool.wait(FINISH_TIMEOUT):
            self._problem = self._problem or "the API did not answer in the time there was for it"

    def _mark(self, session_id: str, tags: list[str]) -> None:
        with nullcontext() if self._is_accepted else self._first:
            if not self._problem:
                self._send(session_id, tags)

    def _send(self, session_id: str, tags: list[str]) -> None:
        try:
            self._api.set_tags(session_id, tags, deadline=time.monotonic() + CALL_TIMEOUT)
        except AnchorAPIError as error:
            with self._lock:
                self._failures += 1
                if not error.is_transient or self._failures == SILENT:
                    self._problem = self._problem or error.reason.replace(session_id, "***")
        else:
            with self._lock:
                self._failures, self._is_accepted = 0, True

    def lines(self) -> Iterator[tuple[str, bool]]:
        """What the summary says of it, and whether that is a trouble."""
        if self._problem:
            why = printable(self._problem)
            yield f"outcomes are missing in the dashboard: {why}; --anchor-mark-outcome off does not try", True
