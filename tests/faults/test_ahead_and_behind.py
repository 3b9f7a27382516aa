"""Sessions created ahead and ended in the background, in real runs that end in every way."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable

import fault_server as faults
import pytest
from fault_server import FaultServer
from processes import children
from real_runs import Run, Suite, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

AHEAD, BEHIND = "--anchor-prefetch=2", "--anchor-end=background"
SOON = "--anchor-sweep-timeout=2"

INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL

# The session of `test_waits` has been created ahead; while it waits, there is more for those that follow.
WAITS = """
import os, time
from pathlib import Path
def test_first(anchor_session):
    anchor_session()
    wait_for("{own}")
def wait_for(name):
    deadline = time.monotonic() + 30
    while not Path(name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
def test_waits(anchor_session):
    session = anchor_session()
    Path("id").write_text(session.id)
    os.rename("id", "ready")
    wait_for("go")
    {death}
def test_next(anchor_session): anchor_session()
def test_last(anchor_session): anchor_session()
"""

MANY = """
import time
from pathlib import Path
import pytest
@pytest.mark.parametrize("n", range({0}))
def test_it(anchor_session, n):
    session = anchor_session()
    if n == 2: Path("stuck").write_text(session.id)
def test_end():
    {1}
"""
STOP = "Path('ready').touch(); time.sleep(30)"


def meeting(fault: faults.Fault, first: int, last: int = 10**6) -> faults.Fault:
    """The fault for the requests with these numbers, beginning with 1, and the true answer for all others."""
    count = itertools.count(1)
    return lambda handler, act: fault(handler, act) if first <= next(count) <= last else act()


def numbers(run: Run) -> dict[str, int]:
    """What became of how many sessions; checks that it comes to as many as were created."""
    line = run.section.splitlines()[0].partition(";")[0]
    created, rest = re.fullmatch(r"(\d+) sessions? created: (.*)", line).groups()
    found = {what: int(number) for number, what in re.findall(r"(\d+) ((?:prefetched, )?[a-z ]+)", rest)}
    assert sum(number for what, number in found.items() if what != "unresolved") == int(created)
    return found


def signal_to(suite: Suite, process: subprocess.Popen[str], what: int, target: str = "main") -> None:
    if target == "worker":
        (worker,) = (one for one in children(process.pid) if "exec(eval(" in suite.processes.get(one, ""))
        os.kill(worker, what)
    elif target == "group":
        os.killpg(process.pid, what)
    else:
        process.send_signal(what)


def until_ready(suite: Suite) -> faults.Fault:
    """Nothing comes to be before the suite's last test is ready, and half a second has passed."""

    def wait(_handler, act):
        until(is_ready(suite))
        time.sleep(0.5)
        return act()

    return wait


def is_ready(suite: Suite) -> Callable[[], bool]:
    return (suite.folder / "ready").exists


def test_a_kill_leaves_nothing_of_what_is_ready_and_under_way(suite: Suite, server: FaultServer):
    server.fail_always("POST", meeting(faults.slow(1.0), 4))
    suite.write(WAITS.format(own="first", death=""))
    process = suite.start(AHEAD, BEHIND, workers=1, reaper=True)
    until(lambda: server.count("POST") == 3 and len(suite.alive) == 3)
    (suite.folder / "first").touch()
    until(lambda: is_ready(suite)() and server.count("POST") == 4)
    signal_to(suite, process, KILL, "group")
    suite.finish(process)
    suite.wait_for_quiet()
    until(lambda: not (server.busy or suite.alive))
    assert len(server.sessions) - len(suite.strangers) == 4
    suite.assert_settled()
    assert sum(one.ahead for one in suite.records) == 2


@pytest.mark.parametrize("death", [KILL, None], ids=["kill", "exit"])
def test_a_dead_workers_are_ended_while_the_run_goes_on(suite: Suite, server: FaultServer, death: int | None):
    suite.write(WAITS.format(own="first", death="os._exit(3)"))
    (suite.folder / "first").touch()
    process = suite.start(AHEAD, workers=1)
    until(lambda: is_ready(suite)() and len(suite.alive) == 3)
    if death:
        signal_to(suite, process, death, "worker")
    (suite.folder / "go").touch()
    run = suite.finish(process)
    assert run.outcomes == {"failed": 1, "passed": 3}
    assert not run.alive
    assert not run.recorded
    found = numbers(run)
    assert found["by the sweep"] == 1
    assert found["prefetched, unused"] == 2


@pytest.mark.parametrize("what", [INT, TERM])
def test_an_interrupt_where_all_comes_from_ahead(suite: Suite, server: FaultServer, what: int):
    suite.write(WAITS.format(own="first", death=""))
    (suite.folder / "first").touch()
    process = suite.start(AHEAD, BEHIND)
    until(lambda: is_ready(suite)() and len(suite.alive) == 3)
    signal_to(suite, process, what)
    run = suite.finish(process)
    assert run.status == 2
    assert not run.alive
    assert not run.recorded
    found = numbers(run)
    assert found["prefetched, unused"] == 2
    assert found["at teardown"] + found.get("by the sweep", 0) == 2
    assert server.count("DELETE") == 4


def test_sigterm_while_a_test_waits_for_what_is_under_way(suite: Suite, server: FaultServer):
    answers = threading.Event()

    def wait(_handler, act):
        answers.wait(30)
        return act()

    server.fail_always("POST", meeting(wait, 2))
    suite.write(WAITS.format(own="first", death=""))
    process = suite.start(AHEAD)
    until(lambda: server.count("POST") == 3)
    (suite.folder / "first").touch()
    until(lambda: server.count("DELETE") == 1)  # the first test is over
    time.sleep(0.3)
    signal_to(suite, process, TERM)
    threading.Timer(1.0, answers.set).start()  # what is under way is seen to in the end
    run = suite.finish(process)
    assert run.status == 2
    assert not is_ready(suite)(), "it was not in that wait"
    found = numbers(run)
    # One was given to the test that was interrupted as it waited; a third, where an answer came before that.
    assert sum(found.values()) == len(server.sessions) - len(suite.strangers)
    assert found["prefetched, unused"] >= 1
    assert not run.alive
    assert not run.recorded


LOST = """
import time
from pathlib import Path
def test_a(anchor_session):
    anchor_session()
    deadline = time.monotonic() + 30
    while not Path("lost").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
def test_b(anchor_session): pass
"""


@pytest.mark.parametrize(
    ("fault", "delay", "alive"),
    [(faults.lost_reset, 1000.0, 1), (faults.silent, 0.0, 0), (faults.lost_reset, 1.0, 0)],
    ids=["never listed", "never answered", "listed late"],
)
def test_a_creation_ahead_that_is_lost_is_found_or_fails_the_run(
    suite: Suite, server: FaultServer, fault: faults.Fault, delay: float, alive: int
):
    def lose(handler, act):
        (suite.folder / "lost").touch()
        return fault(handler, act)

    server.list_delay = delay
    server.fail_always("POST", meeting(lose, 2, 2))
    suite.write(LOST)
    found = delay == 1.0
    run = suite.run_here("--anchor-prefetch=1", *[] if found else [SOON])
    assert run.outcomes == {"passed": 2}
    assert len(run.alive) == alive
    assert (run.status, "UNRESOLVED" in run.section, run.recorded) == ((0, False, False) if found else (1, True, True))
    assert numbers(run) == (
        {"at teardown": 1, "prefetched, unused": 1} if found else {"at teardown": 1, "unresolved": 1}
    )
    assert server.count("POST") == 2


@pytest.mark.parametrize(("fault", "workers"), [(faults.status(500), 0), (faults.silent, 2)], ids=["500", "hangs"])
def test_what_cannot_be_ended_in_the_background_fails_the_run_and_names_its_test(
    suite: Suite, server: FaultServer, fault: faults.Fault, workers: int
):
    def stuck(handler, act):
        name = suite.folder / "stuck"
        mine = name.exists() and handler.path.endswith(name.read_text() or "-")
        return fault(handler, act) if mine else act()

    server.fail_always("DELETE", stuck)
    suite.write(MANY.format(10, "pass"))
    start = time.monotonic()
    run = suite.run_here(BEHIND, SOON, workers=workers)
    assert time.monotonic() - start < 32  # END_TIMEOUT, and what it takes before and after
    assert (run.status, run.outcomes) == (1, {"passed": 11})
    stuck_id = (suite.folder / "stuck").read_text()
    assert run.alive == [stuck_id]
    assert re.search(rf"^LEAKED {stuck_id} of test_it\.py::test_it\[2\]", run.section, re.MULTILINE)
    found = numbers(run)
    assert found["leaked"] == 1
    assert found["at teardown"] + found.get("by the sweep", 0) == 9


@pytest.mark.parametrize("workers", [0, 1])
def test_ctrl_c_with_forty_ends_under_way(suite: Suite, server: FaultServer, workers: int):
    server.fail_always("DELETE", until_ready(suite))
    suite.write(MANY.format(40, STOP))
    process = suite.start(BEHIND, workers=workers)
    until(is_ready(suite))
    assert len(suite.alive) > 20, "they were not in the background"
    signal_to(suite, process, INT)
    run = suite.finish(process)
    assert run.status == 2
    assert not run.alive
    assert not run.recorded
    numbers(run)


def test_a_kill_with_forty_ends_under_way(suite: Suite, server: FaultServer):
    server.fail_always("DELETE", until_ready(suite))
    suite.write(MANY.format(40, STOP))
    process = suite.start(BEHIND, reaper=True)
    until(is_ready(suite))
    assert len(suite.alive) > 20, "they were not in the background"
    signal_to(suite, process, KILL)
    run = suite.finish(process)
    assert run.status == -KILL
    assert run.alive, "the reaper had nothing to do"
    suite.wait_for_quiet()
    suite.assert_settled()


@pytest.mark.parametrize(("workers", "dist"), [(0, "no"), (2, "load"), (2, "worksteal")])
def test_a_session_is_its_tests_alone_until_that_is_over(suite: Suite, server: FaultServer, workers: int, dist: str):
    server.cap = 4
    most, lock = [0], threading.Lock()

    def count(_handler, act):
        with lock:
            answer = act()
            most.append(len(suite.alive))
        return answer

    server.fail_always("POST", count)
    server.fail_always("DELETE", faults.slow(0.05))
    suite.write(
        "import os, threading, time\n"
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(16))\n"
        "def test_it(anchor_session, n):\n"
        "    sessions = [anchor_session() for _ in range(1 + n % 2)]\n"
        "    time.sleep(0.05)\n"
        "    assert not any(one.ended for one in sessions)\n"
        "    for one in sessions: print('USED', one.id)\n"
    )
    run = (
        suite.run_here(AHEAD, BEHIND, "-rP", "--dist", dist, workers=workers)
        if workers
        else suite.run_here(AHEAD, BEHIND, "-rP")
    )
    assert (run.status, run.outcomes) == (0, {"passed": 16})
    used = re.findall(r"^USED (\S+)$", run.out, re.MULTILINE)
    assert len(used) == len(set(used)) == 24, "one session was handed out twice"
    assert max(most) <= 4
    found = numbers(run)
    assert found["at teardown"] == 24
    assert server.count("DELETE") == server.count("POST") == len(server.sessions) - len(suite.strangers)
    assert not run.recorded


