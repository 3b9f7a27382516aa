import os
import signal
import threading
import time

import pytest
from processes import descriptors, is_alive, script, status, stop
from real_runs import until

from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import (
    BROKER_LOCK,
    JOURNAL,
    JOURNAL_LOCK,
    REAPER_LOCK,
    SWEEP_LOCK,
    forget_process,
    hold,
    is_held,
    is_live,
    is_run,
    note_process,
    open_file,
    process_names,
    read_small,
    wait_until_over,
)

HOLD = """
import os, sys
from pytest_anchor.registry.locks import hold
assert hold(sys.argv[1]) is not None
print("held", flush=True)
sys.stdin.read()
"""

JOIN = """
import sys
from pathlib import Path
from pytest_anchor.registry.journal import Run
run = Run(Path(sys.argv[1]))
run.join()
print("joined", flush=True)
sys.stdin.read()
"""


def waiter(folder):
    """A thread that waits for the end of a run, and when it had waited."""
    done = []
    thread = threading.Thread(target=lambda: (wait_until_over(folder), done.append(time.monotonic())), daemon=True)
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
    for _ in range(50):
        assert hold(tmp_path / "x.lock") is None
    # One that was opened and kept each time would show, and what else this process opens or closes meanwhile does not.
    assert abs(descriptors() - before) < 25
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
        assert holder.stdout.readline() == "held\n"
        assert is_held(path)
        assert hold(path) is None
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
        assert not is_held(path)
    os.close(hold(path))


def test_a_stopped_holder_holds_its_lock(tmp_path):
    with script(HOLD, tmp_path / "x.lock") as holder:
        assert holder.stdout.readline() == "held\n"
        stop(holder.pid)
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


# files in a run's folder


def put_a_folder(path):
    path.mkdir()


def put_a_link(path):
    victim = path.with_name("victim")
    victim.write_text("precious")
    path.symlink_to(victim)


@pytest.fixture(params=[put_a_folder, put_a_link, os.mkfifo], ids=["folder", "link", "pipe"])
def not_a_file(request, tmp_path):
    request.param(tmp_path / "x")
    return tmp_path / "x"


def test_what_is_not_a_file_is_neither_opened_nor_read(not_a_file):
    before = descriptors()
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) * 25:
        with pytest.raises(OSError, match="not a file|symbolic link|directory|No such device"):
            open_file(not_a_file, flags)
    for _ in range(25):
        assert read_small(not_a_file) == ""
    assert abs(descriptors() - before) < 20  # as above
    victim = not_a_file.with_name("victim")
    assert not victim.exists() or victim.read_text() == "precious"


def test_a_small_file_is_read_whatever_is_in_it(tmp_path):
    assert read_small(tmp_path / "none") == ""
    (tmp_path / "x").write_bytes(b"a\xff")
    assert read_small(tmp_path / "x") == "a\ufffd"


