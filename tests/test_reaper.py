"""The reaper as a process of its own, whose runs are processes that tests kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import fault_server as fs
import pytest
from fault_server import KEY
from processes import CHECKOUT, is_alive, read_all, read_line, script, status
from real_runs import Suite, processes_in, until

from pytest_anchor import reaper, sweep
from pytest_anchor.locks import hold, is_held
from pytest_anchor.reaper import LOG, is_watching, problem
from pytest_anchor.recover import recover_all
from pytest_anchor.registry import Run
from pytest_anchor.session import Owner

OWNER = """
import json, sys
from pathlib import Path
from pytest_anchor.session import Owner
from pytest_anchor.settings import Settings
owner = Owner(Settings.of_worker(json.loads(sys.argv[1]), Path()))
sessions = []
for line in sys.stdin:
    if line == "create\\n":
        sessions.append(owner.create({}, "t.py::x"))
        print(sessions[-1].id, flush=True)
    else:
        for session in sessions:
            session.end()
        owner.close()
        print("left", flush=True)
"""


class Process:
    """A run's process that creates sessions, and can be killed."""

    def __init__(self, process):
        self.process = process
        self.pid = process.pid

    def ask(self, word):
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def answer(self):
        return read_line(self.process).strip()

    def create(self):
        self.ask("create")
        return self.answer()

    def leave(self):
        """End the sessions, and the part in the run."""
        self.ask("leave")
        assert self.answer() == "left"

    def kill(self):
        """Kill it: when it was dead."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        return time.monotonic()


@pytest.fixture
def folder(settings):
    return settings.folder


@pytest.fixture
def reapers(folder):
    """The pids of the run's reapers that live; what is left of them at the end is killed."""

    def reapers():
        return [pid for pid, command in processes_in(folder).items() if "pytest_anchor.reaper" in command]

    yield reapers
    for pid in reapers():
        os.kill(pid, signal.SIGKILL)
    until(lambda: not reapers())


@pytest.fixture
def start(settings, monkeypatch, reapers):
    """Start a process of the run."""
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", KEY)
    with ExitStack() as stack:

        def start(name="main"):
            values = settings._replace(reaper=True).for_worker(name)
            return Process(stack.enter_context(script(OWNER, json.dumps(values))))

        yield start


def log(folder):
    return (folder / LOG).read_text()


def argv_and_environment(pid):
    return b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))


# it starts


def test_it_watches_before_the_first_session_is_created(server, folder, start, reapers):
    seen = []
    server.fail("POST", lambda _handler, act: seen.append((is_watching(folder), len(reapers()))) or act())
    start().create()
    assert seen == [(True, 1)]
    assert problem(folder) == ""


def test_owners_that_come_at_the_same_time_share_one(folder, start, reapers):
    owners = [start(name) for name in ("main", "gw0", "gw1")]
    for owner in owners:
        owner.ask("create")
    assert all(owner.answer() for owner in owners)
    assert len(reapers()) == 1
    assert problem(folder) == ""


def test_later_creations_use_the_one_that_there_is(start, reapers):
    owner = start()
    owner.create()
    first = reapers()
    owner.create()
    start("gw0").create()
    assert reapers() == first


def test_a_killed_one_is_replaced_at_the_next_creation(server, folder, start, reapers):
    owner = start()
    owner.create()
    (first,) = reapers()
    os.kill(first, signal.SIGKILL)
    until(lambda: not status(first))  # nor is it a zombie
    assert not is_watching(folder)
    owner.create()
    (second,) = reapers()
    assert second != first
    owner.kill()
    until(lambda: not server.alive)


def test_without_it_there_is_none(settings, reapers, quick):
    owner = Owner(settings)
    owner.create({}, "t").end()
    assert reapers() == []
    owner.close()


def test_it_is_in_a_session_of_its_own(start, reapers):
    start().create()
    (pid,) = reapers()
    assert os.getsid(pid) == os.getpgid(pid) == pid


