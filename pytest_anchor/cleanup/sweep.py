"""Ends sessions: the one implementation, for teardown, the final sweep and the command line."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from ..api import Ended
from ..background import DaemonThreadPool
from ..errors import AnchorAPIError, AnchorRegistryError
from ..registry.records import Record
from ..registry.signatures import is_signed
from ..tags import new_tag, nonce_of, run_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..api import AnchorAPI
    from ..registry.journal import Run

END_TIMEOUT = 30.0  # seconds for an end that a test asks for itself, or that goes on in the background
AT_ONCE = 16  # sessions that are ended at the same time
LEAST_SHARE = 0.5  # seconds for ending one session, whatever the time there is for all
LATE_WRITTEN = 100  # failures that are written down after the time is up

LOOK_TIMEOUT = 10.0  # seconds for the API's list where nothing on record is open
LOST_GRACE = 10.0  # seconds after a creation was lost in which it may still turn up in the API's list
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds between the rounds of a sweep; the last repeats

# For the sessions of processes that are dead, where nobody waits for the sweep.
LONG_PAUSES = (*PAUSES, 8.0, 15.0, 30.0, 60.0)  # seconds
KILLED_GRACE = 150.0  # seconds in which a killed process's creation may come to be: the call's own timeout, and more

_LOOK = 0.25  # seconds between looks, in a pause, at whether there is to be another round
_TOO_LATE = "no answer within the time there was for it"


class SweepObserver:
    """Follows a sweep; what it does not care for does nothing."""

    def progress(self, done: int, total: int) -> None:
        """Take in that *done* of *total* are done; called now and then."""

    def ended(self, nonce: str) -> None:
        """Take in that a session is over; called in whichever thread."""

    def after_round(self) -> None:
        """Take in that a round is over."""

    def should_continue(self) -> bool:
        """Whether there is to be another round; asked when all is read that it is about."""
        return True


@dataclass(frozen=True)
class SweepPolicy:
    """How patient a sweep is.

    :param ended_by: what ends the sessions: ``sweep``, ``reaper``, ``recovery``.
    :param pauses: seconds between the rounds; the last repeats.
    :param grace: seconds after its creation was lost in which a session may still turn up in the API's list.
    :param at_once: how many are ended at the same time.
    :param looks: whether the API's list is read even if nothing on record is open: a creation may be there twice.
    :param adopts: whether a session of this very invocation is ended even if no record knows its creation.
    """

    ended_by: str = "sweep"
    pauses: tuple[float, ...] = PAUSES
    grace: float = LOST_GRACE
    at_once: int = AT_ONCE
    looks: bool = False
    adopts: bool = False


def sweep_run(
    api: AnchorAPI,
    run: Run,
    run_id: str,
    policy: SweepPolicy = SweepPolicy(),
    *,
    timeout: float,
    observer: SweepObserver = SweepObserver(),  # noqa: B008 - it keeps nothing
    selects: Callable[[Record], bool] = lambda _record: True,
) -> AnchorAPIError | None:
    """End everything of a run that is still open, and find what it does not know to be open.

    Goes round until nothing is left, nothing left can change, or time is up.

    :param timeout: seconds for all of it.
    :param selects: which records it is about.
    :returns: why the API's list could not be read, if so: sessions may be missing from the record.
    """
    deadline = time.monotonic() + timeout

    def selected() -> list[Record]:
        return list(filter(selects, list(run.read().records.values())))

    if not (policy.looks or any(record.open or record.unresolved for record in selected())):
        return None
    listing, looked = None, False
    for pause in chain(policy.pauses, repeat(policy.pauses[-1])):
        if not observer.should_continue():
            break
        # Those that failed before go last: what hung may hang again.
        todo = sorted(_open(selected()), key=lambda record: record.error is not None)
        failures = end_sessions(api, run, todo, policy=policy, deadline=deadline, observer=observer, again=True)
        left_over = deadline - time.monotonic()
        wanted = policy.looks or policy.adopts or any(record.unresolved for record in selected())
        if wanted and observer.should_continue() and (left_over > 0 or not looked):
            until = deadline - (left_over / 2 if failures else 0.0)  # the rest is kept for those
            if not (failures or any(record.unresolved for record in selected())):
                until = min(until, time.monotonic() + LOOK_TIMEOUT)
            listing = reconcile_with_api(api, run, run_id, policy, selects, deadline=until)
            looked = True
        mine = selected()
        observer.after_round()
        left = _open(mine)
        lost = [record for record in mine if record.unresolved]
        if time.monotonic() >= deadline:
            break
        if all(record.nonce in failures for record in left):  # none was found just now
            worth_it = any(map(_may_pass, failures.values()))
            worth_it |= _may_pass(listing) if lost and listing else any(_may_turn_up(one, policy.grace) for one in lost)
            if not worth_it or max(time.monotonic() + pause, api.quiet_until) >= deadline:
                break
            observer.progress(0, len(left))
            _sleep(pause, observer)
    return listing


def end_session(api: AnchorAPI, run: Run, record: Record, *, ended_by: str, deadline: float) -> AnchorAPIError | None:
    """End one session in this very thread, and write down what became of it.

    It is what most teardowns do, and a thread would cost as much as the rest of our own work.

    :returns: why it could not be ended, if so.
    """
    return _write_down(run, record, ended_by, _ask(api, run, record, deadline), deadline)


def mark_all_ended(run: Run) -> None:
    """Write down that nothing of the run is running: its local backend is gone, and every browser with it."""
    mark_lost_refused(run)
    for record in _open(list(run.read().records.values())):
        _note(run, record, "ended", ended_by="sweep", already=True)


def mark_lost_refused(run: Run) -> None:
    """Write down that nothing has come, nor will come, of the creations that nobody knows the end of."""
    for record in list(run.read().records.values()):
        if record.unresolved:
            _note(run, record, "refused")


def reconcile_with_api(
    api: AnchorAPI, run: Run, run_id: str, policy: SweepPolicy, selects: Callable[[Record], bool], *, deadline: float
) -> AnchorAPIError | None:
    """Record the sessions of this run that the API lists and the record does not know.

    Those are creations whose answer was lost or that were carried out twice, and the sessions of workers on other
    machines.

    :param selects: whose intents they must be: another's may be under way.
    :returns: why there is no list, if so.
    """
    try:
        listed = api.sessions_with_tag(run_tag(run_id), deadline=deadline)
    except AnchorAPIError as error:
        return error
    records = run.state.records
    known = {record.id for record in list(records.values())}
    for one in listed:
        if time.monotonic() > deadline:
            return AnchorAPIError("record all that is listed", message=_TOO_LATE)
        nonce = nonce_of(one.tags, run.folder.name)
        if one.id in known or nonce is None or not (one.alive or nonce in records):
            continue
        if not (selects(records[nonce]) if nonce in records else policy.adopts):
            continue
        # A copy of the record may lie about, whose original is another run's.
        if nonce in records and records[nonce].folder_inode != run.folder_inode:
            continue
        if nonce in records and records[nonce].id is not None:
            nonce = f"{nonce}-{one.id}"  # the API made two sessions of one creation
        record = records.setdefault(nonce, Record(nonce, folder_inode=run.folder_inode))
        _note(run, record, "created", deadline, id=one.id, signature=api.sign(nonce, one.id))
        if not one.alive:
            _note(run, record, "ended", deadline, ended_by=policy.ended_by, already=True)
    return None


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

    The work is done by daemon threads: an API that never answers cannot hold the caller longer
    than *deadline*, nor the process at its exit.

    :param deadline: in ``time.monotonic()`` seconds.
    :param again: whether those that fail will be tried again before *deadline*.
    :returns: the failures, by nonce. The records of the others are up to date.
    """
    waiting = {record.nonce: record for record in records}
    total = len(waiting)
    failures: dict[str, AnchorAPIError] = {}
    changed = threading.Condition()
    share = per_session_deadlines(api, total, deadline, policy.at_once, again=again)

    def work(record: Record) -> None:
        if time.monotonic() >= deadline:
            return
        outcome = _ask(api, run, record, share())
        with changed:
            in_time = record.nonce in waiting
        # A failure that comes too late has been written down as such; an end is good news at any time.
        if in_time or isinstance(outcome, Ended):
            error = _write_down(run, record, policy.ended_by, outcome, deadline)
            with changed:
                if waiting.pop(record.nonce, None) and error is not None:
                    failures[record.nonce] = error
                changed.notify()
            if error is None:
                observer.ended(record.nonce)

    pool = DaemonThreadPool(policy.at_once, "pytest-anchor-end")
    try:
        for record in list(waiting.values()):
            pool.submit(partial(work, record))
        with changed:
            while waiting and (left := deadline - time.monotonic()) > 0:
                changed.wait(min(left, 0.5))
                observer.progress(total - len(waiting), total)
    finally:
        pool.stop()
    with changed:
        for nonce, record in waiting.items():
            # What the API answered before says more.
            fields = {**record.error, "tries": record.error["tries"] + 1} if record.error else {"message": _TOO_LATE}
            failures[nonce] = late = AnchorAPIError(f"end session {record.id}", **fields)
            if len(failures) <= LATE_WRITTEN:
                _note(run, record, "failed", deadline, error=late.fields())
            else:  # on record they are open, which says as much
                record.apply("failed", {"error": late.fields()})
        waiting.clear()
    observer.progress(total - len(failures), total)
    return failures


