"""The processes of a run, as the kernel tells the broker of them: each is a real one."""

import os
import select
import signal
import threading
import time

import pytest
from processes import children, descriptors, is_alive, script, status, stop
from real_runs import until

from pytest_anchor.broker import processes as module
from pytest_anchor.broker.processes import Process, Processes

WAIT = """
import sys
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(params=["pidfd", "polled"])
def told(request, monkeypatch):
    """By the kernel, or where it does not tell, by asking again and again."""
    if request.param == "polled":
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.delattr(select, "kqueue", raising=False)
        monkeypatch.setattr(module, "POLL_INTERVAL", 0.02)
    return request.param


@pytest.fixture
def gone():
    return []


@pytest.fixture
def watched(gone):
    return Processes(lambda process: gone.append((process, time.monotonic())))


@pytest.fixture
def start():
    """A process that lives until it is told otherwise."""
    with_scripts = []

    def start(code=WAIT, *arguments):
        context = script(code, *arguments)
        process = context.__enter__()
        with_scripts.append(context)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for context in with_scripts:
        context.__exit__(None, None, None)


def names(gone):
    return [process.name for process, _ in gone]


# deaths


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_death_is_told_at_once_and_once(told, watched, gone, start, number):
    process = start()
    gw0 = Process("gw0", process.pid)
    assert watched.add(gw0)
    assert watched.living == {gw0}
    assert watched.lives("gw0")
    assert not watched.lives("gw1")
    process.send_signal(number)
    killed = time.monotonic()
    until(lambda: gone)
    assert gone[0][0] == gw0
    assert gone[0][1] - killed < 5
    assert status(process.pid)["State"].startswith("Z")  # its parent, which is this process, has not asked yet
    assert watched.living == set()
    assert not watched.lives("gw0")
    process.wait(10)
    time.sleep(0.1)
    assert len(gone) == 1


def test_a_process_that_ends_by_itself_is_over(told, watched, gone, start):
    process = start()
    watched.add(Process("main", process.pid))
    process.stdin.write("\n")
    process.stdin.flush()
    process.wait(10)
    until(lambda: gone)


def test_a_process_that_is_dead_when_it_is_added_is_told_as_well(told, watched, gone, start):
    process = start()
    process.kill()
    assert watched.add(Process("zombie", process.pid))
    until(lambda: names(gone) == ["zombie"])
    process.wait(10)
    assert watched.add(Process("nothing", process.pid))
    until(lambda: names(gone) == ["zombie", "nothing"])


def test_a_living_process_is_not_over(told, watched, gone, start):
    process = start()
    watched.add(Process("main", process.pid))
    stop(process.pid)
    time.sleep(0.3)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.1)
    assert gone == []
    assert watched.lives("main")


EXEC = """
import os, sys
os.execv(sys.executable, [sys.executable, "-c", "import sys; print('ready', flush=True); sys.stdin.readline()"])
"""


def test_a_process_that_becomes_another_program_lives(told, watched, gone, start):
    process = start(f'import sys\nprint("ready", flush=True)\nsys.stdin.readline(){EXEC}')
    watched.add(Process("main", process.pid))
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    assert gone == []
    process.kill()
    until(lambda: gone)


FORK = """
import os, sys
child = os.fork()
if not child:
    os.setsid()
print("ready", flush=True)
sys.stdin.readline() if child else __import__("signal").pause()
"""


def test_a_forked_child_neither_keeps_its_parent_alive_nor_makes_it_look_dead(told, watched, gone, start):
    process = start(FORK)
    until(lambda: children(process.pid))
    (child,) = children(process.pid)
    watched.add(Process("main", process.pid))
    other = start(FORK)
    until(lambda: children(other.pid))
    (others_child,) = children(other.pid)
    watched.add(Process("gw0", other.pid))
    try:
        os.kill(others_child, signal.SIGKILL)
        process.kill()
        until(lambda: gone)
        assert is_alive(child)
        time.sleep(0.1)
        assert names(gone) == ["main"]
    finally:
        os.kill(child, signal.SIGKILL)


def test_two_of_one_name_are_two(told, watched, gone, start):
    one, other = start(), start()
    watched.add(Process("gw0", one.pid))
    watched.add(Process("gw0", other.pid))
    one.kill()
    until(lambda: gone)
    assert watched.lives("gw0")
    assert watched.living == {Process("gw0", other.pid)}


def test_a_process_that_is_not_ones_own_is_watched(told, watched, gone):
    """A child of a child, which this process may not wait for."""
    with script(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.readline()'], stdin=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "child.kill(); child.wait()\n"
        "print('killed', flush=True)\n"
        "sys.stdin.readline()\n"
    ) as parent:
        pid = int(parent.stdout.readline())
        watched.add(Process("gw0", pid))
        time.sleep(0.1)
        assert gone == []
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "killed\n"
        until(lambda: gone)


# who said goodbye


def test_a_process_that_said_goodbye_is_over_though_it_lives(told, watched, gone, start):
    process = Process("main", start().pid)
    watched.add(process)
    assert watched.remove(process)
    assert watched.living == set()
    assert not watched.remove(process)
    assert not watched.add(process)  # it is no part of the run any more
    assert watched.living == set()
    time.sleep(0.1)
    assert gone == []


def test_its_death_is_no_news(told, watched, gone, start):
    process = start()
    main, gw0 = Process("main", process.pid), Process("gw0", start().pid)
    for one in (main, gw0):
        watched.add(one)
    watched.remove(main)
    process.kill()
    process.wait(10)
    time.sleep(0.2)
    assert gone == []
    assert watched.living == {gw0}


def test_goodbye_of_a_process_that_is_not_known_is_no_news(watched, start):
    process = Process("main", start().pid)
    assert not watched.remove(process)
    assert not watched.add(process)


# cost


def test_to_add_a_process_again_watches_it_no_second_time(watched, gone, start):
    process = start()
    for _ in range(5):
        assert watched.add(Process("main", process.pid))
    assert [one.name for one in threading.enumerate()].count(f"watch-{process.pid}") == 1
    process.kill()
    until(lambda: gone)
    time.sleep(0.1)
    assert len(gone) == 1


def test_a_watch_does_nothing_until_the_death_and_leaves_nothing(watched, gone, start):
    before = descriptors()
    process = start()
    watched.add(Process("main", process.pid))
    (thread,) = [one for one in threading.enumerate() if one.name == f"watch-{process.pid}"]
    until(lambda: status(thread.native_id)["State"].startswith("S"))
    wakings = int(status(thread.native_id)["voluntary_ctxt_switches"])
    time.sleep(0.5)
    assert int(status(thread.native_id)["voluntary_ctxt_switches"]) - wakings <= 1
    process.kill()
    thread.join(10)
    assert not thread.is_alive()
    assert len(gone) == 1
    process.communicate(timeout=10)
    assert descriptors() <= before


def test_where_pidfds_are_forbidden_it_is_asked_again_and_again(watched, gone, start, monkeypatch):
    def forbidden(_pid):
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", forbidden)
    monkeypatch.setattr(module, "POLL_INTERVAL", 0.02)
    process = start()
    watched.add(Process("main", process.pid))
    time.sleep(0.2)
    assert gone == []
    process.kill()
    process.wait(10)
    until(lambda: gone)
