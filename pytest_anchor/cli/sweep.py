"""``sweep``: ends what dead runs left, by this machine's record or by the tags in the API's list."""

from __future__ import annotations

import shlex
import sys
import time
from itertools import chain, repeat
from typing import TYPE_CHECKING

from ..cleanup.policy import PAUSES
from ..cleanup.recovery import RECOVERY, RecoveryObserver, is_dead, is_given_up, recover, runs
from ..errors import AnchorAPIError, AnchorConfigError, AnchorRegistryError, printable
from ..registry.locks import SWEEP_LOCK, is_held
from ..registry.records import State
from ..registry.signatures import is_created_with, is_signed
from ..reporting.progress import Console, Progress
from ..reporting.summary import Report, title
from ..settings import check_seconds, key_from_environment
from ..tags import TAG, run_tag
from .common import (
    api_for,
    check_tag,
    describe_registry,
    find_registry,
    parse_duration,
    print_error,
    print_line,
    read_run_id,
)
from .end import end_all, print_ended
from .recorded import Found, on_record

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..api import AnchorAPI, Ended
    from ..cleanup.recovery import Recovery
    from ..registry.journal import Run
    from ..registry.records import Record
    from .end import Outcomes

_POLL_INTERVAL = 0.25  # seconds
_LAST_LIST = 5.0  # seconds of the time there is that are kept for the API's last list


def sweep(arguments: argparse.Namespace) -> int:
    """End what dead runs left: the sessions on record here, or all sessions with a tag."""
    deadline = time.monotonic() + check_seconds("--timeout", arguments.timeout)
    older_than = parse_duration(arguments.older_than)
    if arguments.run_id is None and arguments.tag is None:
        if older_than is not None:
            raise AnchorConfigError("--older-than goes with --tag TAG or --run-id ID: give one of them")
        return _sweep_registry(arguments, deadline)
    if arguments.registry is not None:
        raise AnchorConfigError(
            "--registry goes neither with --run-id nor with --tag, which go by the API's list alone: leave it out"
        )
    if arguments.tag is None:
        tags: tuple[str, ...] = (run_tag(read_run_id(arguments.run_id)),)
    elif older_than is None:
        raise AnchorConfigError("--tag needs --older-than AGE, so that runs under way keep their sessions: give it")
    else:
        tags = (TAG, check_tag(arguments.tag))
    return _sweep_tags(api_for(arguments), tags, older_than, deadline, dry_run=arguments.dry_run)


def _sweep_registry(arguments: argparse.Namespace, deadline: float) -> int:
    registry = find_registry(arguments.registry)
    if arguments.dry_run:
        return _print_what_would_be_ended(registry, arguments)
    api: AnchorAPI | None = None

    def open_api() -> AnchorAPI:
        nonlocal api
        api = api or api_for(arguments)
        return api

    unlisted = given_up = False
    for recovery in _recoveries(registry, open_api, deadline):
        _print_recovery(recovery)
        unlisted |= recovery.problem is not None
        given_up |= bool(recovery.given_up)
    dead = _dead(registry)
    for found in dead:
        if found.problem:
            print_error(found.problem)
    if left := sum(len(found.left) for found in dead):
        where = "" if arguments.registry is None else f" --registry {shlex.quote(printable(str(arguments.registry)))}"
        print_error(f"left of dead runs: {left}; to list them: python -m pytest_anchor ls{where}")
    if not (dead or unlisted or given_up):
        print_line(f"Nothing of a dead run is left {describe_registry(registry)}.")
    return 2 if unlisted else 1 if dead or given_up else 0


def _dead(registry: Path | None) -> list[Found]:
    return [found for found in on_record(registry) if not found.lives]


def _recoveries(registry: Path | None, open_api: Callable[[], AnchorAPI], deadline: float) -> Iterator[Recovery]:
    progress = Progress(Console(sys.stderr))

    def is_being_swept(run: Run) -> bool:
        return is_held(run.folder / SWEEP_LOCK)

    for run in sorted(runs(registry), key=is_being_swept) if registry else ():
        # Its reaper, or another sweep, is at work: what that leaves is known when it is done.
        while is_being_swept(run) and is_dead(run) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL)
        if (left := deadline - time.monotonic()) <= 0:
            return
        try:
            recovery = recover(run, open_api, RECOVERY, timeout=left, observer=RecoveryObserver(run, progress))
        except AnchorRegistryError:
            continue  # it is among what is left, which says why
        finally:
            progress.clear()
        if recovery:
            yield recovery


