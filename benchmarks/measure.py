"""What the benchmarks share: figures that are ratios, each measured side by side in one run."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parents[1]


class Figure(NamedTuple):
    """One row of the table."""

    name: str
    value: str
    aim: str
    detail: str


def seconds(work: Callable[[], object]) -> float:
    """How long *work* takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def paired(
    a: Callable[[], object],
    b: Callable[[], object],
    rounds: int,
    of: Callable[[Iterable[float]], float] = statistics.median,
) -> tuple[float, float]:
    """The median seconds of *a* and of *b*, or what *of* makes of them.

    They run in turn, so that a machine's drift meets both.
    """
    a(), b()
    times = [(seconds(a), seconds(b)) for _ in range(rounds)]
    return of(t for t, _ in times), of(t for _, t in times)


@contextmanager
def local_server(*options: str) -> Iterator[dict[str, str]]:
    """A browserless local backend in its own process; yields the environment that it names."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_anchor", "local", "--browserless", *options],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        lines = [process.stdout.readline().strip().partition("=") for _ in range(2)]
        yield {name: value for name, _, value in lines}
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
