"""Real runs on several machines, which here are separate registries, with a real server between them."""

import importlib.util
import os
import re
import signal
import time
from pathlib import Path

import pytest
from fault_server import FaultServer
from real_runs import Suite, environment, until
from redis_servers import RealServer, any_program

from pytest_anchor.api import AnchorAPI
from pytest_anchor.budget.redis_server import RedisServer
from pytest_anchor.budget.shared_store import account_key, verified

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("redis") is None, reason="redis-py is not installed"),
]
LEASE = 3.0  # seconds


class Fleet:
    """Machines with a suite each, one API and one server."""

    def __init__(self, folder: Path, server: FaultServer, real: RealServer) -> None:
        self.server = server
        self.real = real
        self._folder = folder
        self.suites: list[Suite] = []
        self._api = AnchorAPI(server.url, next(iter(server.keys)))
        self._store = RedisServer(real.url, account_key(self._api.account))

    @property
    def state(self):
        return verified(self._store.read().value, self._api.sign)

    def machine(self, name: str) -> Suite:
        folder = self._folder / name
        folder.mkdir()
        self.suites.append(Suite(folder, self.server))
        return self.suites[-1]

    def start(self, suite: Suite, *args: str, **values):
        shared = ["--anchor-shared-limits", self.real.socket_url, "--anchor-shared-lease", str(LEASE)]
        return suite.start(*shared, "--anchor-run-id", "ci-7", *args, **values)


@pytest.fixture
def fleet(tmp_path, server):
    with RealServer(any_program(), tmp_path / "real") as real:
        fleet = Fleet(tmp_path, server, real)
        yield fleet
        for suite in fleet.suites:
            suite.kill_leftovers()


HOLD = """
import time
from pathlib import Path

def test_it(anchor_session):
    sessions = [anchor_session() for _ in range({count})]
    Path("created").touch()
    while not Path("go").exists():
        time.sleep(0.02)
    for session in sessions:
        session.end()
"""


def created(suite):
    return until((suite.folder / "created").exists)


def go(suite):
    (suite.folder / "go").touch()


def pid_of_broker(suite):
    return until(lambda: suite.broker)


def mine(suite, server):
    """The sessions of a suite's run that live."""
    (run,) = suite.runs
    return [one.id for one in server.sessions.values() if one.alive and any(run.name in tag for tag in one.tags)]


def test_a_machine_that_vanishes_in_the_middle(fleet, server):
    gone, other = fleet.machine("gone"), fleet.machine("other")
    for suite in (gone, other):
        suite.write(HOLD.format(count=2))
    processes = [fleet.start(suite, "--anchor-max-sessions", "4") for suite in (gone, other)]
    created(gone), created(other)
    assert len(fleet.state.slots) == 4
    assert len(fleet.state.leases) == 2
    # All that is on the machine, at once: no broker is left that could clean up.
    for pid in [pid_of_broker(gone), *gone.processes]:
        os.kill(pid, signal.SIGSTOP)
    for pid in gone.processes:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    until(lambda: not mine(gone, server), 30)
    assert time.monotonic() - began < 2 * LEASE + 5
    assert len(mine(other, server)) == 2
    assert len(fleet.state.slots) == 2
    go(other)
    run = other.finish(processes[1])
    assert run.status == 0
    assert re.search(r"^recovered 2 sessions of the run on .+, whose machine vanished$", run.section, re.MULTILINE)
    processes[0].communicate(timeout=20)


def test_a_run_whose_broker_is_killed_lives(fleet, server):
    one, other = fleet.machine("one"), fleet.machine("other")
    for suite in (one, other):
        suite.write(HOLD.format(count=2))
    processes = [fleet.start(one), fleet.start(other, workers=1)]
    created(one), created(other)
    sessions = mine(one, server) + mine(other, server)
    for suite in (one, other):
        os.kill(pid_of_broker(suite), signal.SIGKILL)
    time.sleep(2 * LEASE)
    assert mine(one, server) + mine(other, server) == sessions
    assert len(sessions) == 4
    assert len(fleet.state.leases) == 2
    for suite, process in zip((one, other), processes, strict=True):
        go(suite)
        run = suite.finish(process)
        assert run.status == 0, run.out
        assert "vanished" not in run.section


def test_a_broker_that_is_stopped_for_long_does_no_harm(fleet, server):
    """Its run counts as vanished, and what it had is ended; when it goes on, it finds that out and keeps to the cap."""
    one, other = fleet.machine("one"), fleet.machine("other")
    one.write(HOLD.format(count=2) + "\ndef test_after(anchor_session): anchor_session()\n")
    other.write(HOLD.format(count=3))
    process = fleet.start(one, "--anchor-max-sessions", "3")
    created(one)
    stopped = pid_of_broker(one)
    os.kill(stopped, signal.SIGSTOP)
    late = fleet.start(other, "--anchor-max-sessions", "3")
    created(other)
    until(lambda: not mine(one, server))
    os.kill(stopped, signal.SIGCONT)
    go(one)
    time.sleep(1.0)
    assert len(mine(one, server)) + len(mine(other, server)) <= 3
    go(other)
    assert other.finish(late).status == 0
    run = one.finish(process)
    assert run.status == 0, run.out
    assert "another took it for vanished" in run.section
    assert "already over" in run.section


def test_the_server_goes_away_in_the_middle_and_comes_back_empty(fleet, server):
    one = fleet.machine("one")
    one.write(HOLD.format(count=2) + "\ndef test_after(anchor_session): anchor_session()\n")
    process = fleet.start(one, "--anchor-max-sessions", "2")
    created(one)
    fleet.real.kill()
    time.sleep(1.5 * LEASE)
    assert len(mine(one, server)) == 2
    fleet.real.start()
    until(lambda: len(fleet.state.slots) == 2)
    go(one)
    run = one.finish(process)
    assert run.status == 0, run.out
    assert run.section.count("--anchor-shared-limits could not be used for") == 1
    assert "this run kept to its own limits meanwhile" in run.section
    until(lambda: not fleet.state.leases)


def test_a_server_that_is_never_there_and_its_password_is_nowhere(fleet, server):
    one = fleet.machine("one")
    one.write("def test_it(anchor_session): anchor_session()")
    url = "redis://:s3cret@127.0.0.1:1/0"
    env = environment(**server.env, PYTEST_ANCHOR_SHARED_LIMITS=url)
    run = one.run("-v", env=env)
    assert run.status == 0
    assert "could not be used for" in run.section
    assert "refused" in run.section
    assert "s3cret" not in run.out + run.err + "".join(one.processes.values())
    assert server.alive == one.strangers