def per_session_deadlines(
    api: AnchorAPI, count: int, deadline: float, at_once: int, *, again: bool = False
) -> Callable[[], float]:
    """Spread the time there is over *count* sessions, so that those that hang leave time for the others.

    :param again: whether those that fail will be tried again: then none gets more than half of what is left.
    :returns: what gives each its own deadline when it begins, in ``time.monotonic()`` seconds like *deadline*.
    """
    counts = iter(range(count, 0, -1))
    most = 0.5 if again else 1.0

    def share() -> float:
        now = max(time.monotonic(), api.quiet_until)
        mine = (deadline - now) * min(most, at_once / next(counts))
        return min(deadline, now + max(LEAST_SHARE, mine))

    return share


def _ask(api: AnchorAPI, run: Run, record: Record, deadline: float) -> Ended | AnchorAPIError:
    try:
        _check_signature(api, run, record)
        return api.end(str(record.id), new_tag(record.nonce), deadline=deadline)
    except AnchorAPIError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the thread's caller waits for an outcome
        return AnchorAPIError(f"end session {record.id}", message=f"an unexpected error, please report it: {error!r}")


class _NotOursError(AnchorAPIError):
    pass


def _check_signature(api: AnchorAPI, run: Run, record: Record) -> None:
    if is_signed(api, run, record):
        return
    raise _NotOursError(
        f"end session {record.id}",
        message="it is on record as created with another key or base URL, or the record was edited; nothing was sent",
        remedy="Look at the account's sessions in Anchor's dashboard.",
        tries=0,
    )


