"""What the reaper costs while it waits, and how soon after a run's death it has ended what was left."""

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
DEATHS = 7
SESSIONS = 50

RUN = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pytest_anchor.session import Owner
from pytest_anchor.settings import Settings

folder, sessions = Path(sys.argv[1]), int(sys.argv[2])
import os
owner = Owner(Settings(run_id="bench", folder=folder, owner="main", base_url=os.environ["ANCHORBROWSER_BASE_URL"],
              api_key=os.environ["ANCHORBROWSER_API_KEY"], local=False, chromium="", on_leak="fail",
              sweep_timeout=60.0, reaper=True))
with ThreadPoolExecutor(16) as pool:
    list(pool.map(lambda _: owner.create({}, "benchmark"), range(sessions)))
print("ready", flush=True)
threading.Event().wait()
"""


def figures() -> Iterator[Figure]:
    """Memory and wake-ups of a waiting reaper, and the time from death to the last DELETE."""
    with local_server() as env, tempfile.TemporaryDirectory() as folder:
        registry = Path(folder, ".pytest_anchor")
        run = _start(registry / "waiting", 1, env)
        status = Path("/proc", str(_reaper(registry / "waiting")), "status")
        if status.exists():
            memory = _field(status, "VmRSS") / 1024
            before = _field(status, "voluntary_ctxt_switches")
            time.sleep(WATCHED)
            woken = (_field(status, "voluntary_ctxt_switches") - before) * 60 / WATCHED
            yield Figure("reaper, waiting: resident memory", f"{memory:.1f} MB", "under 15 MB", "")
            yield Figure("reaper, waiting: wake-ups a minute", f"{woken:.0f}", "60 or fewer", "")
        _kill(run)
        for sessions in (1, SESSIONS):
            times = [_death(registry / f"{sessions}-{number}", sessions, env) for number in range(DEATHS)]
            yield Figure(
                f"reaper: from a run's death to the end of its last session, {sessions} open",
                f"{median(times):.2f} s",
                "under 2 s",
                f"{min(times):.2f} to {max(times):.2f} s of {DEATHS}",
            )


def _start(folder: Path, sessions: int, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(folder), str(sessions)]
    everything = {**os.environ, **env, "PYTHONPATH": str(ROOT)}
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


def _reaper(folder: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*"):
        if f"pytest_anchor.reaper\0{folder}".encode() in _read(entry / "cmdline"):
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
