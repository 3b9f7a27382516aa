"""The broker is killed or stopped at any moment: its run goes on, and nothing that it created is left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fault_server as faults
import pytest
from processes import kill, stop
from real_runs import FIND_BROKER, FINISHING, KILL, STOP, Run, Suite, until

from pytest_anchor.registry.locks import is_live
from pytest_anchor.settings import socket_folder

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

# For the text of a test.
KILL_BROKER = FIND_BROKER + KILL
DIED = "the broker, the process that keeps this run's sessions, died while it was asked to create"


def find_broker(suite: Suite) -> int:
    """The pid of the broker of the one run that goes on."""
    return until(lambda: suite.broker)


def kill_broker(suite: Suite) -> int:
    """Kill the broker, and return its pid once it is gone."""
    pid = find_broker(suite)
    kill(pid)
    return pid


def kill_all(suite: Suite) -> None:
    """Kill all that lives of the run, the broker first: it must not notice."""
    while processes := suite.processes:  # one may just have started another broker
        for pid in sorted(processes, key=lambda pid: "pytest_anchor.broker" not in processes[pid]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_live, suite.runs)))  # the kernel takes their locks last


def assert_nothing_is_left(suite: Suite, run: Run) -> None:
    assert "LEAKED" not in run.section
    assert "INTERNALERROR" not in run.out
    if "UNRESOLVED" in run.section:  # killed between the intent and the request: the reaper looks for it for long
        assert not suite.alive
        return
    suite.wait_for_quiet()
    suite.assert_settled()


def hold(suite: Suite, method: str) -> threading.Event:
    """Let requests of *method* wait until the event is set."""
    return suite.server.held.setdefault(method, threading.Event())


TWICE = """
import pytest

def test_a(anchor_session):
    with pytest.raises(Exception, match="the broker.*died while it was asked to create"):
        anchor_session()
    anchor_session()

def test_b(anchor_session):
    anchor_session().end()
"""


@pytest.mark.parametrize(("workers", "is_created"), [(0, True), (1, False)], ids=["carried out", "not carried out"])
def test_during_the_post(suite: Suite, workers: int, *, is_created: bool):
    sent = hold(suite, "POST")
    if not is_created:
        suite.server.fail("POST", faults.reset)
    suite.write(TWICE)
    process = suite.start(workers=workers, reaper=True)
    until(lambda: suite.server.count("POST"))
    kill_broker(suite)
    sent.set()
    run = suite.finish(process)
    assert run.outcomes == {"passed": 2}
    assert len(suite.server.sessions) - len(suite.strangers) == 2 + is_created
    assert run.status == 0 or "UNRESOLVED" in run.section
    assert not suite.alive


WAITS_FOR_ITS_TURN = """
import threading

def test_a(anchor_session):
    first, errors = anchor_session(), []

    def create():
        try:
            anchor_session()
        except Exception as error:
            errors.append(str(error))

    thread = threading.Thread(target=create)
    thread.start()
    thread.join(60)
    assert "died while it was asked to create" in errors[0]
    first.end()
    anchor_session()
"""


def test_before_the_post_while_a_creation_waits_for_its_turn(suite: Suite):
    suite.server.cap = 1
    suite.write(WAITS_FOR_ITS_TURN)
    process = suite.start(reaper=True)
    until(lambda: suite.alive)
    time.sleep(0.5)  # the thread has asked by now
    kill_broker(suite)
    run = suite.finish(process)
    assert run.outcomes == {"passed": 1}
    assert (run.status, suite.server.count("POST")) == (0, 2)
    assert_nothing_is_left(suite, run)


SURVIVES = """
def test_a(anchor_session):
    errors = []
    for _ in range(3):
        try:
            anchor_session()
        except Exception as error:
            assert "died while it was asked to create" in str(error)
            errors.append(error)
    assert len(errors) <= 1
