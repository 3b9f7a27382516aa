"""Finds the runs of a registry that died, and ends what they left: for the next run and the command line."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import AnchorError, AnchorRegistryError
from ..registry.folders import check_registry, is_own_folder, remove_sockets
from ..registry.journal import Run
from ..registry.locks import is_live, is_run
from ..registry.signatures import is_created_with, is_signed
from ..settings import check_key
from .policy import SweepObserver, SweepPolicy
from .sweep import SweepTarget, sweep_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..api import AnchorAPI
    from ..registry.records import Record, State
    from ..settings import Settings

GIVE_UP = 7 * 86400.0  # seconds after which no session of Anchor's can be running any more
NEVER_WAS = 3600.0  # seconds after which a creation that the API's list does not show never took effect

RECOVERY = SweepPolicy("recovery", ends_unrecorded=True)


class RecoveryObserver(SweepObserver):
    """Stops the sweep of a dead run as soon as the run has a process again.

    :param progress: called now and then with how many sessions are ended, and of how many.
    """

    def __init__(self, run: Run, progress: Callable[[int, int], None] = lambda _done, _total: None) -> None:
        self._run = run
        self._progress = progress

    def progress(self, done: int, total: int) -> None:
        """Hand it on."""
        self._progress(done, total)

    def should_continue(self) -> bool:
        """Whether the run is dead still."""
        return not self._run.is_live


@dataclass
class Recovery:
    """What became of one dead run.

    :param died: when, in seconds since the epoch.
    :param ended: what was ended, or turned out to be over, just now.
    :param reaped: what its reaper had ended before.
    :param left: what stays on record, to be tried again.
    :param given_up: what was still open after a week, and is on record no more.
    :param stranger: whether it was left alone: another key, another base URL, a copy of another run's record.
    :param problem: why the record or the API's list could not be read, if so.
    """

    run: Run
    died: float
    ended: list[Record] = field(default_factory=list)
    reaped: list[Record] = field(default_factory=list)
    left: list[Record] = field(default_factory=list)
    given_up: list[Record] = field(default_factory=list)
    stranger: bool = False
    problem: AnchorError | None = None

    def __bool__(self) -> bool:
        return bool(self.ended or self.reaped or self.left or self.given_up or self.problem)


def runs(registry: Path) -> list[Run]:
    """The runs on record in *registry*, live or dead.

    :raises AnchorRegistryError: the registry cannot be trusted.
    """
    if not check_registry(registry):
        return []
    return [Run(folder) for folder in sorted(registry.iterdir()) if is_own_folder(folder) and is_run(folder)]


def is_dead(run: Run) -> bool:
    """Whether no process of the run is left."""
    return is_run(run.folder) and not is_live(run.folder)


def is_given_up(left: list[Record]) -> bool:
    """Whether nothing of what is *left* of a run can be running any more."""
    return bool(left) and all(time.time() - record.time > GIVE_UP for record in left)


def recover_all(settings: Settings, policy: SweepPolicy = RECOVERY) -> Iterator[Recovery]:
    """End what the dead runs of the registry left, one run after the other.

    :raises AnchorRegistryError: the registry cannot be trusted.
    """
    api: AnchorAPI | None = None

    def open_api() -> AnchorAPI | None:
        nonlocal api
        if api is None and settings.api_key and not settings.local:
            from ..api import AnchorAPI

            api = AnchorAPI(settings.base_url, check_key(settings.api_key))
        return api

    for run in runs(settings.folder.parent):
        try:
            recovery = recover(run, open_api, policy, timeout=settings.sweep_timeout)
        except AnchorError as error:
            recovery = Recovery(run, run.died, problem=error)
        if recovery:
            yield recovery


def recover(
    run: Run,
    open_api: Callable[[], AnchorAPI | None],
    policy: SweepPolicy = RECOVERY,
    *,
    timeout: float,
    observer: SweepObserver | None = None,
) -> Recovery | None:
    """End what a dead run left, and forget the run once nothing of it is open.

    :param open_api: called if there is something to end; ``None`` ends nothing.
    :param timeout: seconds for all of it.
    :returns: what was done; ``None`` if there was nothing to do: the run lives, or another process is at it.
    :raises AnchorRegistryError: its record cannot be read.
    """
    if not is_dead(run) or not run.claim():
        return None
    try:
        # Asked again: the claim is what keeps it dead.
        return (
            None if is_live(run.folder) else _recover(run, open_api, timeout, policy, observer or RecoveryObserver(run))
        )
    finally:
        run.release()


def _recover(
    run: Run, open_api: Callable[[], AnchorAPI | None], timeout: float, policy: SweepPolicy, observer: SweepObserver
) -> Recovery | None:
    from ..local.launch import backend_of, is_gone

    state = run.read()
    todo = _left(state)
    backend = backend_of(run.folder)
    if backend and all(record.base_url == backend for record in todo):
        if is_gone(run.folder):  # and every browser with it
            _forget(run)
        return None
    before = {record.nonce for record in state.records.values() if not (record.open or record.unresolved)}
    done = Recovery(run, run.died, reaped=[record for record in state.records.values() if record.ended_by == "reaper"])
    if todo and (api := open_api()):
        # In a copy of another folder nothing is in its place: the run of the original may live.
        mine = [record for record in todo if is_created_with(record, api) and run.owns(record)]
        done.stranger = not mine
        if mine:
            # A record that another user has edited may fit, but is not signed: what it does not know is then not ours.
            signed = any(is_signed(api, run, record) for record in state.records.values())
            policy = replace(policy, ends_unrecorded=policy.ends_unrecorded and signed)
            done.problem = sweep_run(SweepTarget(api, run, mine[0].run_id), policy, timeout=timeout, observer=observer)
            if done.problem is None:
                _forget_what_never_was(run)
    done.ended = [record for record in state.records.values() if record.state == "ended" and record.nonce not in before]
    done.left = _left(state)
    if is_given_up(done.left):
        done.left, done.given_up = [], done.left
    unreadable = state.unreadable and time.time() - done.died < GIVE_UP
    if not (done.left or unreadable or is_live(run.folder)):
        _forget(run)
    return done


def _forget(run: Run) -> None:
    remove_sockets(run.folder)  # first: once the record is gone, nothing tells of them
    run.remove()


def _left(state: State) -> list[Record]:
    return [record for record in state.records.values() if record.open or record.unresolved]


def _forget_what_never_was(run: Run) -> None:
    for record in run.state.records.values():
        if record.unresolved and time.time() - record.time > NEVER_WAS:
            with suppress(AnchorRegistryError):
                run.append("refused", record.nonce)
    run.read()
