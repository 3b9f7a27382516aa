import os
import signal
import threading
import time
from contextlib import ExitStack

import pytest
from processes import descriptors, is_alive, read_line, script, status
from real_runs import until

from pytest_anchor.locks import has_owners, hold, is_held, owner_lock, wait_for_owners
from pytest_anchor.registry import Run

HOLD = """
import os, sys
from pytest_anchor.locks import hold
assert hold(sys.argv[1]) is not None
print("held", flush=True)
sys.stdin.read()
"""

JOIN = """
import os, sys
from pathlib import Path
from pytest_anchor.registry import Run
run = Run(Path(sys.argv[1]), sys.argv[2])
run.join()
if sys.argv[3:]:
    child = os.fork()
    if not child:
        os.setsid()
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
else:
    print("joined", flush=True)
sys.stdin.read()
"""


def waiter(folder):
    """A thread that waits for the owners, and when it had waited."""
    done = []
    thread = threading.Thread(target=lambda: (wait_for_owners(folder), done.append(time.monotonic())), daemon=True)
    thread.start()
    return thread, done


# hold and is_held


def test_a_lock_is_held_until_its_descriptor_is_closed(tmp_path):
    path = tmp_path / "x.lock"
    assert not is_held(path)
    fd = hold(path)
    assert is_held(path)
    os.close(fd)
    assert not is_held(path)
    assert path.exists()


def test_only_one_holds_a_lock(tmp_path):
    fd = hold(tmp_path / "x.lock")
    before = descriptors()
    assert hold(tmp_path / "x.lock") is None
    assert descriptors() == before
    os.close(fd)


def test_who_asks_is_not_mistaken_for_a_holder(tmp_path):
    path = tmp_path / "x.lock"
    path.touch()
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            is_held(path)

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for asker in askers:
        asker.start()
    try:
        assert not any(is_held(path) for _ in range(200))
        for _ in range(20):
            fd = hold(path)
            assert fd is not None
            os.close(fd)
    finally:
        stop.set()
        for asker in askers:
            asker.join(10)


def test_a_killed_holder_holds_nothing(tmp_path):
    path = tmp_path / "x.lock"
    with script(HOLD, path) as holder:
        assert read_line(holder) == "held\n"
        assert is_held(path)
        assert hold(path) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        assert not is_held(path)
    os.close(hold(path))


def test_a_stopped_holder_holds_its_lock(tmp_path):
    with script(HOLD, tmp_path / "x.lock") as holder:
        assert read_line(holder) == "held\n"
        holder.send_signal(signal.SIGSTOP)
        assert is_held(tmp_path / "x.lock")


def test_a_lock_is_private_and_not_inherited(tmp_path):
    mask = os.umask(0)
    try:
        fd = hold(tmp_path / "x.lock")
    finally:
        os.umask(mask)
    assert (tmp_path / "x.lock").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "x.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        hold(tmp_path / "x.lock")
    assert not is_held(tmp_path / "x.lock")
    assert not (tmp_path / "victim").exists()


# owners


def test_a_lock_file_that_nobody_holds_is_a_dead_owners(run):
    (run.folder / "gw0.owner").touch()
    assert not run.is_alive("gw0")
    assert has_owners(run.folder)  # this process
    run.leave()
    assert not has_owners(run.folder)


def test_other_locks_are_no_owners(tmp_path):
    fd = hold(tmp_path / "reaper.lock")
    assert not has_owners(tmp_path)
    wait_for_owners(tmp_path)
    os.close(fd)


def test_nobody_to_wait_for(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        assert not has_owners(folder)
        wait_for_owners(folder)


def test_asking_whether_an_owner_lives_does_not_make_it_look_alive(run):
    run.leave()
    assert [is_held(owner_lock(run.folder, "main")) for _ in range(3)] == [False] * 3
    run.join()


def test_a_killed_owner_is_dead_at_once_and_the_waiters_wake(tmp_path):
    folder = tmp_path / "reg" / "run"
    with ExitStack() as stack:
        owners = [stack.enter_context(script(JOIN, folder, name)) for name in ("gw0", "gw1")]
        assert [read_line(owner) for owner in owners] == ["joined\n"] * 2
        run = Run(folder, "main")
        assert run.is_alive("gw0")
        assert run.is_alive("gw1")
        waiters = [waiter(folder) for _ in range(2)]
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait(10)
        assert not run.is_alive("gw0")
        assert run.is_alive("gw1")
        assert has_owners(folder)
        assert not any(woken for _, woken in waiters)
        owners[1].send_signal(signal.SIGKILL)
        owners[1].wait(10)
        died = time.monotonic()
        for thread, woken in waiters:
            thread.join(10)
            assert woken[0] - died < 5
        assert not has_owners(folder)


def test_an_owner_that_comes_while_others_are_waited_for_is_waited_for_as_well(run):
    thread, woken = waiter(run.folder)
    other = Run(run.folder, "gw0")
    other.join()
    run.leave()
    thread.join(0.1)
    assert not woken
    other.leave()
    thread.join(10)
    assert woken


def test_a_waiter_does_nothing_until_it_is_woken(run):
    thread, woken = waiter(run.folder)

    def wakings():
        return int(status(thread.native_id)["voluntary_ctxt_switches"])

    until(lambda: status(thread.native_id)["State"].startswith("S"))
    thread.join(0.1)
    before = wakings()
    thread.join(0.4)
    assert wakings() - before <= 1
    assert not woken
    run.leave()
    thread.join(10)
    assert woken


def test_a_child_that_outlives_the_owner_that_forked_it_does_not_hold_its_lock(tmp_path):
    folder = tmp_path / "reg" / "run"
    with script(JOIN, folder, "main", "fork") as owner:
        child = int(read_line(owner))
        try:
            assert has_owners(folder)
            owner.send_signal(signal.SIGKILL)
            owner.wait(10)
            assert is_alive(child)
            assert not has_owners(folder)
        finally:
            os.kill(child, signal.SIGKILL)
