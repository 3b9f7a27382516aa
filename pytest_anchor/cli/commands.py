"""The commands of ``python -m pytest_anchor`` that list and end sessions."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import sys
import time
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import AnchorAPIError, AnchorConfigError, AnchorRegistryError, printable
from ..reporting.progress import Console, Progress, write
from ..settings import (
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    REGISTRY_NAME,
    check_base_url,
    check_key,
    check_run_id,
    check_seconds,
    ci_run_id,
    key_from_environment,
)
from ..tags import TAG, is_session_id, run_tag

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

    from ..api import AnchorAPI, Ended
    from ..cleanup.recovery import Recovery
    from ..registry.journal import Run
    from ..registry.records import Record

    Outcomes = dict[str, Ended | AnchorAPIError]
    Row = dict[str, Any]

_POLL_INTERVAL = 0.25  # seconds
_LAST_LIST = 5.0  # seconds of the time there is that are kept for the API's last list

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def ls(arguments: argparse.Namespace) -> int:
    """List what is open on record here, or by the API's list."""
    registry = _registry(arguments.registry)
    run_id = _run_id(arguments.run_id)
    if arguments.remote:
        rows = _remote_rows(_api(arguments), registry, run_id)
        problems: list[str] = []
        nothing = f"No session that is alive carries the tag {run_tag(run_id) if run_id else TAG!r}."
    else:
        rows, problems = _local_rows(registry, run_id)
        nothing = f"No session is open {_on_record_in(registry)}."
    for problem in problems:
        _print_error(problem)
    if arguments.json:
        _print(json.dumps(rows, indent=2))
    elif rows:
        _print_table(rows)
    elif not problems:
        _print(nothing)
    return 1 if rows or problems else 0


def sweep(arguments: argparse.Namespace) -> int:
    """End what dead runs left: the sessions on record here, or all sessions with a tag."""
    deadline = time.monotonic() + check_seconds("--timeout", arguments.timeout)
    older_than = _seconds(arguments.older_than)
    if arguments.run_id is None and arguments.tag is None:
        if older_than is not None:
            raise AnchorConfigError("--older-than goes with --tag TAG or --run-id ID: give one of them")
        return _sweep_registry(arguments, deadline)
    if arguments.registry is not None:
        raise AnchorConfigError(
            "--registry goes neither with --run-id nor with --tag, which go by the API's list alone: leave it out"
        )
    if arguments.tag is None:
        tags: tuple[str, ...] = (run_tag(_run_id(arguments.run_id)),)
    elif older_than is None:
        raise AnchorConfigError("--tag needs --older-than AGE, so that runs under way keep their sessions: give it")
    else:
        tags = (TAG, _check_tag(arguments.tag))
    return _sweep_tags(_api(arguments), tags, older_than, deadline, dry_run=arguments.dry_run)


def end(arguments: argparse.Namespace) -> int:
    """End sessions by their ids."""
    deadline = time.monotonic() + check_seconds("--timeout", arguments.timeout)
    ids = dict.fromkeys(arguments.ids, TAG)
    if arguments.dry_run:
        for one in ids:
            if is_session_id(one):
                _print(f"would end {one}")
            else:
                _print_error(f"{printable(repr(one), 80)} is not a session id, and would not be sent")
        return 1
    outcomes = _end_all(_api(arguments), ids, deadline, Progress(Console(sys.stderr)))
    for one, outcome in outcomes.items():
        if isinstance(outcome, AnchorAPIError):
            _print_error(outcome)
        else:
            _print_ended(one, outcome, "already over, or no session of this account")
    return 1 if any(isinstance(outcome, AnchorAPIError) for outcome in outcomes.values()) else 0


# output


def _print(text: str) -> None:
    write(sys.stdout, f"{text}\n")


def _print_error(text: object) -> None:
    write(sys.stderr, f"{text}\n")


# arguments


def _api(arguments: argparse.Namespace) -> AnchorAPI:
    base_url = check_base_url(arguments.base_url or os.environ.get(BASE_URL_VARIABLE) or DEFAULT_BASE_URL)
    key = check_key(key_from_environment())
    from ..api import AnchorAPI

    return AnchorAPI(base_url, key)


