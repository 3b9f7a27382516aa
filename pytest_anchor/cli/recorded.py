"""What the runs of a registry have open on record."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..cleanup.recovery import is_dead, runs
from ..errors import AnchorRegistryError, printable
from ..local.launch import backend_of, is_gone

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..registry.journal import Run
    from ..registry.records import Record


class Found(NamedTuple):
    """A run with something open on record."""

    run: Run
    lives: bool
    left: list[Record]
    problem: str


def on_record(registry: Path | None) -> Iterator[Found]:
    """The runs of *registry* that have something open, or whose record cannot be read."""
    for run in runs(registry) if registry else ():
        lives = not is_dead(run)
        try:
            state = run.read()
        except AnchorRegistryError as error:
            yield Found(run, lives, [], printable(str(error)))
            continue
        over = backend_of(run.folder) if is_gone(run.folder) else None  # with every session that it served
        left = [
            record
            for record in state.records.values()
            if (record.open or record.unresolved) and record.base_url != over
        ]
        problem = ""
        if state.unreadable:
            where = printable(str(run.folder))
            problem = f"the record in {where} cannot be read in whole: sessions may be missing here"
        if left or problem:
            yield Found(run, lives, left, problem)