"""


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.005])
def test_after_the_answer(suite: Suite, delay: float):
    def answer_and_kill(handler: faults._Handler, act: Callable[[], faults.Answer]) -> None:
        pid = find_broker(suite)
        handler.send(*act())
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)

    suite.server.fail("POST", answer_and_kill)
    suite.write(SURVIVES)
    run = suite.run(reaper=True)
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert 2 <= suite.server.count("POST") <= 3
    assert_nothing_is_left(suite, run)


@pytest.mark.parametrize(("workers", "is_ended"), [(1, True), (0, False)], ids=["carried out", "not carried out"])
def test_during_the_delete(suite: Suite, workers: int, *, is_ended: bool):
    sent = hold(suite, "DELETE")
    if not is_ended:
        suite.server.fail("DELETE", faults.reset)
    suite.write(
        "def test_a(anchor_session):\n    anchor_session().end()\ndef test_b(anchor_session): anchor_session()\n"
    )
    process = suite.start(workers=workers, reaper=True)
    until(lambda: suite.server.count("DELETE"))
    kill_broker(suite)
    sent.set()
    run = suite.finish(process)
    assert (run.status, run.outcomes) == (0, {"passed": 2})
    assert_nothing_is_left(suite, run)


@pytest.mark.parametrize(("workers", "times"), [(2, 1), (0, 2)])
def test_during_the_last_sweep(suite: Suite, workers: int, times: int):
    kills = iter(range(times))

    def kill(handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer | None:
        if not (suite.folder / "finishing").exists():
            return faults.error(403)
        if next(kills, None) is None:
            return act()
        os.kill(find_broker(suite), signal.SIGKILL)
        handler.drop()
        return None

    suite.server.fail_always("DELETE", kill)
    suite.write(FINISHING, "conftest.py")
    suite.write(
        "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_a(anchor_session, n): anchor_session()\n"
    )
    run = suite.run(workers=workers, reaper=True)
    assert run.outcomes["passed"] == 4
    assert (run.status, next(kills, None)) == (0, None)
    assert "4 sessions created" in run.section
    assert_nothing_is_left(suite, run)


def test_a_broker_that_dies_as_often_as_it_sweeps_fails_the_run_which_names_what_is_left(suite: Suite):
    def kill(handler: faults._Handler, _act: Callable[[], faults.Answer]) -> None:
        os.kill(find_broker(suite), signal.SIGKILL)
        handler.drop()

    suite.server.fail_always("DELETE", kill)
    suite.write("def test_a(anchor_session): anchor_session()\n")
    run = suite.run(reaper=True)
    assert run.status == 1
    assert "the sweep did not take place" in run.section
    assert f"is on record in {suite.registry}" in run.section
    assert "python -m pytest_anchor sweep" in run.section
    suite.server.fail_always("DELETE", None)
    suite.write("def test_a(): pass\n")
    run = suite.run(reaper=True)
    assert (run.status, run.alive) == (0, [])
    suite.wait_for_quiet()
    suite.assert_settled()


def test_while_nothing_is_asked_of_it(suite: Suite):
    suite.write(
        KILL_BROKER + "import pytest\n"
        "@pytest.mark.parametrize('n', range(4))\n"
        "def test_a(anchor_session, n):\n"
        "    kept = anchor_session()\n"
        "    kill(find_broker())\n"
        "    anchor_session().end()\n"
        "    kept.end()\n"
        "    assert kept.ended\n"
    )
    run = suite.run(reaper=True)
    assert (run.status, run.outcomes) == (0, {"passed": 4})
    assert suite.server.count("POST") == 8
    assert "8 sessions created: 8 ended by the tests" in run.section
    assert_nothing_is_left(suite, run)


def test_a_slot_is_free_once_the_next_broker_has_ended_its_session(suite: Suite):
    suite.server.cap = 1
    suite.write(
        KILL_BROKER + "def test_a(anchor_session):\n"
        "    first = anchor_session()\n"
        "    kill(find_broker())\n"
        "    first.end()\n"
        "    anchor_session()\n"
    )
    before = time.monotonic()
    run = suite.run(reaper=True)
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert time.monotonic() - before < 20
    assert_nothing_is_left(suite, run)


@pytest.mark.parametrize(("option", "workers"), [("--anchor-end=background", 2), ("--anchor-prefetch=2", 0)])
def test_what_it_does_ahead_and_behind_is_not_lost(suite: Suite, option: str, workers: int):
    suite.write(
        FIND_BROKER + "import os, signal, pytest\n"
        "@pytest.mark.parametrize('n', range(6))\n"
        "def test_a(anchor_session, n):\n"
        "    anchor_session()\n"
        "    if n == 2:\n"
        "        os.kill(find_broker(), signal.SIGKILL)\n"
    )
    suite.server.fail_always("POST", faults.slow(0.2))
    suite.server.fail_always("DELETE", faults.slow(0.2))
    run = suite.run(option, workers=workers, reaper=True)
    # What another worker has asked it for at that moment fails.
    assert run.outcomes["passed"] >= 5 if workers else run.outcomes == {"passed": 6}
    assert run.status == ("failed" in run.outcomes)
    assert "failed" not in run.outcomes or DIED in run.out
    assert_nothing_is_left(suite, run)


def test_a_fork_of_the_run_outlives_it(suite: Suite):
    suite.write(
        KILL_BROKER + "import os, time\n"
        "def test_a(anchor_session):\n"
        "    anchor_session()\n"
        "    if os.fork() == 0:\n"
        "        anchor_session()\n"
        "        open('created', 'w').close()\n"
        "        time.sleep(2)\n"
        "        os._exit(0)\n"
        "    while not os.path.exists('created'): time.sleep(0.01)\n"
        "    kill(find_broker())\n"
        "    anchor_session()\n"
    )
    run = suite.run("-W", "ignore", reaper=True)
    assert (run.status, run.outcomes, run.alive) == (0, {"passed": 1}, [])
    assert_nothing_is_left(suite, run)


# Killed together with its run: the next one knows what is left.

WAITS = """
import os, time

def test_a(anchor_session):
    anchor_session()
    open("there", "w").close()
    while not os.path.exists("go"):
        time.sleep(0.02)
    anchor_session()