def test_children_that_tests_fork_neither_take_nor_leave_anything(suite: Suite, server: FaultServer):
    suite.write(
        "import os, time\n"
        "from pathlib import Path\n"
        "def in_a_child(work):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try: work()\n"
        "        finally: os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "def test_first(anchor_session):\n"
        "    anchor_session()\n"
        "    time.sleep(0.5)\n"
        "def test_forks(anchor_session):\n"
        "    def work():\n"
        "        with anchor_session() as session: Path('child').write_text(session.id)\n"
        "    in_a_child(work)\n"
        "    assert anchor_session().id != Path('child').read_text()\n"
        "def test_last(anchor_session): anchor_session()\n"
    )
    run = suite.run("--anchor-prefetch=1")
    assert (run.status, run.outcomes) == (0, {"passed": 3})
    assert numbers(run) == {"ended by the tests": 1, "at teardown": 3}


def test_a_process_for_each_test_leaves_nothing_to_a_process_that_is_gone(suite: Suite, server: FaultServer):
    most = []

    def count(_handler, act):
        answer = act()
        most.append(len(suite.alive))
        return answer

    server.fail_always("POST", count)
    suite.write(
        "import os\n"
        "from _pytest.runner import runtestprotocol\n"
        "def pytest_runtest_protocol(item, nextitem):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        reports = runtestprotocol(item, log=False, nextitem=nextitem)\n"
        "        os._exit(any(one.failed for one in reports))\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "    return True\n",
        "conftest.py",
    )
    suite.write("".join(f"def test_{name}(anchor_session): anchor_session()\n" for name in "abcd"))
    run = suite.run(AHEAD, BEHIND)
    assert run.status == 0
    assert most == [1] * 4
    assert numbers(run) == {"at teardown": 4}