def _registry(given: Path | None) -> Path | None:
    if given is not None:
        return given
    here = Path.cwd()
    candidates = (folder / REGISTRY_NAME for folder in (here, *here.parents))
    return next((one for one in candidates if os.path.lexists(one)), None)


def _on_record_in(registry: Path | None) -> str:
    if registry is None:
        return f"on record: there is no {REGISTRY_NAME} here or in a folder above"
    where = printable(str(registry))
    return f"on record in {where}" if os.path.lexists(registry) else f"on record: there is no {where}"


def _run_id(given: object) -> str:
    """The run id that was asked for, ``""`` if none was.

    :param given: the option's value; ``True`` where it came without one.
    """
    if given is None:
        return ""
    if given is True and not ci_run_id():
        raise AnchorConfigError("this is not a run of a CI service that is known: name the run, --run-id ID")
    return ci_run_id() if given is True else check_run_id(str(given))


def _check_tag(tag: str) -> str:
    if not tag.strip() or "," in tag or not tag.isprintable():
        raise AnchorConfigError(
            f"--tag takes one tag, without commas or control characters, not {printable(repr(tag), 80)}"
        )
    return tag


def _seconds(duration: str | None) -> float | None:
    if duration is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", duration)
    if match is None:
        raise AnchorConfigError(
            f"--older-than takes a duration such as 90, 30s, 10m, 1h or 2d, not {printable(repr(duration), 80)}"
        )
    return float(match[1]) * _UNITS[match[2]]


# ls


class _Found(NamedTuple):
    """A run with something open on record."""

    run: Run
    lives: bool
    left: list[Record]
    problem: str


def _on_record(registry: Path | None) -> Iterator[_Found]:
    from ..cleanup.recovery import is_dead, runs
    from ..local.launch import backend_of, is_gone

    for run in runs(registry) if registry else ():
        lives = not is_dead(run)
        try:
            state = run.read()
        except AnchorRegistryError as error:
            yield _Found(run, lives, [], printable(str(error)))
            continue
        over = backend_of(run.folder) if is_gone(run.folder) else None  # with every session that it served
        left = [one for one in state.records.values() if (one.open or one.unresolved) and one.base_url != over]
        problem = ""
        if state.unreadable:
            where = printable(str(run.folder))
            problem = f"the record in {where} cannot be read in whole: sessions may be missing here"
        if left or problem:
            yield _Found(run, lives, left, problem)


def _local_rows(registry: Path | None, run_id: str) -> tuple[list[Row], list[str]]:
    rows, problems = [], []
    for found in _on_record(registry):
        problems += [found.problem] if found.problem else []
        rows += [
            {
                "id": record.id,
                "state": record.state,
                "age_seconds": _age(time.time() - record.time),
                "test": record.test,
                "run": found.run.folder.name,
                "run_lives": found.lives,
            }
            for record in found.left
            if run_id in ("", record.run_id)
        ]
    return rows, problems


def _remote_rows(api: AnchorAPI, registry: Path | None, run_id: str) -> list[Row]:
    from ..api.caller import CALL_TIMEOUT

    tests = _tests(registry)
    tag = run_tag(run_id) if run_id else TAG
    return [
        {
            "id": one.id,
            "status": one.status,
            "age_seconds": _age(one.age),
            "test": tests.get(one.id),
            "run": next((tag.removeprefix(run_tag("")) for tag in one.tags if tag.startswith(run_tag(""))), None),
        }
        for one in api.sessions_with_tag(tag, deadline=time.monotonic() + 4 * CALL_TIMEOUT)
        if one.alive
    ]


def _tests(registry: Path | None) -> dict[str, str]:
    """The tests of the sessions on record, by the sessions' ids."""
    from ..cleanup.recovery import runs

    tests: dict[str, str] = {}
    with suppress(AnchorRegistryError):  # they are an extra where the API is asked
        for run in runs(registry) if registry else ():
            with suppress(AnchorRegistryError):
                tests.update({record.id: record.test for record in run.read().records.values() if record.id})
    return tests