"""


def test_together_with_its_run(suite: Suite):
    suite.write(WAITS)
    process = suite.start(workers=2, reaper=True)
    until((suite.folder / "there").exists)
    kill_all(suite)
    suite.outcome(process)
    assert len(suite.alive) == 1
    (dead,) = suite.runs
    sockets = Path(socket_folder(dead.name))
    assert sockets.is_dir()
    suite.write("def test_b(): pass\n")
    run = suite.run_here()
    assert (run.status, run.alive) == (0, [])
    assert not sockets.exists()
    assert "1 session of the run that died" in run.section
    suite.wait_for_quiet()
    suite.assert_settled()


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_together_with_its_run_during_a_request(suite: Suite, method: str):
    sent = hold(suite, method)
    suite.write("def test_a(anchor_session): anchor_session()\n")
    process = suite.start(reaper=True)
    until(lambda: suite.server.count(method))
    kill_all(suite)
    suite.outcome(process)
    sent.set()
    until(lambda: len(suite.server.sessions) > len(suite.strangers) and not suite.server.busy)
    suite.write("def test_b(): pass\n")
    run = suite.run_here()
    assert (run.status, run.alive) == (0, [])
    suite.wait_for_quiet()
    suite.assert_settled()


def test_while_it_reaps(suite: Suite):
    suite.server.fail_always("DELETE", faults.silent)
    suite.write(WAITS)
    process = suite.start(reaper=True)
    until((suite.folder / "there").exists)
    process.kill()
    until(lambda: suite.server.count("DELETE"))
    kill_broker(suite)
    suite.outcome(process)
    suite.server.fail_always("DELETE", None)
    suite.write("def test_b(): pass\n")
    run = suite.run_here()
    assert (run.status, run.alive) == (0, [])
    suite.wait_for_quiet()
    suite.assert_settled()


# Stopped, and continued or killed.


UNREAD = (
    FIND_BROKER
    + STOP
    + """
import os, signal, threading, time

def test_a(anchor_session):
    first, pid = anchor_session(), find_broker()
    stop(pid)
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
    anchor_session()
    first.end()
"""
)


def test_what_a_broker_has_not_read_is_asked_of_the_next_one(suite: Suite):
    suite.write(UNREAD)
    run = suite.run(reaper=True)
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert suite.server.count("POST") == 2
    assert_nothing_is_left(suite, run)


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_stopped_and_continued_in_the_middle_of_a_request(suite: Suite, method: str):
    sent = hold(suite, method)
    suite.write("def test_a(anchor_session): anchor_session().end()\ndef test_b(anchor_session): anchor_session()\n")
    process = suite.start(reaper=True)
    until(lambda: suite.server.count(method))
    pid = find_broker(suite)
    stop(pid)
    sent.set()
    time.sleep(1.0)  # its test waits
    assert process.poll() is None
    os.kill(pid, signal.SIGCONT)
    run = suite.finish(process)
    assert (run.status, run.outcomes) == (0, {"passed": 2})
    assert suite.server.count("POST") == 2
    assert_nothing_is_left(suite, run)


def test_stopped_while_its_run_is_killed(suite: Suite):
    suite.write(WAITS)
    process = suite.start(reaper=True)
    until((suite.folder / "there").exists)
    pid = find_broker(suite)
    stop(pid)
    process.kill()
    process.wait()
    assert len(suite.alive) == 1
    os.kill(pid, signal.SIGCONT)
    until(lambda: not suite.alive, 5)
    suite.outcome(process)
    suite.wait_for_quiet()
    suite.assert_settled()


def test_a_second_ctrl_c_does_not_wait_for_a_broker_that_is_stopped(suite: Suite):
    suite.write(WAITS)
    suite.write(FINISHING, "conftest.py")
    process = suite.start("--anchor-sweep-timeout=2", reaper=True)
    until((suite.folder / "there").exists)
    pid = find_broker(suite)
    stop(pid)
    try:
        process.send_signal(signal.SIGINT)
        until((suite.folder / "finishing").exists)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        before = time.monotonic()
        run = suite.outcome(process)
        assert time.monotonic() - before < 15
    finally:
        os.kill(pid, signal.SIGCONT)
    assert run.status == 2
    assert "the sweep did not take place" in run.out + run.err
    until(lambda: not suite.alive, 10)
    suite.wait_for_quiet()


def test_the_record_of_a_run_names_each_creation_once(suite: Suite):
    """What two brokers wrote, one after the other, is one record."""
    suite.server.fail_always("DELETE", faults.status(403))
    suite.write(
        KILL_BROKER
        + "def test_a(anchor_session):\n    anchor_session()\n    kill(find_broker())\n    anchor_session()\n"
    )
    run = suite.run("--anchor-sweep-timeout=1")
    assert run.status == 1
    assert "2 sessions created: 2 leaked" in run.section
    assert all(session in run.section for session in suite.alive)
    (journal,) = suite.registry.glob("*/journal.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted(event["id"] for event in events if event["event"] == "created") == sorted(suite.alive)