def _print_recovery(recovery: Recovery) -> None:
    report = Report(State(), recovery.run.folder)
    report.recovered.append(recovery)
    for line in report.lines():
        (print_line if line.markup.get("green") else print_error)(line.text)


def _print_what_would_be_ended(registry: Path | None, arguments: argparse.Namespace) -> int:
    api = api_for(arguments) if key_from_environment() else None
    dead = _dead(registry)
    for found in dead:
        if found.problem:
            print_error(found.problem)
        why_not = {record.nonce: _why_not(api, found.run, record) for record in found.left}
        given_up = is_given_up([record for record in found.left if why_not[record.nonce]])
        for record in found.left:
            what = "would end" if record.open else "would look for, and end,"
            if why_not[record.nonce]:
                what = f"would {'give up on' if given_up else 'leave alone'}, since {why_not[record.nonce]}:"
            print_line(f"{what} {title(record)}")
    if dead and api is None:
        print_error("no API key is set, so which of these were created with it cannot be told")
    if not dead:
        print_line(f"Nothing of a dead run is left {describe_registry(registry)}.")
    return 1 if dead else 0


def _why_not(api: AnchorAPI | None, run: Run, record: Record) -> str:
    """Why a sweep would not touch what is on record, ``""`` if it would."""
    if api and not is_created_with(record, api):
        return "it was created with another key or base URL"
    if not run.owns(record):
        return "it is on record elsewhere"
    if api and record.open and not is_signed(api, run, record):
        return "its record was edited"
    return ""


def _sweep_tags(
    api: AnchorAPI, tags: tuple[str, ...], older_than: float | None, deadline: float, *, dry_run: bool
) -> int:
    ageless: set[str] = set()

    def list_alive() -> list[str]:
        ids = []
        for session in api.sessions_with_tag(*tags, deadline=deadline):
            if not session.alive:
                continue
            if older_than is not None and session.age is None:
                ageless.add(session.id)
            elif older_than is None or max(session.age or 0.0, 0.0) >= older_than:  # its clock may be a second behind
                ids.append(session.id)
        return ids

    left = list_alive()
    if dry_run:
        for session_id in left:
            print_line(f"would end {session_id}")
        ended = 0
    else:
        ended, left = _end_until_none_is_listed(api, tags[-1], left, list_alive, deadline)
    if ageless:
        print_error(
            f"left alone, since the API does not tell when they were created: {', '.join(sorted(ageless))}. "
            "Those that are not needed can be ended by their ids: python -m pytest_anchor end ID…"
        )
    if not left:
        carrying = " and ".join(map(repr, tags))
        age = "" if older_than is None else f" and is older than {older_than:.0f} s"
        print_line(
            f"{ended} ended, nothing is left." if ended else f"No session that is alive carries {carrying}{age}."
        )
    return 1 if left else 0


def _end_until_none_is_listed(
    api: AnchorAPI, tag: str, left: list[str], list_alive: Callable[[], list[str]], deadline: float
) -> tuple[int, list[str]]:
    """End what *list_alive* returns until that is nothing, its ends were refused, or time is up.

    :returns: how many were ended, and what is still listed.
    """
    until = deadline - min(_LAST_LIST, (deadline - time.monotonic()) / 4)
    progress = Progress(Console(sys.stderr))
    ended: set[str] = set()
    outcomes: Outcomes = {}
    for pause in chain(PAUSES, repeat(PAUSES[-1])):
        if not left:
            break
        outcomes |= end_all(api, dict.fromkeys(left, tag), until, progress, again=True)
        for session_id, outcome in outcomes.items():
            if not isinstance(outcome, AnchorAPIError) and session_id not in ended:
                ended.add(session_id)
                print_ended(session_id, outcome)
        if api.quiet_until >= deadline:
            left = [session_id for session_id in left if session_id not in ended]
            break
        left = list_alive()
        if all(_is_refusal(outcomes.get(session_id)) for session_id in left) or time.monotonic() + pause >= until:
            break
        time.sleep(pause)
    for session_id in left:
        failure = outcomes.get(session_id)
        alive = "the API lists it as alive. Run the same command again."
        print_error(f"left: {session_id}: {failure if isinstance(failure, AnchorAPIError) else alive}")
    return len(ended.difference(left)), left


def _is_refusal(outcome: Ended | AnchorAPIError | None) -> bool:
    """Whether it is of no use to ask again."""
    return isinstance(outcome, AnchorAPIError) and not outcome.is_transient
