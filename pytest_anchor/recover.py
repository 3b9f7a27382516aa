"""Finds the runs of a registry that died, and ends what they left: for the next run and the command line."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import AnchorError, AnchorRegistryError
from .locks import has_owners, is_run
from .registry import Record, Run, check_registry, is_own_folder
from .settings import check_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .api import AnchorAPI
    from .registry import State
    from .settings import Settings

GIVE_UP = 7 * 86400.0  # seconds after which no session of Anchor's can be running any more
NEVER_WAS = 3600.0  # seconds after which a creation that the API's list does not show never took effect


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
    return [Run(one, "recovery") for one in sorted(registry.iterdir()) if is_own_folder(one) and is_run(one)]


def is_dead(run: Run) -> bool:
    """Whether no process of the run is left."""
    return is_run(run.folder) and not has_owners(run.folder)


def is_of(record: Record, api: AnchorAPI) -> bool:
    """Whether the record's session was created with this key, at this base URL."""
    return (record.base_url, record.fingerprint) == (api.base_url, api.fingerprint)


def is_given_up(left: list[Record]) -> bool:
    """Whether nothing of what is *left* of a run can be running any more."""
    return bool(left) and all(time.time() - one.time > GIVE_UP for one in left)


def recover_all(settings: Settings, **sweeping: Any) -> Iterator[Recovery]:
    """End what the dead runs of the registry left, one run after the other.

    :param sweeping: further arguments of :func:`sweep.sweep_run`.
    :raises AnchorRegistryError: the registry cannot be trusted.
    """
    api: AnchorAPI | None = None

    def open_api() -> AnchorAPI | None:
        nonlocal api
        if api is None and settings.api_key and not settings.local:
            from .api import AnchorAPI

            api = AnchorAPI(settings.base_url, check_key(settings.api_key))
        return api

    for run in runs(settings.folder.parent):
        try:
            recovery = recover(run, open_api, timeout=settings.sweep_timeout, **sweeping)
        except AnchorError as error:
            recovery = Recovery(run, run.died, problem=error)
        if recovery:
            yield recovery


def recover(run: Run, open_api: Callable[[], AnchorAPI | None], *, timeout: float, **sweeping: Any) -> Recovery | None:
    """End what a dead run left, and forget the run once nothing of it is open.

    :param open_api: called if there is something to end; ``None`` ends nothing.
    :param timeout: seconds for all of it.
    :param sweeping: further arguments of :func:`sweep.sweep_run`.
    :returns: what was done; ``None`` if there was nothing to do: the run lives, or somebody else is at it.
    :raises AnchorRegistryError: its record cannot be read.
    """
    if not is_dead(run) or not run.claim():
        return None
    try:
        # Asked again: the claim is what keeps it dead.
        return None if has_owners(run.folder) else _recover(run, open_api, timeout, sweeping)
    finally:
        run.release()


def _recover(
    run: Run, open_api: Callable[[], AnchorAPI | None], timeout: float, sweeping: dict[str, Any]
) -> Recovery | None:
    from .local.launch import backend_of, is_gone

    state = run.read()
    todo = _left(state)
    backend = backend_of(run.folder)
    if backend and all(one.base_url == backend for one in todo):
        if is_gone(run.folder):  # and every browser with it
            run.remove()
        return None
    before = {one.nonce for one in state.records.values() if not (one.open or one.unresolved)}
    done = Recovery(run, run.died, reaped=[one for one in state.records.values() if one.how == "reaper"])
    if todo and (api := open_api()):
        # In a copy of another folder nothing is in its place: the run of the original may live.
        mine = [one for one in todo if is_of(one, api) and one.place == run.place]
        done.stranger = not mine
        if mine:
            from .sweep import sweep_run

            done.problem = sweep_run(
                api,
                run,
                mine[0].run_id,
                how="recovery",
                timeout=timeout,
                goes_on=lambda: not has_owners(run.folder),
                **sweeping,
            )
            if done.problem is None:
                _forget_what_never_was(run)
    done.ended = [one for one in state.records.values() if one.state == "ended" and one.nonce not in before]
    done.left = _left(state)
    if is_given_up(done.left):
        done.left, done.given_up = [], done.left
    unreadable = state.unreadable and time.time() - done.died < GIVE_UP
    if not (done.left or unreadable or has_owners(run.folder)):
        run.remove()
    return done


def _left(state: State) -> list[Record]:
    return [one for one in state.records.values() if one.open or one.unresolved]


def _forget_what_never_was(run: Run) -> None:
    for record in run.state.records.values():
        if record.unresolved and time.time() - record.time > NEVER_WAS:
            with suppress(AnchorRegistryError):
                run.append("refused", record.nonce)
    run.read()
