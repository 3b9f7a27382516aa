"""A process that is killed before any one line of a creation loses nothing: what it created is found and ended."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
from fault_server import KEY, FaultServer
from real_runs import environment
from settings_for import settings_for

from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker import broker as broker_module
from pytest_anchor.broker import reaper as reaper_module
from pytest_anchor.broker.broker import Broker
from pytest_anchor.broker.processes import Process
from pytest_anchor.cleanup.policy import SweepPolicy
from pytest_anchor.cleanup.recovery import recover
from pytest_anchor.cleanup.sweep import SweepTarget, sweep_run
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import Settings
from pytest_anchor.tags import run_tag

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

SCRIPT = Path(__file__).with_name("dies_at_a_line.py")
NO_PROCESS = 2**22 + 1  # a pid beyond what Linux gives
GRACE = 0.3  # seconds in which a creation that was never sent may still turn up


def die(settings: Settings, *numbers: int) -> list[tuple[int, str]]:
    """Let processes create sessions and die; returns the numbers and names of the lines that they did not run."""
    told = json.dumps({**settings._asdict(), "folder": str(settings.folder), "api_key": None})
    done = subprocess.run(
        [sys.executable, SCRIPT, told, json.dumps(numbers)],
        env=environment(ANCHORBROWSER_API_KEY=KEY),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ends = [json.loads(line) for line in done.stdout.splitlines()]
    if len(ends) != len(numbers):
        assert ends.pop()[2] == 0  # the last process had no line to die at
    assert {status for *_, status in ends} == {-signal.SIGKILL}
    return [(number, line) for number, line, _ in ends]


def sessions_of(server: FaultServer, run: Run) -> list[str]:
    return [one.id for one in server.sessions.values() if run_tag(run.folder.name) in one.tags]


def sweep(api: AnchorAPI, run: Run) -> None:
    """What the reaper does."""
    assert sweep_run(SweepTarget(api, run, run.folder.name), SweepPolicy("reaper", (0.1,), GRACE), timeout=10.0) is None


def recovery(api: AnchorAPI, run: Run) -> None:
    """What the next run does."""
    recover(run, lambda: api, SweepPolicy("recovery", (0.1,), GRACE), timeout=10.0)


def takeover(api: AnchorAPI, run: Run) -> None:
    """What the next broker of the same run does, with no process of the run alive any more."""
    settings = settings_for(run.folder, base_url=api.base_url, api_key=KEY, sweep_timeout=10.0, max_sessions=None)
    over = threading.Event()
    broker = Broker(settings, over.set)
    broker.start(Process("main", NO_PROCESS))
    assert over.wait(30)
    broker.close()


@pytest.fixture
def registry(settings: Settings) -> Settings:
    return settings._replace(folder=settings.folder.parent)


def test_a_kill_before_any_line_loses_nothing(
    server: FaultServer, api: AnchorAPI, registry: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for module in (broker_module, reaper_module):
        monkeypatch.setattr(module, "KILLED_GRACE", GRACE)
        monkeypatch.setattr(module, "LONG_PAUSES", (0.1,))
    server.cap = 100_000
    stranger = server.add("pytest-anchor", "pytest-anchor:run=another")
    lines = die(registry)
    time.sleep(GRACE)  # what was sent has arrived
    runs = {number: Run(registry.folder / f"run{number:04}") for number, _ in lines}
    with_session = [number for number, run in runs.items() if sessions_of(server, run)]
    assert len(server.alive) == len(with_session) + 2  # the one that did not die, and the stranger
    names = {line.split()[0] for _, line in lines}
    assert {
        "Owner.create",
        "Owner._create",
        "FileStore.update",
        "_write",
        "Run.append",
        "Run._write",
        "AnchorAPI.create",
        "HTTPConnection.send",
    } <= names
    # Both kinds were met: killed too early for a session, and too late for a record of it.
    assert 10 < len(with_session) < len(lines) - 10
    (survivor,) = sessions_of(server, Run(registry.folder / f"run{len(lines):04}"))

    # Each cleans up after the same deaths. A folder's inode is on record, so it stays; only the last removes it.
    left = shutil.copytree(registry.folder, tmp_path / "left")
    sessions = deepcopy(server.sessions)
    for clean_up in (sweep, takeover, recovery):
        for file in [file for run in runs.values() for file in run.folder.iterdir()]:
            file.unlink()
        shutil.copytree(left, registry.folder, dirs_exist_ok=True)
        server.sessions = deepcopy(sessions)
        runs = {number: Run(run.folder) for number, run in runs.items()}
        assert len(server.alive) == len(with_session) + 2

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(partial(clean_up, api), runs.values()))

        assert set(server.alive) == {stranger, survivor}, clean_up
        for number, line in lines:
            state = runs[number].read()
            states = [record.state for record in state.records.values()]
            if number in with_session:
                assert states in (["ended"], []), (clean_up, line)  # the next run forgets what is over
            else:
                assert states in (["pending"], ["lost"], []), (clean_up, line)
            assert not state.unreadable, (clean_up, line)
