"""Suites of real pytest processes on plans that allow little."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time

import fault_server as faults
import pytest
from fault_server import FaultServer
from processes import PATIENCE
from real_runs import Suite, until

pytestmark = pytest.mark.slow

SUITE = """
import pytest
@pytest.mark.parametrize("n", range({count}))
def test_it(anchor_session, n): anchor_session()
"""


class Plan:
    """What a server allows: creations in a window that the first of them opens, as Anchor's."""

    def __init__(self, quota: int, window: float) -> None:
        self.quota, self.window = quota, window
        self.opened, self.used = float("-inf"), 0
        self.refused = 0
        self.created: list[float] = []
        self.lock = threading.Lock()

    def __call__(self, _handler, act):
        with self.lock:
            now = time.monotonic()
            if now >= self.opened + self.window:
                self.opened, self.used = now, 0
            if self.used == self.quota:
                self.refused += 1
                left = self.opened + self.window - now
                policy = f'"{self.quota}-in-a-while"; q={self.quota}; w={self.window:g}; pk=:YQ==:'
                return faults.error(429, Retry_After=f"{-(-left // 1):.0f}", RateLimit_Policy=policy)
            self.used += 1
            self.created.append(now)
        return act()


@pytest.mark.parametrize("workers", [0, 3])
def test_a_suite_passes_within_a_rate(suite: Suite, server: FaultServer, workers: int):
    plan = Plan(4, 2.0)
    server.fail_always("POST", plan)
    suite.write(SUITE.format(count=10))
    run = suite.run_here(workers=workers)
    assert (run.status, run.outcomes) == (0, {"passed": 10})
    assert plan.refused <= max(1, workers), "429s grow with the number of tests"
    assert plan.created[-1] - plan.created[0] >= 2 * 2.0 - 0.5
    waits = re.search(r"(\d+) creations waited (\d+\.\d) s for the plan's rate limit", run.section)
    assert waits
    assert int(waits[1]) >= 2
    assert float(waits[2]) > 2.0
    assert not run.recorded


def test_a_suite_passes_within_a_cap(suite: Suite, server: FaultServer):
    server.cap = cap = 2
    most = []

    def count(_handler, act):
        answer = act()
        most.append(len(suite.alive))
        return answer

    server.fail_always("POST", count)
    suite.write(SUITE.format(count=10))
    run = suite.run(workers=3)
    assert (run.status, run.outcomes) == (0, {"passed": 10})
    assert max(most) <= cap
    assert server.asked_for_cap == 1


def test_two_runs_share_one_budget(suite: Suite, server: FaultServer):
    plan = Plan(4, 2.0)
    server.fail_always("POST", plan)
    suite.write(SUITE.format(count=6))
    runs = [suite.start("-p", "no:cacheprovider") for _ in range(2)]
    for run in map(suite.finish, runs):
        assert (run.status, run.outcomes) == (0, {"passed": 6})
    assert plan.refused <= 2
    assert not suite.alive


@pytest.mark.parametrize("workers", [0, 2])
def test_waiting_is_seen_once_while_it_lasts(suite: Suite, server: FaultServer, workers: int):
    server.fail_always("POST", Plan(2, 3.0))
    suite.write(SUITE.format(count=4))
    run = suite.run_here(workers=workers)
    assert run.status == 0
    said = re.findall(r"^anchor: (.*)$", run.out, re.MULTILINE)
    (line,) = [one for one in said if " waits for " in one]
    assert re.match(r"test_it\.py::test_it\[\d\] .*waits for its turn: the API allows 2 creations in 3 s", line)
    assert ("[gw" in line) == bool(workers)