def _age(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else round(max(seconds, 0.0), 1)


def _print_table(rows: list[Row]) -> None:
    from ..reporting.summary import span

    table = []
    for row in rows:
        shown = {name: "-" if value is None else printable(str(value)) for name, value in row.items()}
        shown["age"] = "-" if row["age_seconds"] is None else span(row["age_seconds"])
        if "run_lives" in row:
            shown["run"] += " (lives)" if row["run_lives"] else " (dead)"
        table.append(shown)
    names = ["id", "state" if "state" in rows[0] else "status", "age", "test", "run"]
    widths = [max(len(name), *(len(shown[name]) for shown in table)) for name in names]
    for cells in (map(str.upper, names), *([shown[name] for name in names] for shown in table)):
        _print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


# sweep, by this machine's record


def _sweep_registry(arguments: argparse.Namespace, deadline: float) -> int:
    registry = _registry(arguments.registry)
    if arguments.dry_run:
        return _print_what_would_be_ended(registry, arguments)
    api: AnchorAPI | None = None

    def open_api() -> AnchorAPI:
        nonlocal api
        api = api or _api(arguments)
        return api

    unlisted = given_up = False
    for recovery in _recoveries(registry, open_api, deadline):
        _print_recovery(recovery)
        unlisted |= recovery.problem is not None
        given_up |= bool(recovery.given_up)
    dead = _dead(registry)
    for found in dead:
        if found.problem:
            _print_error(found.problem)
    if left := sum(len(found.left) for found in dead):
        where = "" if arguments.registry is None else f" --registry {shlex.quote(printable(str(arguments.registry)))}"
        _print_error(f"left of dead runs: {left}; to list them: python -m pytest_anchor ls{where}")
    if not (dead or unlisted or given_up):
        _print(f"Nothing of a dead run is left {_on_record_in(registry)}.")
    return 2 if unlisted else 1 if dead or given_up else 0


def _dead(registry: Path | None) -> list[_Found]:
    return [found for found in _on_record(registry) if not found.lives]


def _recoveries(registry: Path | None, open_api: Callable[[], AnchorAPI], deadline: float) -> Iterator[Recovery]:
    from ..cleanup.recovery import RECOVERY, RecoveryObserver, is_dead, recover, runs
    from ..registry.locks import SWEEP_LOCK, is_held

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
    from ..registry.records import State
    from ..reporting.summary import Report

    report = Report(State(), recovery.run.folder)
    report.recovered.append(recovery)
    for line in report.lines():
        (_print if line.markup.get("green") else _print_error)(line.text)


def _print_what_would_be_ended(registry: Path | None, arguments: argparse.Namespace) -> int:
    from ..cleanup.recovery import is_given_up
    from ..reporting.summary import title

    api = _api(arguments) if key_from_environment() else None
    dead = _dead(registry)
    for found in dead:
        if found.problem:
            _print_error(found.problem)
        why_not = {record.nonce: _why_not(api, found.run, record) for record in found.left}
        given_up = is_given_up([record for record in found.left if why_not[record.nonce]])
        for record in found.left:
            what = "would end" if record.open else "would look for, and end,"
            if why_not[record.nonce]:
                what = f"would {'give up on' if given_up else 'leave alone'}, since {why_not[record.nonce]}:"
            _print(f"{what} {title(record)}")
    if dead and api is None:
        _print_error("no API key is set, so which of these were created with it cannot be told")
    if not dead:
        _print(f"Nothing of a dead run is left {_on_record_in(registry)}.")
    return 1 if dead else 0


def _why_not(api: AnchorAPI | None, run: Run, record: Record) -> str:
    """Why a sweep would not touch what is on record, ``""`` if it would."""
    from ..registry.signatures import is_created_with, is_signed

    if api and not is_created_with(record, api):
        return "it was created with another key or base URL"
    if record.folder_inode != run.folder_inode:
        return "it is on record elsewhere"
    if api and record.open and not is_signed(api, run, record):
        return "its record was edited"
    return ""


# sweep, by tags


def _sweep_tags(
    api: AnchorAPI, tags: tuple[str, ...], older_than: float | None, deadline: float, *, dry_run: bool
) -> int:
    ageless: set[str] = set()

    def list_alive() -> list[str]:
        ids = []
        for one in api.sessions_with_tag(*tags, deadline=deadline):
            if not one.alive:
                continue
            if older_than is not None and one.age is None:
                ageless.add(one.id)
            elif older_than is None or max(one.age or 0.0, 0.0) >= older_than:  # its clock may be a second behind
                ids.append(one.id)
        return ids

    left = list_alive()
    if dry_run:
        for one in left:
            _print(f"would end {one}")
        ended = 0
    else:
        ended, left = _end_until_none_is_listed(api, tags[-1], left, list_alive, deadline)
    if ageless:
        _print_error(
            f"left alone, since the API does not tell when they were created: {', '.join(sorted(ageless))}. "
            "Those that are not needed can be ended by their ids: python -m pytest_anchor end ID…"
        )
    if not left:
        carrying = " and ".join(map(repr, tags))
        age = "" if older_than is None else f" and is older than {older_than:.0f} s"
        _print(f"{ended} ended, nothing is left." if ended else f"No session that is alive carries {carrying}{age}.")
    return 1 if left else 0


def _end_until_none_is_listed(
    api: AnchorAPI, tag: str, left: list[str], list_alive: Callable[[], list[str]], deadline: float
) -> tuple[int, list[str]]:
    """End what *list_alive* returns until that is nothing, its ends were refused, or time is up.

    :returns: how many were ended, and what is still listed.
    """
    from ..cleanup.policy import PAUSES

    until = deadline - min(_LAST_LIST, (deadline - time.monotonic()) / 4)
    progress = Progress(Console(sys.stderr))
    ended: set[str] = set()
    outcomes: Outcomes = {}
    for pause in chain(PAUSES, repeat(PAUSES[-1])):
        if not left:
            break
        outcomes |= _end_all(api, dict.fromkeys(left, tag), until, progress, again=True)
        for one, outcome in outcomes.items():
            if not isinstance(outcome, AnchorAPIError) and one not in ended:
                ended.add(one)
                _print_ended(one, outcome)
        if api.quiet_until >= deadline:
            left = [one for one in left if one not in ended]
            break
        left = list_alive()
        if all(_is_refusal(outcomes.get(one)) for one in left) or time.monotonic() + pause >= until:
            break
        time.sleep(pause)
    for one in left:
        failure = outcomes.get(one)
        alive = "the API lists it as alive. Run the same command again."
        _print_error(f"left: {one}: {failure if isinstance(failure, AnchorAPIError) else alive}")
    return len(ended.difference(left)), left


def _is_refusal(outcome: Ended | AnchorAPIError | None) -> bool:
    """Whether it is of no use to ask again."""
    return isinstance(outcome, AnchorAPIError) and not outcome.is_transient


def _end_all(
    api: AnchorAPI, sessions: Mapping[str, str], deadline: float, progress: Progress, *, again: bool = False
) -> Outcomes:
    """End sessions, several at once, by daemon threads: no API can hold this longer than it may take.

    :param sessions: a tag that it carries for each id.
    :param again: whether those that fail will be tried again.
    :returns: what became of each, in the order of *sessions*.
    """
    from ..cleanup.ending import TOO_LATE, EndsSessions, end_in_parallel

    class Ends(EndsSessions):
        def end(self, session: str, deadline: float) -> Ended | AnchorAPIError:
            try:
                return api.end(session, sessions[session], deadline=deadline)
            except AnchorAPIError as error:
                return error

        def progress(self, done: int, total: int) -> None:
            progress(done, total)

    try:
        outcomes = end_in_parallel(sessions, Ends(), api, deadline=deadline, again=again)
    finally:
        progress.clear()
    remedy = "Try again, with a longer --timeout."
    late = {one: AnchorAPIError(f"end session {printable(one)}", message=TOO_LATE, remedy=remedy) for one in sessions}
    return {one: outcomes.get(one, late[one]) for one in sessions}


def _print_ended(session_id: str, ended: Ended, already: str = "already over") -> None:
    became = already if ended.already else "ended"
    _print(f"{printable(session_id)}: {f'already over, but {ended.note}' if ended.note else became}")