def test_a_new_file_is_private_and_not_inherited(tmp_path):
    mask = os.umask(0)
    try:
        fd = open_file(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    finally:
        os.umask(mask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd)
    os.close(fd)


@pytest.mark.parametrize("name", [JOURNAL, JOURNAL_LOCK])
def test_a_folder_with_a_journal_or_its_lock_is_a_runs(tmp_path, name):
    assert not is_run(tmp_path)
    (tmp_path / BROKER_LOCK).touch()  # made before anything is known of the folder
    assert not is_run(tmp_path)
    (tmp_path / name).symlink_to("nowhere")
    assert is_run(tmp_path)


# a run and its broker


def test_a_run_lives_as_long_as_its_broker_holds_its_lock(run):
    assert run.is_live
    run.leave()
    assert (run.folder / BROKER_LOCK).exists()
    assert not run.is_live


def test_a_broker_that_reaps_serves_no_run(run):
    lock = hold(run.folder / REAPER_LOCK)
    assert not is_live(run.folder)
    os.close(lock)
    assert is_live(run.folder)


@pytest.mark.parametrize("name", [REAPER_LOCK, SWEEP_LOCK, JOURNAL_LOCK])
def test_other_locks_keep_no_run_alive(tmp_path, name):
    fd = hold(tmp_path / name)
    assert not is_live(tmp_path)
    wait_until_over(tmp_path)
    os.close(fd)


def test_without_a_run_there_is_nothing_to_wait_for(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        assert not is_live(folder)
        assert list(process_names(folder)) == []
        wait_until_over(folder)


def test_a_run_of_which_nothing_can_be_told_is_taken_for_a_live_one(tmp_path):
    assert is_live(tmp_path / ("x" * 300))


def test_asking_whether_a_run_lives_does_not_make_it_look_alive(run):
    run.leave()
    assert [is_live(run.folder) for _ in range(3)] == [False] * 3
    run.join()


def test_a_killed_broker_is_dead_at_once_and_the_waiters_wake(tmp_path):
    folder = tmp_path / "reg" / "run"
    with script(JOIN, folder) as broker:
        assert broker.stdout.readline() == "joined\n"
        waiters = [waiter(folder) for _ in range(2)]
        waiters[0][0].join(0.3)
        assert not any(woken for _, woken in waiters)
        assert is_live(folder)
        assert is_held(folder / BROKER_LOCK)
        broker.send_signal(signal.SIGKILL)
        broker.wait(10)
        died = time.monotonic()
        assert not is_live(folder)
        for thread, woken in waiters:
            thread.join(10)
            assert woken[0] - died < 5


def test_a_waiter_does_nothing_until_it_is_woken(run):
    thread, woken = waiter(run.folder)

    def wakings():
        return int(status(thread.native_id)["voluntary_ctxt_switches"])

    until(lambda: status(thread.native_id)["State"].startswith("S"))
    thread.join(0.1)
    before = wakings()
    thread.join(0.6)
    assert wakings() - before <= 1
    assert not woken
    run.leave()
    thread.join(10)
    assert woken


def test_waiters_keep_no_broker_from_its_lock(run):
    folder = run.folder
    waiters = [waiter(folder) for _ in range(3)]
    for thread, _ in waiters:
        until(lambda thread=thread: status(thread.native_id)["State"].startswith("S"))
    other = Run(folder)
    note_process(folder, "main", os.getpid())  # the run goes on
    run.leave()
    other.join()
    forget_process(folder, "main", os.getpid())
    waiters[0][0].join(0.4)
    assert not any(woken for _, woken in waiters)
    other.leave()
    for thread, woken in waiters:
        thread.join(10)
        assert woken


# the processes of a run, for when its broker was killed


SLEEP = """
import sys
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def process():
    with script(SLEEP) as process:
        assert process.stdout.readline() == "ready\n"
        yield process


def test_a_run_whose_broker_was_killed_lives_as_long_as_a_process_of_it(run, process):
    folder = run.folder
    note_process(folder, "gw0", process.pid)
    thread, woken = waiter(folder)
    run.leave()
    assert is_live(folder)
    assert list(process_names(folder)) == [("gw0", process.pid)]
    thread.join(0.5)
    assert not woken
    process.send_signal(signal.SIGKILL)
    until(lambda: not is_live(folder))  # as a zombie it is dead, too
    assert list(process_names(folder)) == []
    assert status(process.pid)["State"].startswith("Z")
    thread.join(10)
    assert woken


def test_a_run_that_is_reaped_lives_on_with_a_process(run, process):
    lock = hold(run.folder / REAPER_LOCK)
    note_process(run.folder, "gw0", process.pid)
    assert is_live(run.folder)
    os.close(lock)


def test_a_process_that_left_is_forgotten(run, process):
    run.leave()
    note_process(run.folder, "gw0", process.pid)
    note_process(run.folder, "gw1", process.pid)
    forget_process(run.folder, "gw0", process.pid)
    assert list(process_names(run.folder)) == [("gw1", process.pid)]
    forget_process(run.folder, "gw1", process.pid)
    forget_process(run.folder, "gw1", process.pid)  # again does nothing
    assert not is_live(run.folder)
    assert is_alive(process.pid)


def test_a_processs_name_may_have_dots(run):
    note_process(run.folder, "gw0.on.a.machine", os.getpid())
    assert list(process_names(run.folder)) == [("gw0.on.a.machine", os.getpid())]


def test_a_note_is_private_and_follows_no_link(run, tmp_path):
    mask = os.umask(0)
    try:
        note_process(run.folder, "main", 1)
    finally:
        os.umask(mask)
    assert (run.folder / "main.1.pid").stat().st_mode & 0o777 == 0o600
    (run.folder / "main.2.pid").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        note_process(run.folder, "main", 2)
    assert not (tmp_path / "victim").exists()


def test_a_pid_that_was_given_to_another_process_is_not_the_runs(run):
    run.leave()
    note_process(run.folder, "main", os.getpid())
    note = run.folder / f"main.{os.getpid()}.pid"
    pid, started = note.read_text().split()
    assert pid == str(os.getpid())
    note.write_text(f"{pid} {int(started) - 1}")
    assert not is_live(run.folder)
    note.write_text(f"{pid} {started}")
    assert is_live(run.folder)


def test_a_process_that_was_dead_when_it_was_noted_is_dead(run, process):
    run.leave()
    process.kill()
    process.wait(10)
    note_process(run.folder, "gw0", process.pid)
    assert not is_live(run.folder)


@pytest.mark.parametrize("content", ["", " ", "x", "1", "0 1", "-1 1", "٣ 1", "9" * 30 + " 1", "1 x", "\x00"])
def test_a_note_that_says_nothing_is_about_no_process(run, content):
    run.leave()
    (run.folder / "main.1.pid").write_text(content)
    assert not is_live(run.folder)
    assert list(process_names(run.folder)) == []


@pytest.mark.parametrize("name", [".pid", "x.pid", "main..pid", "main.x.pid"])
def test_a_note_without_a_pid_in_its_name_names_no_process(run, name):
    note_process(run.folder, "main", os.getpid())
    (run.folder / f"main.{os.getpid()}.pid").rename(run.folder / name)
    assert list(process_names(run.folder)) == []


@pytest.mark.parametrize("put", [put_a_folder, put_a_link, os.mkfifo])
def test_what_is_not_a_note_keeps_no_run_alive(run, put):
    run.leave()
    put(run.folder / "main.1.pid")
    assert not is_live(run.folder)