def test_the_limit_of_waiting_is_named(suite: Suite, server: FaultServer):
    server.fail_always("POST", Plan(1, 60.0))
    suite.write(SUITE.format(count=2))
    start = time.monotonic()
    run = suite.run_here("--anchor-create-timeout=3", "-rA", "--tb=long", "--junitxml=junit.xml")
    assert time.monotonic() - start < 30
    assert (run.status, run.outcomes) == (1, {"failed": 1, "passed": 1})
    assert "AnchorLimitError: no session was created for test_it.py::test_it[1]" in run.out
    assert "the API allows 1 creation in 60 s" in run.out
    assert "--anchor-create-timeout sets leaves" in run.out
    assert "limits.py" not in run.out + (suite.folder / "junit.xml").read_text()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_while_tests_wait_leaves_nothing_behind(suite: Suite, server: FaultServer, workers: int):
    server.fail_always("POST", faults.status(429, Retry_After="200", RateLimit_Policy="q=1;w=200"))
    suite.write(SUITE.format(count=2))
    process = suite.start(workers=workers)

    def waiting() -> list[object]:
        texts = [file.read_text().partition("\n")[0] for file in suite.registry.glob("limits-*")]
        return [one for text in texts if text for one in json.loads(text)["queue"]]

    until(lambda: len(waiting()) == max(1, workers))
    os.killpg(process.pid, signal.SIGINT)
    start = time.monotonic()
    run = suite.finish(process)
    assert run.status == 2
    assert time.monotonic() - start < 20
    until(lambda: not waiting())
    assert not run.recorded


def test_tests_that_block_each_other_end_with_an_explanation(suite: Suite, server: FaultServer):
    server.cap = 2
    suite.write(
        "import pytest, time\n"
        "from pathlib import Path\n"
        "@pytest.mark.parametrize('n', range(2))\n"
        "def test_it(anchor_session, n):\n"
        "    anchor_session()\n"
        "    Path(f'has-{n}').touch()\n"
        "    while not Path(f'has-{1 - n}').exists(): time.sleep(0.01)\n"
        "    anchor_session()\n"
    )
    run = suite.run("--tb=short", workers=2)
    assert (run.status, run.outcomes) == (1, {"failed": 1, "passed": 1})
    assert "held by tests that wait for each other, so this one gives way" in run.out
    assert not run.alive


def test_a_test_that_blocks_itself_is_told_at_once(suite: Suite, server: FaultServer):
    suite.write(
        "def test_it(anchor_session, module_anchor_session):\n    module_anchor_session()\n    anchor_session()\n"
    )
    run = suite.run_here("--anchor-max-sessions=1", "--tb=short")
    assert (run.status, run.outcomes) == (1, {"failed": 1})
    assert "the test itself, or a fixture around it, holds the only one" in run.out
    assert server.asked_for_cap == 0


def test_the_slots_of_a_killed_worker_become_free(suite: Suite, server: FaultServer):
    server.cap = 2
    suite.write(
        "import os\n"
        "def test_dies(anchor_session): anchor_session(), anchor_session(), os._exit(3)\n"
        "def test_goes_on(anchor_session): anchor_session()\n"
    )
    run = suite.run(workers=1)
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert not run.alive


def test_a_slot_becomes_free_while_the_last_sweep_goes_on(suite: Suite, server: FaultServer):
    suite.write("def test_it(anchor_session): anchor_session(), anchor_session()", "test_sweeps.py")
    suite.write(SUITE.format(count=1))
    server.fail_always("DELETE", faults.status(500))
    cap = "--anchor-max-sessions=2"
    sweeps = suite.start("test_sweeps.py", cap, "--anchor-sweep-timeout=40")
    until(lambda: [one.error is not None for one in suite.records] == [True, True])
    other = suite.start("test_it.py", cap)
    server.fail_always("DELETE", faults.on(suite.alive[0], faults.status(500)))
    assert suite.finish(other).status == 0
    assert sweeps.poll() is None
    server.fail_always("DELETE", None)
    assert suite.finish(sweeps).status == 0


def test_the_slots_of_a_killed_run_become_free(suite: Suite, server: FaultServer):
    server.cap = 1
    suite.write("import time\ndef test_it(anchor_session): anchor_session(), time.sleep(60)", "test_killed.py")
    suite.write(SUITE.format(count=1))
    killed = suite.start("test_killed.py", reaper=True)
    until(lambda: suite.alive)
    other = suite.start("test_it.py")
    killed.kill()
    killed.communicate(timeout=PATIENCE)
    assert suite.finish(other).status == 0
    suite.wait_for_quiet()
    assert not suite.alive