@pytest.fixture
def by_hand(run):
    """Start a reaper of the run directly, with Python's own options."""
    told = json.dumps({"run_id": "r1", "base_url": "http://127.0.0.1:1", "key": KEY, "remove": False})
    with ExitStack() as stack:

        def by_hand(*options):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, *options, "-m", "pytest_anchor.reaper", str(run.folder)],
                    env={"PYTHONPATH": str(CHECKOUT)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            process.stdin.write(f"{told}\n")
            process.stdin.close()
            return process

        yield by_hand


def test_it_says_that_it_watches_once_it_holds_its_lock(run, by_hand):
    process = by_hand()
    assert read_line(process) == "watching\n"
    assert is_held(run.folder / "reaper.lock")
    assert process.poll() is None


def test_it_says_nothing_and_goes_where_another_one_holds_the_lock(run, by_hand):
    lock = hold(run.folder / "reaper.lock")
    process = by_hand()
    assert read_all(process, process.stdout) == ""
    assert process.wait(10) == 0
    assert is_watching(run.folder)
    os.close(lock)


def test_it_waits_for_the_key_before_it_watches(run):
    with subprocess.Popen(
        [sys.executable, "-m", "pytest_anchor.reaper", str(run.folder)],
        env={"PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        time.sleep(0.2)
        assert not is_watching(run.folder)
        process.kill()


# it waits


HEAVY = {"requests", "urllib3", "filelock", "pytest", "json", "ssl", "subprocess", "pathlib", "dataclasses"}


def test_it_imports_next_to_nothing_while_it_waits(run, by_hand):
    process = by_hand("-X", "importtime")
    assert read_line(process) == "watching\n"
    until(lambda: status(process.pid)["State"].startswith("S"))
    assert is_watching(run.folder)
    process.kill()
    imported = {
        line.rpartition("|")[2].strip() for line in read_all(process, process.stderr).splitlines() if "|" in line
    }
    assert "pytest_anchor.locks" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()


def test_it_costs_next_to_nothing_while_it_waits(start, reapers, monkeypatch):
    for name in os.environ:
        if name.startswith("COV"):  # a measurement of coverage is no part of it
            monkeypatch.delenv(name)
    start().create()
    (pid,) = reapers()
    until(lambda: status(pid)["State"].startswith("S"))
    before = status(pid)
    assert int(before["VmRSS"].split()[0]) < 15_000  # kB
    assert before["Threads"] == "1"
    time.sleep(1.0)
    switches = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
    assert sum(int(status(pid)[name]) - int(before[name]) for name in switches) <= 1


def test_the_key_is_nowhere_to_be_seen(folder, start, reapers):
    owner = start()
    owner.create()
    (pid,) = reapers()
    assert b"pytest_anchor.reaper" in argv_and_environment(pid)
    assert KEY.encode() not in argv_and_environment(pid)
    owner.kill()
    until(lambda: not reapers())
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert folder / LOG in files
    assert not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_everybody_does_not_end_it(server, folder, start, reapers, number):
    owner = start()
    owner.create()
    (pid,) = reapers()
    for _ in range(3):
        os.kill(pid, number)
    assert is_alive(pid)
    assert is_watching(folder)
    owner.kill()
    until(lambda: not server.alive)


# it goes


def test_a_run_that_ended_well_lets_it_go_without_a_request(server, folder, start, reapers):
    owners = [start(name) for name in ("main", "gw0")]
    for owner in owners:
        owner.create()
    requests = len(server.requests)
    owners[0].leave()
    assert reapers()
    owners[1].leave()
    until(lambda: not reapers())
    assert len(server.requests) == requests + 2  # the two ends
    assert log(folder) == ""


def test_it_leaves_no_zombie_when_it_goes_before_the_run(start, reapers):
    owner = start()
    owner.create()
    (pid,) = reapers()
    owner.leave()
    until(lambda: not status(pid))
    assert is_alive(owner.pid)


def test_a_folder_that_is_gone_has_nothing_to_be_reaped(server, folder, start, reapers):
    owner = start()
    owner.create()
    shutil.rmtree(folder)
    requests = len(server.requests)
    owner.kill()
    until(lambda: not reapers())
    assert not folder.exists()
    assert len(server.requests) == requests


# it sweeps


def test_it_sweeps_within_two_seconds_of_the_last_owners_death_and_not_before(server, start, reapers):
    owners = [start(name) for name in ("main", "gw0")]
    ids = [owner.create() for owner in owners]
    stranger = server.add()
    owners[0].kill()
    time.sleep(0.5)
    assert server.count("DELETE") == 0
    died = owners[1].kill()
    until(lambda: server.alive == [stranger])
    assert max(server.sessions[one].ended for one in ids) - died < 2
    until(lambda: not reapers())


def test_what_it_did_is_in_its_log_and_on_record(server, folder, start, reapers, settings):
    owner = start("gw7")
    ids = [owner.create(), owner.create()]
    server.end(ids[1])
    owner.kill()
    until(lambda: not reapers())
    lines = [line.partition("Z ")[2] for line in log(folder).splitlines()]
    assert lines == [
        "no process of the run is left: 2 sessions open",
        f"{ids[0]} of t.py::x [gw7]: ended",
        f"{ids[1]} of t.py::x [gw7]: already over",
        "done",
    ]
    (recovery,) = recover_all(settings._replace(folder=folder.parent / "next"))
    assert [record.id for record in recovery.reaped] == ids
    assert recovery.ended == []
    assert not folder.exists()


def test_a_creation_that_the_run_died_in_is_found_though_it_shows_up_late(server, folder, start, reapers):
    server.list_delay = 1.5

    def create_and_say_nothing(handler, act):
        act()
        fs.silent(handler, act)

    server.fail("POST", create_and_say_nothing)
    owner = start()
    owner.ask("create")
    until(lambda: server.alive)
    owner.kill()
    until(lambda: not server.alive)
    until(lambda: not reapers())
    assert server.count("GET") > 1
    assert log(folder).endswith("done\n")


def test_it_goes_on_while_the_api_is_in_trouble(server, folder, start, reapers):
    server.fail("DELETE", *[fs.status(500)] * 5)
    owner = start()
    owner.create()
    owner.kill()
    until(lambda: not server.alive)
    until(lambda: not reapers())
    assert server.count("DELETE") == 6
    assert log(folder).endswith("done\n")


def test_it_gives_up_where_the_api_refuses_the_key(server, folder, start, reapers):
    owner = start()
    session_id = owner.create()
    server.keys.clear()
    owner.kill()
    until(lambda: not reapers(), 10)
    assert server.alive == [session_id]
    assert f"{session_id} of t.py::x: HTTP 401: “Invalid API Key" in log(folder)
    assert log(folder).endswith("given up, and left to the next run: 1 session open\n")
    assert Run(folder, "reader").read().records.popitem()[1].open


def test_it_waits_for_who_sweeps_the_run_already(server, folder, start, reapers):
    next_run = Run(folder, "recovery")
    owner = start()
    owner.create()
    assert next_run.claim()
    owner.kill()
    time.sleep(0.3)
    assert server.count("DELETE") == 0
    assert reapers()
    next_run.release()
    until(lambda: not server.alive)


def test_its_budget_is_kept(server, settings, quick, monkeypatch, capsys):
    monkeypatch.setattr(reaper, "BUDGET", 0.5)
    monkeypatch.setattr(sweep, "LONG_PAUSES", (0.05,))
    owner = Owner(settings)
    session = owner.create({}, "t")
    owner.close()
    server.fail_always("DELETE", fs.status(500))
    told = {"run_id": "r1", "base_url": server.url, "key": KEY, "remove": True}
    before = time.monotonic()
    reaper._reap(str(settings.folder), json.dumps(told))
    assert 0.3 < time.monotonic() - before < 10
    assert "given up, and left to the next run: 1 session open" in capsys.readouterr().err
    assert server.alive == [session.id]
    assert settings.folder.exists()


# it does not start


@pytest.fixture
def unwatched(settings, quick):
    owner = Owner(settings._replace(reaper=True))
    yield owner
    owner.close()


def test_the_run_goes_on_without_it(server, folder, unwatched, monkeypatch):
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    session = unwatched.create({}, "t")
    assert problem(folder) == "No such file or directory"
    assert not is_watching(folder)
    assert server.alive == [session.id]
    session.end()


def test_it_is_told_in_its_own_last_words(folder, unwatched):
    unwatched.join()
    (folder / "reaper.lock").mkdir()
    unwatched.create({}, "t").end()
    assert problem(folder) == f"IsADirectoryError: [Errno 21] Is a directory: '{folder}/reaper.lock'"


def test_what_does_not_start_in_time_is_killed_and_not_tried_again(folder, unwatched, reapers, monkeypatch):
    monkeypatch.setattr(reaper, "START_TIMEOUT", 0.0)
    unwatched.create({}, "t").end()
    assert problem(folder) == "it did not say why"
    assert reapers() == []
    monkeypatch.undo()
    unwatched.create({}, "t").end()
    assert reapers() == []


def test_a_run_without_a_problem_has_none(tmp_path):
    assert problem(tmp_path) == ""
    assert problem(tmp_path / "none") == ""


# with pytest


@pytest.fixture
def suite(server, tmp_path):
    suite = Suite(tmp_path, server)
    suite.write("def test_a(anchor_session): anchor_session()")
    yield suite
    suite.wait_for_quiet()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_ends_well_does_not_speak_of_it_and_leaves_nothing(suite, workers):
    run = suite.run(reaper=True, workers=workers)
    assert (run.status, run.section) == (0, "1 session created: 1 at teardown\n")
    assert not run.recorded
    suite.wait_for_quiet()
    assert suite.server.count("GET") <= 1  # the sweep's own list


@pytest.mark.slow
def test_a_run_says_that_it_has_none(suite):
    suite.write("import sys\nsys.executable = '/nowhere/python'\n", "conftest.py")
    run = suite.run(reaper=True)
    assert run.status == 0
    assert run.section == (
        "1 session created: 1 at teardown\n"
        "the run went on without a reaper, which did not start: No such file or directory\n"
    )
    assert not run.recorded


@pytest.mark.slow
def test_what_the_sweep_could_not_end_is_left_to_it(suite, server):
    server.fail_always("DELETE", fs.status(500))
    run = suite.run("--anchor-sweep-timeout=0.2", reaper=True)
    assert run.status == 1
    (folder,) = suite.runs
    assert f"the reaper goes on trying; it writes to {folder / LOG}\n" in run.section
    server.fail_always("DELETE", None)
    until(lambda: not suite.alive)
