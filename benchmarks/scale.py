"""Ten thousand sessions in one run: what late ones cost against early ones, in time and in memory."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
from bisect import bisect_left
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

from measure import Figure, answers, local_server, outcome, start_pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKERS, TESTS, EACH = 16, 2_000, 5
CAP = 1_000  # known, and never reached
SESSIONS = TESTS * EACH
PART = SESSIONS // 10
EVERY = 0.25  # seconds between samples
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

SUITE = f"""
import pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_it(anchor_session, number):
    for _ in range({EACH}):
        anchor_session()
"""


class _Sample(NamedTuple):
    """The run's processes at a moment, in seconds since the epoch: CPU seconds of all, bytes of each."""

    moment: float
    cpu: float
    memory: dict[int, int]
    broker: int = 0  # its process id


def figures() -> Iterator[Figure]:
    """The second thousand against the last but one: neither the run's start nor its end is a cost of theirs."""
    samples: list[_Sample] = []
    over = threading.Event()
    with tempfile.TemporaryDirectory() as base:
        folder, log = Path(base, "suite"), Path(base, "log")
        folder.mkdir()
        (folder / "test_it.py").write_text(SUITE, encoding="utf-8")
        with local_server("--cap", str(CAP), log=log) as env:
            run = start_pytest(folder, env, "-p", "xdist", f"-n{WORKERS}")
            watch = threading.Thread(target=_watch, args=(run.pid, os.fsencode(folder), samples, over))
            watch.start()
            try:
                out = outcome(run)[1]
            finally:
                over.set()
                watch.join()
        done = time.time()
        created = [one.moment for one in answers(log, "POST") if one.status == 200]
        ended = answers(log, "DELETE")
    assert len(created) == SESSIONS

    moments = [sample.moment for sample in samples]
    first, last = (created[PART], created[2 * PART]), (created[-2 * PART], created[-PART])
    early, late = (_cpu(samples, *span) / PART for span in (first, last))
    walls = [(end - start) / PART * 1000 for start, end in (first, last)]
    run_name = f"{SESSIONS:,} sessions, {WORKERS} workers"
    yield Figure(
        f"{run_name}: CPU of a session, the last thousand but one against the second",
        f"{late / early:.2f}",
        "flat within 1.2",
        f"{late * 1000:.1f} ms against {early * 1000:.1f} ms; {walls[1]:.1f} ms against {walls[0]:.1f} ms of time",
    )
    yield Figure(f"{run_name}: created and ended a second", f"{1000 / walls[1]:.0f}", "500", "")
    before, after = (samples[bisect_left(moments, moment)].memory for moment in (first[1], last[1]))
    broker = samples[bisect_left(moments, last[1])].broker
    workers = [pid for pid in before if pid not in (run.pid, broker)]
    for name, pids in (("the broker", [broker]), ("the controller", [run.pid]), ("a worker", workers)):
        sizes = [mean(memory[pid] for pid in pids if pid in memory) / 1e6 for memory in (before, after)]
        most = max(sample.memory.get(pid, 0) for sample in samples for pid in pids) / 1e6
        yield Figure(
            f"{run_name}: memory of {name}, after the last thousand but one against after the second",
            f"{sizes[1] / sizes[0]:.2f}",
            "",
            f"{sizes[1]:.1f} MB against {sizes[0]:.1f} MB; {most:.1f} MB at most",
        )
    found = re.search(r"^=+ anchor =+\n(.*?)(?=^=+ |^\d+ passed|\Z)", out, re.MULTILINE | re.DOTALL)
    section = found[1].splitlines() if found else []
    yield Figure(f"{run_name}: lines of the final section", str(len(section)), "", " / ".join(section[:3]))
    yield Figure(f"{run_name}: from the last end to the prompt", f"{done - ended[-1].moment:.1f} s", "", "")


def _cpu(samples: list[_Sample], start: float, end: float) -> float:
    """CPU seconds between two moments, between samples as if they were spent evenly."""
    return _cpu_at(samples, end) - _cpu_at(samples, start)


def _cpu_at(samples: list[_Sample], moment: float) -> float:
    index = bisect_left([sample.moment for sample in samples], moment)
    before, after = samples[index - 1], samples[index]
    return before.cpu + (after.cpu - before.cpu) * (moment - before.moment) / (after.moment - before.moment)


def _watch(pid: int, folder: bytes, samples: list[_Sample], over: threading.Event) -> None:
    """Look at the process *pid*, its children and the broker of the run in *folder* until *over*."""
    while not over.wait(EVERY):
        cpu, memory, broker = 0, {}, 0
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            is_broker = b"pytest_anchor.broker" in command and folder in command
            if is_broker:
                broker = int(entry.name)
            if is_broker or int(entry.name) == pid or int(fields[1]) == pid:
                cpu += int(fields[11]) + int(fields[12])
                memory[int(entry.name)] = int(fields[21]) * PAGE
        samples.append(_Sample(time.time(), cpu / TICKS, memory, broker))
