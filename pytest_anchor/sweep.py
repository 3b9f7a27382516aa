"""Ends sessions: the one implementation, for teardown, the final sweep and the command line."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

from .api import Ended
from .errors import AnchorAPIError, AnchorRegistryError
from .registry import Record
from .tags import new_tag, nonce_of, run_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .api import AnchorAPI
    from .registry import Run, State

    Progress = Callable[[int, int], None]

AT_ONCE = 16  # sessions that are ended at the same time

LOST_GRACE = 10.0  # seconds after a creation was lost in which it may still turn up in the API's list
_TOO_LATE = "no answer within the time there was for it"
_PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds between the rounds of a sweep; the last repeats


def sweep_run(api: AnchorAPI, run: Run, run_id: str, *, timeout: float, progress: Progress) -> AnchorAPIError | None:
    """End everything of a run that is still open, and find what it does not know to be open.

    Goes round until nothing is left, nothing left can change, or time is up.

    :param timeout: seconds for all of it.
    :param progress: told now and then how many are done, and of how many.
    :returns: why the API's list could not be read, if so: sessions may be missing from the record.
    """
    deadline = time.monotonic() + timeout
    if not any(record.id or record.unresolved for record in run.read().records.values()):
        return None
    for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
        failures = end_sessions(api, run, _open(run.state), how="sweep", deadline=deadline, progress=progress)
        listing = adopt_listed(api, run, run_id, deadline=deadline)
        state = run.read()
        left = _open(state)
        lost = [record for record in state.records.values() if record.unresolved]
        if time.monotonic() >= deadline:
            break
        if all(record.nonce in failures for record in left):  # none was found just now
            worth_it = any(map(_may_pass, failures.values()))
            worth_it |= _may_pass(listing) if lost and listing else any(map(_may_turn_up, lost))
            if not worth_it or time.monotonic() + pause >= deadline:
                break
            progress(0, len(left))
            time.sleep(pause)
    return listing


def end_session(api: AnchorAPI, run: Run, record: Record, *, how: str, deadline: float) -> AnchorAPIError | None:
    """End one session in this very thread, and write down what became of it.

    It is what most teardowns do, and a thread would cost as much as the rest of our own work.

    :returns: why it could not be ended, if so.
    """
    return _write_down(run, record, how, _ask(api, record, deadline))


def sweep_owner(api: AnchorAPI, run: Run, owner: str, *, timeout: float) -> None:
    """End what a dead owner left open; what fails is left to :func:`sweep_run`.

    Does nothing while the owner lives: a worker whose connection broke may still use its sessions.

    :param timeout: seconds for all together.
    """
    deadline = time.monotonic() + timeout
    while run.is_alive(owner):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    left = [record for record in _open(run.read()) if record.owner == owner]
    end_sessions(api, run, left, how="sweep", deadline=deadline)


def adopt_listed(api: AnchorAPI, run: Run, run_id: str, *, deadline: float) -> AnchorAPIError | None:
    """Record the sessions of this run that the API lists and the record does not know.

    Those are creations whose answer was lost, and the sessions of workers on other machines.

    :returns: why there is no list, if so.
    """
    try:
        listed = api.sessions_with_tag(run_tag(run_id), deadline=deadline)
    except AnchorAPIError as error:
        return error
    records = run.state.records
    known = {record.id for record in records.values()}
    for one in listed:
        nonce = nonce_of(one.tags, run.folder.name)
        if one.id in known or nonce is None or not (one.alive or nonce in records):
            continue
        if nonce in records and records[nonce].id is not None:
            nonce = f"{nonce}-{one.id}"  # the API made two sessions of one creation
        record = records.setdefault(nonce, Record(nonce))
        _note(run, record, "created", id=one.id)
        if not one.alive:
            _note(run, record, "ended", how="sweep", already=True)
    return None


def end_sessions(
    api: AnchorAPI,
    run: Run,
    records: Iterable[Record],
    *,
    how: str,
    deadline: float,
    progress: Progress = lambda _done, _total: None,
) -> dict[str, AnchorAPIError]:
    """End the sessions of *records*, several at once, and write down what became of each.

    The work is done by daemon threads: an API that never answers cannot hold the caller longer
    than *deadline*, nor the process at its exit.

    :param how: who ends them: ``test``, ``teardown`` or ``sweep``.
    :param deadline: in ``time.monotonic()`` seconds.
    :returns: the failures, by nonce. The records of the others are up to date.
    """
    todo = deque(records)
    waiting = {record.nonce: record for record in todo}
    total = len(waiting)
    failures: dict[str, AnchorAPIError] = {}
    changed = threading.Condition()

    def work() -> None:
        while True:
            with changed:
                if not todo:
                    return
                record = todo.popleft()
            outcome = _ask(api, record, deadline)
            with changed:
                in_time = waiting.pop(record.nonce, None)
                # A failure that comes too late has been written down as such; an end is good news at any time.
                if in_time or isinstance(outcome, Ended):
                    error = _write_down(run, record, how, outcome)
                    if error is not None:
                        failures[record.nonce] = error
                changed.notify()

    for _ in range(min(AT_ONCE, total)):
        threading.Thread(target=work, name="pytest-anchor-end", daemon=True).start()
    with changed:
        while waiting and (left := deadline - time.monotonic()) > 0:
            changed.wait(min(left, 0.5))
            progress(total - len(waiting), total)
        todo.clear()
        for nonce, record in waiting.items():
            late = AnchorAPIError(f"end session {record.id}", message=_TOO_LATE)
            failures[nonce] = _write_down(run, record, how, late) or late
        waiting.clear()
    progress(total - len(failures), total)
    return failures


def _ask(api: AnchorAPI, record: Record, deadline: float) -> Ended | AnchorAPIError:
    try:
        return api.end(str(record.id), new_tag(record.nonce), deadline=deadline)
    except AnchorAPIError as error:
        return error


def _write_down(run: Run, record: Record, how: str, outcome: Ended | AnchorAPIError) -> AnchorAPIError | None:
    if isinstance(outcome, Ended):
        _note(run, record, "ended", how=how, already=outcome.already, note=outcome.note)
        return None
    outcome.tries += record.error["tries"] if record.error else 0
    _note(run, record, "failed", error=outcome.fields())
    return outcome


def _note(run: Run, record: Record, event: str, **fields: Any) -> None:
    """Write down what became of a session; what the disk does not take is still known in memory.

    The journal then says that the session is open, which errs on the safe side.
    """
    record.apply(event, fields)
    with suppress(AnchorRegistryError):
        run.append(event, record.nonce, **fields)


def _open(state: State) -> list[Record]:
    return [record for record in state.records.values() if record.open]


def _may_turn_up(record: Record) -> bool:
    return time.time() - record.time < LOST_GRACE


def _may_pass(error: AnchorAPIError) -> bool:
    """Whether it is worth asking again: not where the key or the request was refused."""
    return error.status is None or error.status == 429 or error.status >= 500
