"""``report``: draws the picture of a run from its record."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..cleanup.recovery import is_dead, runs
from ..errors import AnchorConfigError, printable
from ..registry.locks import JOURNAL
from ..report.write import write_report
from ..settings import check_report
from .common import describe_registry, find_registry, print_line

if TYPE_CHECKING:
    import argparse

    from ..registry.journal import Run


def report(arguments: argparse.Namespace) -> int:
    """Draw the run that was named, or the latest on record."""
    if not arguments.output:
        raise AnchorConfigError("--output takes a file whose name ends in .html or .json")
    path = Path(check_report("--output", arguments.output))
    run = _find(find_registry(arguments.registry), arguments.run)
    dead = is_dead(run)
    state = run.read()
    write_report(path, state, "killed" if dead else "running", time.time())
    number = sum(record.id is not None for record in state.records.values())
    sessions = "1 session" if number == 1 else f"{number} sessions"
    print_line(
        f"{printable(str(path))}: {sessions} of run {run.folder.name}, which {'was killed' if dead else 'goes on'}"
    )
    return 0


def _find(registry: Path | None, name: str | None) -> Run:
    found = [run for run in runs(registry) if run.folder.name.startswith(name or "")] if registry else []
    if not found:
        which = "No run" if name is None else f"No run whose name begins with {printable(repr(name), 80)}"
        raise AnchorConfigError(
            f"{which} is {describe_registry(registry)}. A run that was not killed leaves a record only where it leaves "
            "a session: have pytest draw it, with --anchor-report FILE."
        )
    return max(found, key=_last_written)


def _last_written(run: Run) -> float:
    try:
        return (run.folder / JOURNAL).stat().st_mtime
    except OSError:
        return 0.0
