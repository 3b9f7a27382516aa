"""What the broker costs while it waits, and how soon after a run's death it has ended what was left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from measure import ROOT, Figure, local_server

if TYPE_CHECKING:
    from collections.abc import Iterator

WATCHED = 20.0  # seconds in which its wake-ups are counted
SETTLED = 3.0  # seconds after which it has come to rest
DEATHS = 7
SESSIONS = 50

RUN = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from measure import client_for
from pytest_anchor.session import AnchorSessionFactory

client = client_for(dict(os.environ), Path(sys.argv[1]), reaper=True)
factory = AnchorSessionFactory(client, {}, lambda: "benchmark")
with ThreadPoolExecutor(16) as pool:
    list(pool.map(lambda _: factory(), range(int(sys.argv[2]))))
print("ready", flush=True)
threading.Event().wait()
"""


def figures() -> Iterator[Figure]:
    """Memory and wake-ups of a waiting broker, and the time from death to the last DELETE."""
    with local_server() as env, tempfile.TemporaryDirectory() as folder:
        registry = Path(folder, ".pytest_anchor")
        run = _start(registry / "waiting", 1, env)
        status = Path("/proc", str(_broker(registry / "waiting")), "status")
        if status.exists():
            time.sleep(SETTLED)
            memory = _field(status, "VmRSS") / 1024
            before = _field(status, "voluntary_ctxt_switches")
            time.sleep(WATCHED)
            woken = (_field(status, "voluntary_ctxt_switches") - before) * 60 / WATCHED
            yield Figure("broker, waiting: resident memory", f"{memory:.1f} MB", "under 40 MB", "")
            yield Figure("broker, waiting: wake-ups a minute", f"{woken:.0f}", "none", "")
        _kill(run)
        for sessions in (1, SESSIONS):
            times = [_death(registry / f"{sessions}-{number}", sessions, env) for number in range(DEATHS)]
            yield Figure(
                f"broker: from a run's death to the end of its last session, {sessions} open",
                f"{median(times):.2f} s",
                "under 1 s",
                f"{min(times):.2f} to {max(times):.2f} s of {DEATHS}",
            )


def _start(folder: Path, sessions: int, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(folder), str(sessions)]
    everything = {**os.environ, **env, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    process = subprocess.Popen(command, env=everything, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _death(folder: Path, sessions: int, env: dict[str, str]) -> float:
    run = _start(folder, sessions, env)
    _kill(run)
    died = time.monotonic()
    journal = folder / "journal.jsonl"
    while journal.read_text(encoding="utf-8").count('"event":"ended"') < sessions:
        time.sleep(0.005)
    return time.monotonic() - died


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def _broker(folder: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        command = _read(entry / "cmdline")
        if b"pytest_anchor.broker" in command and os.fsencode(folder) in command:
            return int(entry.name)
    return 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _field(status: Path, name: str) -> int:
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return int(lines[name].split()[0])