def _write_down(
    run: Run, record: Record, ended_by: str, outcome: Ended | AnchorAPIError, deadline: float
) -> AnchorAPIError | None:
    if isinstance(outcome, Ended):
        _note(run, record, "ended", deadline, ended_by=ended_by, already=outcome.already, note=outcome.note)
        return None
    nothing_new = outcome.tries == 0 and record.error is not None
    outcome.tries += record.error["tries"] if record.error else 0
    # There may be any number of these; what is wrong is on record as it is.
    if nothing_new or isinstance(outcome, _NotOursError):
        record.apply("failed", {"error": outcome.fields()})
        return outcome
    _note(run, record, "failed", deadline, error=outcome.fields())
    return outcome


def _note(run: Run, record: Record, event: str, deadline: float = float("inf"), **fields: Any) -> None:
    """Write down what became of a session; what the disk does not take is still known in memory.

    The journal then says that the session is open, which errs on the safe side.
    """
    record.apply(event, fields)
    with suppress(AnchorRegistryError):
        run.append(event, record.nonce, deadline=deadline, **fields)


def _open(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.open]


def _sleep(seconds: float, observer: SweepObserver) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and observer.should_continue():
        time.sleep(min(left, _LOOK))


def _may_turn_up(record: Record, grace: float) -> bool:
    return abs(time.time() - record.time) < grace  # a clock that was set back must not keep it for ever


def _may_pass(error: AnchorAPIError) -> bool:
    """Whether it is worth asking again: not where the key or the request was refused."""
    if isinstance(error, _NotOursError):
        return False
    return error.is_transient
