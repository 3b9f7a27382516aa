"""Ends all that a run left open, and finds what its record does not know, in as many rounds as it takes."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING

from ..errors import AnchorAPIError
from ..registry.records import Record
from ..tags import nonce_of, run_tag
from .ending import TOO_LATE, end_sessions, is_cut_short, may_pass, note
from .policy import SweepObserver, SweepPolicy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from ..api import AnchorAPI, Listed
    from ..registry.journal import Run

DEFAULT_POLICY = SweepPolicy()
LIST_TIMEOUT = 10.0  # seconds for the API's list where nothing on record is open
RECENT = 5.0  # seconds for which a list stands in for the next one, should there be no time for that
_POLL_INTERVAL = 0.25  # seconds, in a pause, between questions whether there is to be another round


@dataclass(frozen=True)
class SweepTarget:
    """What a sweep is about.

    :param run_id: the run's name in its sessions' tags.
    :param nonces: the creations that it is about, ``None`` for all of the run's.
    :param kept: those that it leaves alone, as they are kept open.
    """

    api: AnchorAPI
    run: Run
    run_id: str
    nonces: Collection[str] | None = None
    kept: Collection[str] = ()

    def includes(self, nonce: str) -> bool:
        """Whether it is about this creation, which is on record."""
        return nonce not in self.kept and self.is_about(nonce)

    def is_about(self, nonce: str) -> bool:
        """As `includes`, for what the API has made a second time, of which nothing is kept."""
        return self.nonces is None or nonce in self.nonces

    def read(self) -> list[Record]:
        """The records that it is about, as all processes have left them."""
        return [record for record in list(self.run.read().records.values()) if self.includes(record.nonce)]


def sweep_run(
    target: SweepTarget,
    policy: SweepPolicy = DEFAULT_POLICY,
    *,
    timeout: float,
    observer: SweepObserver = SweepObserver(),  # noqa: B008 - it keeps nothing
) -> AnchorAPIError | None:
    """End everything of a run that is still open, and find what it does not know to be open.

    Goes round until nothing is left, nothing left can change, or time is up.

    :param timeout: seconds for all of it.
    :returns: why the API's list could not be read, if so: sessions may be missing from the record.
    """
    return _Sweep(target, policy, time.monotonic() + timeout, observer).run()


class _Sweep:
    """One sweep under way.

    :ivar listing: why the API's list could not be read the last time that there was time for it.
    """

    def __init__(self, target: SweepTarget, policy: SweepPolicy, deadline: float, observer: SweepObserver) -> None:
        self._target = target
        self._policy = policy
        self._deadline = deadline
        self._observer = observer
        self._has_tried = False  # to read the list
        self._listed = float("-inf")  # when it was read the last time, in `time.monotonic()` seconds
        self.listing: AnchorAPIError | None = None

    def run(self) -> AnchorAPIError | None:
        records = self._target.read()
        if not (self._policy.always_lists or any(record.open or record.unresolved for record in records)):
            return None
        for pause in chain(self._policy.pauses, repeat(self._policy.pauses[-1])):
            if not self._observer.should_continue():
                break
            failures = self._end_open()
            self._reconcile(failures)
            records = self._target.read()
            self._observer.after_round()
            if time.monotonic() >= self._deadline:
                break
            left = _open(records)
            if all(record.nonce in failures for record in left):  # none was found just now
                if not self._is_worth_a_round(records, failures, pause):
                    break
                self._observer.progress(0, len(left))
                self._sleep(pause)
        return self.listing

    def _end_open(self) -> dict[str, AnchorAPIError]:
        # Earlier failures go last: what hung may hang again.
        todo = sorted(_open(self._target.read()), key=lambda record: record.error is not None)
        return end_sessions(
            self._target.api,
            self._target.run,
            todo,
            policy=self._policy,
            deadline=self._deadline,
            observer=self._observer,
            again=True,
        )

    def _reconcile(self, failures: dict[str, AnchorAPIError]) -> None:
        """Read the API's list where that may show what is not on record."""
        remaining = self._deadline - time.monotonic()
        is_unresolved = any(record.unresolved for record in self._target.read())
        if not (self._policy.always_lists or self._policy.ends_unrecorded or is_unresolved):
            return
        if not self._observer.should_continue() or (remaining <= 0 and self._has_tried):
            return
        until = self._deadline - (remaining / 2 if failures else 0.0)  # the rest is kept for the failures
        if not (failures or is_unresolved):
            until = min(until, time.monotonic() + LIST_TIMEOUT)
        began = time.monotonic()
        problem = reconcile_with_api(self._target, self._policy, deadline=until)
        self._has_tried = True
        if problem is None:
            self._listed = began
        elif began - self._listed < RECENT and problem.message != TOO_LATE and is_cut_short(problem, began, until):
            return
        self.listing = problem

    def _is_worth_a_round(self, records: list[Record], failures: dict[str, AnchorAPIError], pause: float) -> bool:
        lost = [record for record in records if record.unresolved]
        if lost and self.listing:
            may_change = may_pass(self.listing)
        else:
            may_change = any(_may_turn_up(record, self._policy.grace) for record in lost)
        may_change |= any(map(may_pass, failures.values()))
        return may_change and max(time.monotonic() + pause, self._target.api.quiet_until) < self._deadline

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._observer.should_continue():
            time.sleep(min(left, _POLL_INTERVAL))


