"""A run as the first process of a container, to which a signal's default disposition means nothing at all."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import Suite, environment, until

pytestmark = pytest.mark.slow

WAITS = """
import time

def test_it(anchor_session):
    anchor_session()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.01)
"""


def first_process(outer: int) -> int:
    """The pid, out here, of the only child of *outer*."""
    (child,) = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_to_process_1_ends_the_run_as_ctrl_c_does(suite: Suite, workers: int):
    unshare = [shutil.which("unshare") or "", "--pid", "--fork", "--mount-proc"]
    if not unshare[0] or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("a process namespace takes root and unshare")
    suite.write(WAITS)
    xdist = ["-p", "xdist", "-n", str(workers)] if workers else []
    process = subprocess.Popen(
        [*unshare, sys.executable, "-m", "pytest", "-p", "pytest_anchor", "-W", "error", *xdist],
        cwd=suite.folder,
        env=environment(**suite.server.env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until(lambda: len(suite.alive) == 1 and '"created"' in suite.runs[0].joinpath("journal.jsonl").read_text())
    subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(first_process(process.pid))], check=True)
    run = suite.finish(process)
    assert run.status == 2
    assert not run.alive
    assert not run.recorded
    assert "KeyboardInterrupt: SIGTERM" in run.out
    assert "1 session created: 1 at teardown" in run.section
