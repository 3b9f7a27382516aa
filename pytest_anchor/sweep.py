"""Ends sessions: the one implementation, for teardown, the final sweep and the command line."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial
from hmac import compare_digest
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from .api import Ended
from .background import Pool
from .errors import AnchorAPIError, AnchorRegistryError
from .registry import Record
from .tags import new_tag, nonce_of, run_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .api import AnchorAPI
    from .registry import Run, State

    Progress = Callable[[int, int], None]

AT_ONCE = 16  # sessions that are ended at the same time
LEAST_SHARE = 0.5  # seconds for ending one session, whatever the time there is for all
LATE_WRITTEN = 100  # failures that are written down after the time is up

LOST_GRACE = 10.0  # seconds after a creation was lost in which it may still turn up in the API's list
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds between the rounds of a sweep; the last repeats

# For the sessions of processes that are dead, where nobody waits for the sweep.
LONG_PAUSES = (*PAUSES, 8.0, 15.0, 30.0, 60.0)  # seconds
KILLED_GRACE = 150.0  # seconds in which a killed process's creation may come to be: the call's own timeout, and more

_LONGEST = 86_400.0  # seconds that a run takes at most
_LOOK = 0.25  # seconds between looks, in a pause, at whether there is to be another round
_TOO_LATE = "no answer within the time there was for it"


def _nothing(*_told: object) -> None:
    pass


def sweep_run(
    api: AnchorAPI,
    run: Run,
    run_id: str,
    *,
    how: str = "sweep",
    timeout: float,
    progress: Progress = _nothing,
    pauses: Sequence[float] = PAUSES,
    grace: float = LOST_GRACE,
    elsewhere: bool = False,
    owner: str | None = None,
    goes_on: Callable[[], bool] = lambda: True,
    after_round: Callable[[], None] = _nothing,
    ended: Callable[[str], object] = _nothing,
    at_once: int = AT_ONCE,
) -> AnchorAPIError | None:
    """End everything of a run that is still open, and find what it does not know to be open.

    Goes round until nothing is left, nothing left can change, or time is up.

    :param how: who ends them: ``sweep``, ``reaper``, ``recovery``.
    :param timeout: seconds for all of it.
    :param progress: told now and then how many are done, and of how many.
    :param pauses: seconds between the rounds; the last repeats.
    :param grace: seconds after its creation was lost in which a session may still turn up in the list.
    :param elsewhere: whether workers may have created sessions that this record does not know.
    :param owner: whose sessions they are; ``None`` for all of the run.
    :param goes_on: asked before each round, when all is read that this round is about, whether there is to be one.
    :param after_round: called after each round.
    :param ended: told the nonce of each that is over.
    :param at_once: how many are ended at the same time.
    :returns: why the API's list could not be read, if so: sessions may be missing from the record.
    """
    deadline = time.monotonic() + timeout

    def owned(state: State) -> list[Record]:
        return [record for record in state.records.values() if owner in (None, record.owner)]

    if not (elsewhere or any(record.id or record.unresolved for record in owned(run.read()))):
        return None
    listing, looked = None, False
    for pause in chain(pauses, repeat(pauses[-1])):
        if not goes_on():
            break
        # Those that failed before go last: what hung may hang again.
        todo = sorted(_open(owned(run.state)), key=lambda record: record.error is not None)
        failures = end_sessions(
            api, run, todo, how=how, deadline=deadline, progress=progress, ended=ended, at_once=at_once, again=True
        )
        left_over = deadline - time.monotonic()
        wanted = owner is None or any(record.unresolved for record in owned(run.state))
        if wanted and goes_on() and (left_over > 0 or not looked):
            half = left_over / 2 if failures else 0.0  # kept for those
            listing = adopt_listed(api, run, run_id, how=how, owner=owner, deadline=deadline - half)
            looked = True
        mine = owned(run.read())
        after_round()
        left = _open(mine)
        lost = [record for record in mine if record.unresolved]
        if time.monotonic() >= deadline:
            break
        if all(record.nonce in failures for record in left):  # none was found just now
            worth_it = any(map(_may_pass, failures.values()))
            worth_it |= _may_pass(listing) if lost and listing else any(_may_turn_up(one, grace) for one in lost)
            if not worth_it or max(time.monotonic() + pause, api.quiet_until) >= deadline:
                break
            progress(0, len(left))
            _sleep(pause, goes_on)
    return listing


def end_session(api: AnchorAPI, run: Run, record: Record, *, how: str, deadline: float) -> AnchorAPIError | None:
    """End one session in this very thread, and write down what became of it.

    It is what most teardowns do, and a thread would cost as much as the rest of our own work.

    :returns: why it could not be ended, if so.
    """
    return _write_down(run, record, how, _ask(api, run, record, deadline), deadline)


def sweep_owner(
    api: AnchorAPI, run: Run, run_id: str, owner: str, *, goes_on: Callable[[], bool], at_once: int = AT_ONCE
) -> None:
    """End what an owner that is gone left open, and find what it was just creating, until the run comes to its end.

    Does nothing while the owner lives: a worker whose connection broke may still use its sessions.

    :param goes_on: whether the run does.
    :param at_once: how many are ended at the same time.
    """
    while run.is_alive(owner):
        if not goes_on():
            return
        time.sleep(0.05)
    mine = [record for record in run.read().records.values() if record.owner == owner]
    if any(record.open or record.unresolved for record in mine):
        sweep_run(
            api,
            run,
            run_id,
            timeout=_LONGEST,
            pauses=LONG_PAUSES,
            grace=KILLED_GRACE,
            owner=owner,
            goes_on=goes_on,
            at_once=at_once,
        )


def write_off(run: Run) -> None:
    """Write down that nothing of the run is running: its local backend is gone, and every browser with it."""
    write_off_lost(run)
    for record in _open(run.read().records.values()):
        _note(run, record, "ended", how="sweep", already=True)


def write_off_lost(run: Run) -> None:
    """Write down that nothing has come, nor will come, of the creations that nobody knows the end of."""
    for record in run.read().records.values():
        if record.unresolved:
            _note(run, record, "refused")


def adopt_listed(
    api: AnchorAPI, run: Run, run_id: str, *, how: str, deadline: float, owner: str | None = None
) -> AnchorAPIError | None:
    """Record the sessions of this run that the API lists and the record does not know.

    Those are creations whose answer was lost, and the sessions of workers on other machines.

    :param owner: whose intents they must be, if anybody's: another's may be under way.
    :returns: why there is no list, if so.
    """
    try:
        listed = api.sessions_with_tag(run_tag(run_id), deadline=deadline)
    except AnchorAPIError as error:
        return error
    records = run.state.records
    known = {record.id for record in records.values()}
    for one in listed:
        if time.monotonic() > deadline:
            return AnchorAPIError("record all that is listed", message=_TOO_LATE)
        nonce = nonce_of(one.tags, run.folder.name)
        if one.id in known or nonce is None or not (one.alive or nonce in records):
            continue
        if owner is not None and (nonce not in records or records[nonce].owner != owner):
            continue
        # After its death a run finds what it intended itself, in its own place: a copy of its record may lie about.
        if records[nonce].place != run.place if nonce in records else how != "sweep":
            continue
        if nonce in records and records[nonce].id is not None:
            nonce = f"{nonce}-{one.id}"  # the API made two sessions of one creation
        record = records.setdefault(nonce, Record(nonce, owner or "?", place=run.place))
        _note(run, record, "created", deadline, id=one.id, seal=api.seal(nonce, one.id))
        if not one.alive:
            _note(run, record, "ended", deadline, how=how, already=True)
    return None


def end_sessions(
    api: AnchorAPI,
    run: Run,
    records: Iterable[Record],
    *,
    how: str,
    deadline: float,
    progress: Progress = _nothing,
    ended: Callable[[str], object] = _nothing,
    at_once: int = AT_ONCE,
    again: bool = False,
) -> dict[str, AnchorAPIError]:
    """End the sessions of *records*, several at once, and write down what became of each.

    The work is done by daemon threads: an API that never answers cannot hold the caller longer
    than *deadline*, nor the process at its exit.

    :param how: who ends them: ``test``, ``teardown``, ``sweep``, ``reaper`` or ``recovery``.
    :param deadline: in ``time.monotonic()`` seconds.
    :param ended: told the nonce of each that is over, in whichever thread.
    :param at_once: how many are ended at the same time.
    :param again: whether those that fail will be tried again before *deadline*.
    :returns: the failures, by nonce. The records of the others are up to date.
    """
    waiting = {record.nonce: record for record in records}
    total = len(waiting)
    failures: dict[str, AnchorAPIError] = {}
    changed = threading.Condition()
    share = shares(api, total, deadline, at_once, again=again)

    def work(record: Record) -> None:
        if time.monotonic() >= deadline:
            return
        outcome = _ask(api, run, record, share())
        with changed:
            in_time = record.nonce in waiting
        # A failure that comes too late has been written down as such; an end is good news at any time.
        if in_time or isinstance(outcome, Ended):
            error = _write_down(run, record, how, outcome, deadline)
            with changed:
                if waiting.pop(record.nonce, None) and error is not None:
                    failures[record.nonce] = error
                changed.notify()
            if error is None:
                ended(record.nonce)

    pool = Pool(at_once, "pytest-anchor-end")
    try:
        for record in list(waiting.values()):
            pool.submit(partial(work, record))
        with changed:
            while waiting and (left := deadline - time.monotonic()) > 0:
                changed.wait(min(left, 0.5))
                progress(total - len(waiting), total)
    finally:
        pool.stop()
    with changed:
        for nonce, record in waiting.items():
            late = AnchorAPIError(f"end session {record.id}", message=_TOO_LATE)
            late.tries += record.error["tries"] if record.error else 0
            failures[nonce] = late
            if len(failures) <= LATE_WRITTEN:
                _note(run, record, "failed", deadline, error=late.fields())
            else:  # on record they are open, which says as much
                record.apply("failed", {"error": late.fields()})
        waiting.clear()
    progress(total - len(failures), total)
    return failures


def shares(api: AnchorAPI, count: int, deadline: float, at_once: int, *, again: bool = False) -> Callable[[], float]:
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
        _check_seal(api, run, record)
        return api.end(str(record.id), new_tag(record.nonce), deadline=deadline)
    except AnchorAPIError as error:
        return error


class _NotOursError(AnchorAPIError):
    pass


def is_sealed(api: AnchorAPI, run: Run, record: Record) -> bool:
    """Whether this run, with this key and base URL, has created the session: records lie on a disk."""
    of_this_run = record.nonce.startswith(f"{run.folder.name}-") and record.place == run.place
    return of_this_run and compare_digest(record.seal, api.seal(record.nonce, str(record.id)))


def _check_seal(api: AnchorAPI, run: Run, record: Record) -> None:
    if is_sealed(api, run, record):
        return
    raise _NotOursError(
        f"end session {record.id}",
        message="it is on record as created with another key or base URL, or the record was edited; nothing was sent",
        remedy="Look at the account's sessions in Anchor's dashboard.",
        tries=0,
    )


def _write_down(
    run: Run, record: Record, how: str, outcome: Ended | AnchorAPIError, deadline: float
) -> AnchorAPIError | None:
    if isinstance(outcome, Ended):
        _note(run, record, "ended", deadline, how=how, already=outcome.already, note=outcome.note)
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


def _sleep(seconds: float, goes_on: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and goes_on():
        time.sleep(min(left, _LOOK))


def _may_turn_up(record: Record, grace: float) -> bool:
    return abs(time.time() - record.time) < grace  # a clock that was set back must not keep it for ever


def _may_pass(error: AnchorAPIError) -> bool:
    """Whether it is worth asking again: not where the key or the request was refused."""
    if isinstance(error, _NotOursError):
        return False
    return error.status is None or error.status == 429 or error.status >= 500
