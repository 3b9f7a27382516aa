"""What one event in the journal costs, short and long, alone and in company."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import ratio

from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from measure import Figure

EVENTS = 200
ROUNDS = 9
WRITERS = 8
SHORT, LONG = 100, 100_000


def figures() -> Iterator[Figure]:
    """Cost per event at 100,000 events against that at 100."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {length: _run(Path(folder, ".pytest_anchor", str(length)), length) for length in (SHORT, LONG)}
        for writers in (1, WRITERS):
            costs: dict[int, list[float]] = {SHORT: [], LONG: []}
            for _ in range(ROUNDS):
                for length, path in runs.items():
                    costs[length].append(_cost(path, writers))
            short, long = (median(costs[length]) for length in (SHORT, LONG))
            company = "one process" if writers == 1 else f"{writers} processes"
            name = f"journal, an event at {LONG:,} against one at {SHORT}, {company} writing"
            yield ratio(name, long, short, "flat within 1.2", "µs", 0)


def _run(folder: Path, events: int) -> Path:
    run = Run(folder)
    run.join()
    line = b'{"event":"refused","nonce":"0123456789abcdef-0123456789abcdef"}\n'
    (folder / JOURNAL).write_bytes(line * events)
    run.leave()
    return folder


def _cost(folder: Path, writers: int) -> float:
    """Seconds for each event, with *writers* processes at it."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(writers)
    results = context.Queue()
    size = (folder / JOURNAL).stat().st_size
    processes = [context.Process(target=_write, args=(folder, barrier, results)) for _ in range(writers)]
    for process in processes:
        process.start()
    spans: list[tuple[float, float]] = [results.get() for _ in processes]
    for process in processes:
        process.join()
    with (folder / JOURNAL).open("r+b") as file:
        file.truncate(size)
    return (max(end for _, end in spans) - min(start for start, _ in spans)) / (EVENTS * writers)


def _write(folder: Path, barrier: object, results: object) -> None:
    run = Run(folder)
    run.append("refused", "warm-up")
    barrier.wait()  # type: ignore[attr-defined]
    start = time.monotonic()
    for _ in range(EVENTS):
        run.append("refused", "0123456789abcdef-0123456789abcdef")
    results.put((start, time.monotonic()))  # type: ignore[attr-defined]
