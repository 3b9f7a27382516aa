"""``ls``: lists the sessions that are open, by this machine's record or by the API's list."""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..cleanup.recovery import runs
from ..errors import AnchorRegistryError, printable
from ..reporting.summary import span
from ..tags import TAG, run_tag
from .common import api_for, describe_registry, find_registry, print_error, print_line, read_run_id
from .recorded import on_record

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from ..api import AnchorAPI

    Row = dict[str, Any]


def ls(arguments: argparse.Namespace) -> int:
    """List what is open on record here, or by the API's list."""
    registry = find_registry(arguments.registry)
    run_id = read_run_id(arguments.run_id)
    if arguments.remote:
        rows = _remote_rows(api_for(arguments), registry, run_id)
        problems: list[str] = []
        nothing = f"No session that is alive carries the tag {run_tag(run_id) if run_id else TAG!r}."
    else:
        rows, problems = _local_rows(registry, run_id)
        nothing = f"No session is open {describe_registry(registry)}."
    for problem in problems:
        print_error(problem)
    if arguments.json:
        print_line(json.dumps(rows, indent=2))
    elif rows:
        _print_table(rows)
    elif not problems:
        print_line(nothing)
    return 1 if rows or problems else 0


def _local_rows(registry: Path | None, run_id: str) -> tuple[list[Row], list[str]]:
    rows, problems = [], []
    for found in on_record(registry):
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
            "id": session.id,
            "status": session.status,
            "age_seconds": _age(session.age),
            "test": tests.get(session.id),
            "run": next((tag.removeprefix(run_tag("")) for tag in session.tags if tag.startswith(run_tag(""))), None),
        }
        for session in api.sessions_with_tag(tag, deadline=time.monotonic() + 4 * CALL_TIMEOUT)
        if session.alive
    ]


def _tests(registry: Path | None) -> dict[str, str]:
    """The tests of the sessions on record, by the sessions' ids."""
    tests: dict[str, str] = {}
    with suppress(AnchorRegistryError):  # they are an extra where the API is asked
        for run in runs(registry) if registry else ():
            with suppress(AnchorRegistryError):
                tests.update({record.id: record.test for record in run.read().records.values() if record.id})
    return tests


def _age(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else round(max(seconds, 0.0), 1)


def _print_table(rows: list[Row]) -> None:
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
        print_line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
