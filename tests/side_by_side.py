"""Runs many cases of one test at once: most of their time is waiting."""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest

Case = TypeVar("Case")
Answer = TypeVar("Answer")

# Who starts a process takes a core for it: all at once, none would meet its deadlines.
starting = threading.Semaphore(2)


def random_seeds(count: int, at_once: int) -> pytest.MarkDecorator:
    """Give a test seeds, as many as are to run at once; CHAOS_RUNS and CHAOS_SEED have others than the first *count*."""
    first = int(os.environ.get("CHAOS_SEED", "1"))
    end = first + int(os.environ.get("CHAOS_RUNS", count))
    batches = [range(seed, min(seed + at_once, end)) for seed in range(first, end, at_once)]
    return pytest.mark.parametrize("seeds", batches, ids=lambda seeds: f"seeds {seeds[0]} to {seeds[-1]}")


def side_by_side(work: Callable[[Case], Answer], cases: Iterable[Case], at_once: int) -> list[Answer]:
    """Do *work* for each of *cases*, in threads; fails with all that failed."""
    cases = list(cases)
    failures: list[str] = []
    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(work, case) for case in cases]
    for case, future in zip(cases, futures, strict=True):
        if error := future.exception():
            lines = traceback.format_exception(error)
            failures.append(f"{case}: {error if isinstance(error, AssertionError) else ''.join(lines)}")
    if failures:
        pytest.fail("\n\n".join([f"{len(failures)} of {len(cases)} failed", *failures]), pytrace=False)
    return [future.result() for future in futures]
