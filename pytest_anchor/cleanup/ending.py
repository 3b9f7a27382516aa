"""Ends sessions: the one implementation, for teardowns, sweeps and the command line."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..api import CUT_SHORT, Ended
from ..background import DaemonThreadPool
from ..errors import AnchorAPIError, AnchorRegistryError
from ..registry.signatures import is_signed
from ..settings import SWEEP_AT_ONCE
from ..tags import new_tag
from .policy import SweepObserver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..api import AnchorAPI
    from ..registry.journal import Run
    from ..registry.records import Record
    from .policy import SweepPolicy

    Outcome = Ended | AnchorAPIError

END_TIMEOUT = 30.0  # seconds for an end that a test asks for itself, or that goes on in the background
LEAST_SHARE = 0.5  # seconds for ending one session, whatever the time there is for all
LATE_WRITTEN = 100  # failures that are written down after the time is up
PROGRESS_INTERVAL = 0.25  # seconds
SETTLE_TIMEOUT = 1.0  # seconds for writing down what was answered just in time

TOO_LATE = "no answer within the time there was for it"


class NotOursError(AnchorAPIError):
    """A session that this run, with this key, has not created: nothing was sent."""


class EndsSessions:
    """What :func:`end_in_parallel` does for each session."""

    def end(self, session: str, deadline: float) -> Outcome:
        """End it; called in a thread of its own.

        :param deadline: in ``time.monotonic()`` seconds.
        """
        raise NotImplementedError

    def settle(self, session: str, outcome: Outcome) -> None:
        """Take in what became of it; called in the same thread, before the outcome counts."""

    def progress(self, done: int, total: int) -> None:
        """Take in that *done* of *total* are done; called now and then."""


def end_in_parallel(
    sessions: Iterable[str],
    ends: EndsSessions,
    api: AnchorAPI,
    *,
    deadline: float,
    at_once: int = SWEEP_AT_ONCE,
    again: bool = False,
) -> dict[str, Outcome]:
    """End *sessions*, several at once, and return what became of each; what was not done in time is missing.

    The work is done by daemon threads: an API that never answers cannot hold the caller longer
    than *deadline*, nor the process at its exit.

    :param deadline: in ``time.monotonic()`` seconds.
    :param again: whether failures will be tried again before *deadline*.
    """
    waiting = dict.fromkeys(sessions)
    settling: set[str] = set()
    total = len(waiting)
    outcomes: dict[str, Outcome] = {}
    changed = threading.Condition()
    share = per_session_deadlines(api, total, deadline, at_once, again=again)

    def work(session: str) -> None:
        if time.monotonic() >= deadline:
            return
        outcome = ends.end(session, share())
        with changed:
            in_time = session in waiting
            if in_time:
                settling.add(session)
        # A failure that comes too late counts as such already; an end is good news at any time.
        if in_time or isinstance(outcome, Ended):
            ends.settle(session, outcome)
            with changed:
                if session in waiting:
                    del waiting[session]
                    outcomes[session] = outcome
                changed.notify()

    pool = DaemonThreadPool(at_once, "pytest-anchor-end")
    try:
        for session in list(waiting):
            pool.submit(partial(work, session))
        with changed:
            while waiting and (left := deadline - time.monotonic()) > 0:
                changed.wait(min(left, PROGRESS_INTERVAL))
                ends.progress(total - len(waiting), total)
            for session in waiting.keys() - settling:
                del waiting[session]
            changed.wait_for(lambda: not waiting, SETTLE_TIMEOUT)
            waiting.clear()
            ends.progress(len(outcomes), total)
            return dict(outcomes)
    finally:
        pool.stop()


def per_session_deadlines(
    api: AnchorAPI, count: int, deadline: float, at_once: int, *, again: bool = False
) -> Callable[[], float]:
    """Spread the time there is over *count* sessions, so that a session that hangs leaves time for the others.

    :param again: whether failures will be tried again: then none gets more than half of what is left.
    :returns: what gives each its own deadline when it begins, in ``time.monotonic()`` seconds like *deadline*.
    """
    counts = iter(range(count, 0, -1))
    most = 0.5 if again else 1.0

    def share() -> float:
        now = max(time.monotonic(), api.quiet_until)
        mine = (deadline - now) * min(most, at_once / next(counts))
        return min(deadline, now + max(LEAST_SHARE, mine))

    return share


def end_sessions(
    api: AnchorAPI,
    run: Run,
    records: Iterable[Record],
    *,
    policy: SweepPolicy,
    deadline: float,
    observer: SweepObserver = SweepObserver(),  # noqa: B008 - it keeps nothing
    again: bool = False,
) -> dict[str, AnchorAPIError]:
    """End the sessions of *records*, several at once, and write down what became of each.

    :param deadline: in ``time.monotonic()`` seconds.
    :param again: whether failures will be tried again before *deadline*.
    :returns: the failures, by nonce. The records of the others are up to date.
    """
    todo = {record.nonce: record for record in records}
    ends = _RecordedEnds(api, run, todo, policy.ended_by, deadline, observer)
    outcomes = end_in_parallel(todo, ends, api, deadline=deadline, at_once=policy.at_once, again=again)
    failures = {nonce: outcome for nonce, outcome in outcomes.items() if isinstance(outcome, AnchorAPIError)}
    for nonce, record in todo.items():
        if nonce in outcomes:
            continue
        # The API's earlier answer is more useful.
        fields = {**record.error, "tries": record.error["tries"] + 1} if record.error else {"message": TOO_LATE}
        failures[nonce] = late = AnchorAPIError(f"end session {record.id}", **fields)
        fields = {"error": late.fields(), "began": ends.began.get(nonce, time.time())}
        if len(failures) <= LATE_WRITTEN:
            note(run, record, "failed", deadline, **fields)
        else:  # on record they are open, which is enough
            record.apply("failed", fields)
    return failures


def note(run: Run, record: Record, event: str, deadline: float = float("inf"), **fields: Any) -> None:
    """Write down what became of a session; what the disk does not take is still known in memory.

    The journal then says that the session is open, which errs on the safe side.
    """
    record.apply(event, fields)
    with suppress(AnchorRegistryError):
        run.append(event, record.nonce, deadline=deadline, **fields)


def is_cut_short(error: AnchorAPIError, began: float, deadline: float) -> bool:
    """Whether there is no answer only because there was next to no time for one.

    :param began: when it was asked for, in ``time.monotonic()`` seconds like *deadline*.
    """
    return not error.status and time.monotonic() >= deadline and deadline - began < CUT_SHORT


def may_pass(error: AnchorAPIError) -> bool:
    """Whether it is worth asking again: not where the key or the request was refused."""
    return error.is_transient and not isinstance(error, NotOursError)


@dataclass
class _RecordedEnds(EndsSessions):
    """Ends sessions of a run by their nonces, and writes down what becomes of each."""

    api: AnchorAPI
    run: Run
    records: dict[str, Record]
    ended_by: str
    deadline: float
    observer: SweepObserver
    began: dict[str, float] = field(default_factory=dict)  # when each end began, in seconds since the epoch

    def end(self, session: str, deadline: float) -> Outcome:
        self.began[session] = time.time()
        return _end(self.api, self.run, self.records[session], deadline)

    def settle(self, session: str, outcome: Outcome) -> None:
        self._write_down(self.records[session], outcome)
        if isinstance(outcome, Ended):
            self.observer.ended(session)

    def _write_down(self, record: Record, outcome: Outcome) -> None:
        attempt: dict[str, Any] = {"deadline": self.deadline, "began": self.began[record.nonce]}
        if isinstance(outcome, Ended):
            attempt |= {"ended_by": self.ended_by, "already": outcome.already, "note": outcome.note}
            note(self.run, record, "ended", **attempt)
            return
        nothing_new = outcome.tries == 0 and record.error is not None
        outcome.tries += record.error["tries"] if record.error else 0
        # There may be any number of these; what is wrong is on record as it is.
        if nothing_new or isinstance(outcome, NotOursError):
            record.apply("failed", {"error": outcome.fields()})
        else:
            note(self.run, record, "failed", error=outcome.fields(), **attempt)

    def progress(self, done: int, total: int) -> None:
        self.observer.progress(done, total)


def _end(api: AnchorAPI, run: Run, record: Record, deadline: float) -> Outcome:
    began = time.monotonic()
    try:
        if not is_signed(api, run, record):
            return NotOursError(
                f"end session {record.id}",
                message="it is on record as created with another key or base URL, or the record was edited; nothing "
                "was sent",
                remedy="Look at the account's sessions in Anchor's dashboard.",
                tries=0,
            )
        return api.end(str(record.id), new_tag(record.nonce), deadline=deadline)
    except AnchorAPIError as error:
        told = record.error or {}
        if not told.get("status") or not is_cut_short(error, began, deadline):
            return error
        # The API's earlier answer is more useful, unless it is one after which nothing is tried again.
        earlier = AnchorAPIError(error.what, **{**told, "tries": error.tries})
        return earlier if earlier.is_transient else error
    except Exception as error:  # noqa: BLE001 - the thread's caller waits for an outcome
        return AnchorAPIError(f"end session {record.id}", message=f"an unexpected error, please report it: {error!r}")