def mark_all_ended(run: Run) -> None:
    """Write down that nothing of the run is running: its local backend is gone, and every browser with it."""
    mark_lost_refused(run)
    for record in _open(list(run.read().records.values())):
        note(run, record, "ended", ended_by="sweep", already=True)


def mark_lost_refused(run: Run) -> None:
    """Write down that nothing has come, nor will come, of the creations whose outcome is not known."""
    for record in list(run.read().records.values()):
        if record.unresolved:
            note(run, record, "refused")


def reconcile_with_api(target: SweepTarget, policy: SweepPolicy, *, deadline: float) -> AnchorAPIError | None:
    """Record the sessions of this run that the API lists and the record does not know.

    Those are creations whose answer was lost or that were carried out twice, and the sessions of workers on other
    machines.

    :returns: why there is no list, if so.
    """
    api, run = target.api, target.run
    try:
        listed = api.sessions_with_tag(run_tag(target.run_id), deadline=deadline)
    except AnchorAPIError as error:
        return error
    recorded_ids = {record.id for record in list(run.state.records.values())}
    with suppress(TimeoutError):
        for session in listed:
            if time.monotonic() > deadline:
                break
            if session.id not in recorded_ids:
                with run.exclusive(deadline):  # another sweep may have listed the same
                    _record(target, policy, session, deadline)
        else:
            return None
    return AnchorAPIError("record all that is listed", message=TOO_LATE)


def _record(target: SweepTarget, policy: SweepPolicy, session: Listed, deadline: float) -> None:
    api, run = target.api, target.run
    nonce = _nonce_to_record(target, policy, session)
    if nonce is None:
        return
    record = run.state.records.setdefault(nonce, Record(nonce, folder_inode=run.folder_inode))
    note(run, record, "created", deadline, id=session.id, signature=api.sign(nonce, session.id))
    if not session.alive:
        note(run, record, "ended", deadline, ended_by=policy.ended_by, already=True)


def _nonce_to_record(target: SweepTarget, policy: SweepPolicy, session: Listed) -> str | None:
    """The nonce to record a listed session by, ``None`` where it is left alone."""
    run, records = target.run, target.run.state.records
    nonce = nonce_of(session.tags, run.folder.name)
    if nonce is None:
        return None
    if nonce not in records:
        return nonce if session.alive and policy.ends_unrecorded else None
    # A copy of the record may lie about, whose original is another run's.
    if not target.is_about(nonce) or not run.owns(records[nonce]):
        return None
    if records[nonce].id is None:
        return nonce
    second = f"{nonce}-{session.id}"  # the API made two sessions of one creation
    return None if records[nonce].id == session.id or second in records else second


def _open(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.open]


def _may_turn_up(record: Record, grace: float) -> bool:
    return abs(time.time() - record.time) < grace  # a clock that was set back must not keep it for ever
