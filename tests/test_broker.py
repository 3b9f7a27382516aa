"""The broker as a process of its own, started by processes of a run that tests kill."""

import json
import os
import shutil
import signal
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import fault_server as fs
import pytest
from fault_server import KEY
from forked import forked_script
from killable import PROCESS, Process, kill_broker, log, states
from processes import children, is_alive, script, status, stop
from real_runs import Suite, processes_in, until

from pytest_anchor.broker.reaper import REAPER_LOG
from pytest_anchor.cleanup.recovery import recover_all
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import BROKER_LOCK, REAPER_LOCK, is_held, is_live, process_names

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(settings):
    return settings.folder


@pytest.fixture
def brokers(settings):
    """The pids of the run's brokers that live; what is left of them at the end is killed."""

    def brokers():
        found = processes_in(settings.folder)
        return [pid for pid, command in found.items() if "pytest_anchor.broker" in command and is_alive(pid)]

    yield brokers
    for pid in brokers():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not brokers())
    shutil.rmtree(settings.socket_folder, ignore_errors=True)


@contextmanager
def starting(settings, monkeypatch, script):
    monkeypatch.setenv("ANCHORBROWSER_API_KEY", KEY)
    with ExitStack() as stack:

        def start(name="main", *, reaper=True, **changes):
            values = settings._replace(**{"reaper": reaper, "main_pid": 0, **changes}).for_worker(name)
            return Process(stack.enter_context(script(PROCESS, json.dumps(values))))

        yield start


@pytest.fixture
def start(settings, monkeypatch, brokers):
    """Have a process of the run; the first is the run's main one."""
    with starting(settings, monkeypatch, forked_script) as start:
        yield start


@pytest.fixture
def really_start(settings, monkeypatch, brokers):
    """As `start`, with interpreters of their own, the broker's too: for what a process has from its start."""
    with starting(settings, monkeypatch, script) as start:
        yield start


# it starts


def test_it_holds_its_lock_and_knows_the_process_before_the_first_session_is_created(server, folder, start, brokers):
    seen = []

    def look(_handler, act):
        seen.append((is_held(folder / BROKER_LOCK), list(process_names(folder)), len(brokers())))
        return act()

    server.fail("POST", look)
    process = start()
    process.create()
    assert seen == [(True, [("main", process.pid)], 1)]


def test_processes_that_come_at_the_same_time_share_one(server, start, brokers):
    processes = [start(name) for name in ("main", "gw0", "gw1", "gw2")]
    for process in processes:
        process.ask("create")
    assert {process.answer() for process in processes} == set(server.alive)
    assert len(brokers()) == 1


def test_later_creations_use_the_one_that_there_is(start, brokers):
    process = start()
    process.create()
    first = brokers()
    process.create()
    start("gw0").create()
    assert brokers() == first


def test_it_is_in_a_session_of_its_own_and_a_child_of_no_test_process(really_start, brokers):
    process = really_start()
    process.do("umask")
    process.create()
    (pid,) = brokers()
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert children(process.pid) == []
    assert status(pid)["Umask"] == "0022"
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


def test_it_holds_no_descriptor_of_the_process_that_started_it(really_start, brokers, tmp_path):
    process = really_start()
    process.create()
    (pid,) = brokers()
    mine = {Path(f"/proc/{process.pid}/fd/{n}").readlink() for n in range(3)}
    theirs = {one.readlink() for one in Path(f"/proc/{pid}/fd").iterdir()}
    assert mine & theirs == set()


def test_the_key_is_nowhere_to_be_seen(settings, folder, really_start, brokers):
    process = really_start()
    process.create()
    (pid,) = brokers()
    shown = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    assert b"pytest_anchor.broker" in shown
    assert KEY.encode() not in shown
    looked = [path for path in Path(settings.socket_folder).rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in looked)
    process.kill()
    until(lambda: not brokers())
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert folder / REAPER_LOG in files
    assert not any(KEY.encode() in path.read_bytes() for path in files)


# it waits


def test_it_costs_next_to_nothing_while_it_waits(really_start, brokers, monkeypatch):
    for name in os.environ:
        if name.startswith("COV"):  # a measurement of coverage is no part of it
            monkeypatch.delenv(name)
    process = really_start()
    process.create()
    (pid,) = brokers()
    tasks = Path(f"/proc/{pid}/task")
    names = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")

    def switches():
        found = (status(f"{pid}/task/{task.name}") for task in tasks.iterdir())
        return sum(int(one[name]) for one in found for name in names)

    until(lambda: all(status(f"{pid}/task/{task.name}")["State"].startswith("S") for task in tasks.iterdir()))
    assert int(status(pid)["VmRSS"].split()[0]) < 60_000  # kB
    assert len(list(tasks.iterdir())) <= 6
    before = switches()
    time.sleep(1.0)
    assert switches() - before <= 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_to_everybody_does_not_end_it(server, start, brokers, number):
    process = start()
    process.create()
    (pid,) = brokers()
    for _ in range(3):
        os.kill(pid, number)
    time.sleep(0.1)
    assert is_alive(pid)
    process.create()
    process.kill()
    until(lambda: not server.alive)


# it goes


def test_a_run_that_ended_well_lets_it_go(server, settings, folder, start, brokers):
    processes = [start(name) for name in ("main", "gw0")]
    for process in processes:
        process.create()
    processes[1].leave()
    assert brokers()
    report = json.loads(processes[0].do("sweep"))
    assert report["lines"][0][0] == "2 sessions created: 1 at teardown, 1 by the sweep"
    requests = len(server.requests)
    processes[0].leave()
    assert not folder.exists()
    until(lambda: not brokers())
    assert len(server.requests) == requests
    assert not folder.exists()
    assert not Path(settings.socket_folder).exists()
    assert is_alive(processes[0].pid)


def test_a_run_without_a_last_sweep_gets_one_look(server, folder, start, brokers):
    """It said goodbye, but asked for no sweep: its sessions are over, and nobody has looked whether others are."""
    process = start()
    session_id = process.create()
    twin = server.add(*server.sessions[session_id].tags)
    process.leave()
    until(lambda: not brokers())
    assert server.alive == []
    assert server.count("DELETE", f"/v1/sessions/{twin}") == 1
    assert 1 <= server.count("GET") <= 2  # the second one where it has found something
    assert log(folder).endswith("done\n")


def test_a_run_that_created_nothing_leaves_nothing_and_asks_nothing(server, settings, folder, start, brokers):
    server.fail("POST", fs.status(403))
    process = start()
    assert process.create().startswith("AnchorAPIError")
    server.requests.clear()
    process.kill()
    until(lambda: not brokers())
    assert server.requests == []
    assert not Path(settings.socket_folder).exists()


# a process of the run dies


def test_what_a_dead_process_left_is_ended_at_once_and_what_others_use_is_not(server, folder, start):
    processes = [start(name) for name in ("main", "gw0")]
    ids = [process.create() for process in processes]
    died = processes[1].kill()
    until(lambda: server.alive == ids[:1])
    assert server.sessions[ids[1]].ended - died < 2
    until(lambda: states(folder) == ["open", "ended"])
    assert list(process_names(folder)) == [("main", processes[0].pid)]
    assert processes[0].create() in server.alive
    report = json.loads(processes[0].do("sweep"))
    assert report["lines"][0][0] == "3 sessions created: 3 by the sweep"


def test_what_a_dead_process_was_creating_is_ended(server, start):
    main, worker = start(), start("gw0")
    main.create()
    server.fail("POST", fs.slow(1.0))
    worker.ask("create")
    until(lambda: server.count("POST") == 2)
    worker.kill()
    until(lambda: len(server.sessions) == 2 and len(server.alive) == 1)
    assert server.count("POST") == 2


def test_a_dead_process_waits_for_nothing_any_more(server, start):
    main, worker = start(max_sessions=1), start("gw0", max_sessions=1)
    main.create()
    worker.ask("create")
    time.sleep(0.5)
    worker.kill()
    assert main.do("end") == "[]"
    main.create()
    assert server.count("POST") == 2
    assert len(server.alive) == 1


def test_the_slots_of_a_dead_process_are_free_once_its_sessions_are_over(server, start):
    main, worker = start(max_sessions=1), start("gw0", max_sessions=1)
    worker.create()
    main.ask("create")
    time.sleep(0.3)
    assert len(server.alive) == 1
    worker.kill()
    assert main.answer() in server.alive
    assert len(server.alive) == 1


def test_what_a_dead_process_created_without_an_answer_is_ended(server, start):
    main, worker = (start(name, create_retries=0) for name in ("main", "gw0"))
    mine = main.create()
    server.fail("POST", fs.lost_reset)
    assert "AnchorLostCreateError" in worker.do("create")
    time.sleep(0.5)  # nobody looks for it before the process is dead, or the run over
    assert len(server.alive) == 2
    worker.kill()
    until(lambda: server.alive == [mine])


def test_a_forked_child_neither_keeps_its_parent_alive_nor_makes_it_look_dead(server, start, brokers):
    main, worker = start(), start("gw0")
    mine = main.create()
    worker.create()
    child = int(worker.do("fork"))
    others_child = int(main.do("fork"))
    try:
        os.kill(others_child, signal.SIGKILL)
        worker.kill()
        until(lambda: server.alive == [mine])
        assert is_alive(child)
        time.sleep(0.2)
        assert server.alive == [mine]
        main.kill()
        until(lambda: not server.alive)
        until(lambda: not brokers())
        assert is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_stopped_process_lives(server, start):
    main, worker = start(), start("gw0")
    main.create()
    worker.create()
    stop(worker.process.pid)
    time.sleep(0.5)
    assert len(server.alive) == 2
    worker.process.send_signal(signal.SIGCONT)
    assert worker.do("end") == "[]"


# the run dies


def test_it_sweeps_within_two_seconds_of_the_last_processs_death(server, folder, start, brokers):
    processes = [start(name) for name in ("main", "gw0")]
    ids = [process.create() for process in processes]
    stranger = server.add()
    for process in processes:
        process.process.send_signal(signal.SIGKILL)
    died = processes[1].kill()
    until(lambda: server.alive == [stranger])
    assert max(server.sessions[one].ended for one in ids) - died < 2
    until(lambda: not brokers())
    assert not is_live(folder)


def test_what_it_did_is_in_its_log_and_on_record(server, folder, start, brokers, settings):
    process = start("gw7")
    ids = [process.create(), process.create()]
    server.end(ids[1])
    process.kill()
    until(lambda: not brokers())
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


def test_a_creation_that_the_run_died_in_is_found_though_it_shows_up_late(server, folder, start, brokers):
    server.list_delay = 1.5

    def create_and_say_nothing(handler, act):
        act()
        handler.server_state.closing.wait(3)
        handler.drop()

    server.fail("POST", create_and_say_nothing)
    process = start()
    process.ask("create")
    until(lambda: server.alive)
    process.kill()
    until(lambda: not server.alive)
    until(lambda: not brokers())
    assert server.count("GET") > 1
    assert server.count("POST") == 1
    assert log(folder).endswith("done\n")


def test_it_goes_on_while_the_api_is_in_trouble(server, folder, start, brokers):
    server.fail("DELETE", *[fs.status(500)] * 5)
    process = start()
    process.create()
    process.kill()
    until(lambda: not server.alive)
    until(lambda: not brokers())
    assert server.count("DELETE") == 6
    assert log(folder).endswith("done\n")


def test_it_gives_up_where_the_api_refuses_the_key(server, folder, start, brokers):
    process = start()
    session_id = process.create()
    server.keys.clear()
    process.kill()
    until(lambda: not brokers(), 20)
    assert server.alive == [session_id]
    assert f"{session_id} of t.py::x: HTTP 401: “Invalid API Key" in log(folder)
    assert log(folder).endswith("given up, and left to the next run: 1 session open\n")
    assert Run(folder).read().records.popitem()[1].open


def test_it_waits_for_who_sweeps_the_run_already(server, folder, start, brokers):
    next_run = Run(folder)
    process = start()
    process.create()
    assert next_run.claim()
    process.kill()
    time.sleep(0.5)
    assert server.count("DELETE") == 0
    assert brokers()
    next_run.release()
    until(lambda: not server.alive)


def test_while_it_reaps_the_run_is_dead_and_its_lock_says_so(server, folder, start):
    process = start()
    process.create()
    server.fail_always("DELETE", fs.status(500))
    assert is_live(folder)
    process.kill()
    until(lambda: is_held(folder / REAPER_LOCK))
    until(lambda: not is_live(folder))
    server.fail_always("DELETE", None)
    until(lambda: not server.alive)


def test_a_process_that_comes_back_is_served(server, folder, start):
    first = start()
    first.create()
    server.fail_always("DELETE", fs.status(500))
    first.kill()
    until(lambda: is_held(folder / REAPER_LOCK))
    back = start("gw0")
    mine = back.create()
    assert mine in server.alive
    server.fail_always("DELETE", None)
    time.sleep(1.0)
    assert mine in server.alive
    assert back.do("end") == "[]"
    back.do("sweep")
    assert server.alive == []


@pytest.mark.parametrize("what", ["run", "registry"])
def test_a_folder_that_is_gone_keeps_nothing_from_being_reaped(server, folder, start, brokers, what):
    process = start()
    process.create()
    shutil.rmtree(folder if what == "run" else folder.parent)
    process.create()
    process.kill()
    until(lambda: not server.alive)
    until(lambda: not brokers())
    assert states(folder) == ["ended", "ended"]


def test_without_the_reaper_it_leaves_with_the_run_and_sweeps_nothing(server, folder, start, brokers):
    process = start(reaper=False)
    session_id = process.create()
    process.kill()
    until(lambda: not brokers())
    assert server.alive == [session_id]
    assert states(folder) == ["open"]
    assert not (folder / REAPER_LOG).exists()


# it is killed itself


def test_a_killed_one_is_replaced_at_the_next_request(server, folder, start, brokers):
    process = start()
    first = process.create()
    dead = kill_broker(brokers)
    assert is_live(folder)  # the run has a process, which will start another
    second = process.create()
    (pid,) = brokers()
    assert pid != dead
    assert {first, second} == set(server.alive)
    assert process.do("end") == "[]"
    assert server.alive == []
    report = json.loads(process.do("sweep"))
    assert report["lines"][0][0] == "2 sessions created: 2 at teardown"


def test_the_next_one_knows_all_processes_and_ends_what_nobody_owns_any_more(server, folder, start, brokers):
    main, worker, dead = start(), start("gw0"), start("gw1")
    ids = [process.create() for process in (main, worker, dead)]
    kill_broker(brokers)
    dead.kill()
    new = main.create()
    until(lambda: set(server.alive) == {ids[0], ids[1], new})
    worker.kill()  # which has asked the new one for nothing
    until(lambda: set(server.alive) == {ids[0], new})
    main.kill()
    until(lambda: not server.alive)
    until(lambda: not brokers())
    assert set(states(folder)) == {"ended"}


def test_a_creation_under_way_when_it_is_killed_fails_and_is_found(server, start, brokers):
    process = start()
    first = process.create()

    def create_late(_handler, act):
        kill_broker(brokers)
        return act()

    server.fail("POST", create_late)
    answer = process.create()
    assert "died while it was asked to create" in answer
    until(lambda: len(server.alive) == 2)
    mine = process.create()
    until(lambda: server.alive == [first, mine])
    assert server.count("POST") == 3


def test_an_end_under_way_when_it_is_killed_is_asked_of_the_next_one(server, start, brokers):
    process = start()
    process.create()

    def die(_handler, act):
        kill_broker(brokers)
        return act()

    server.fail("DELETE", die)
    assert process.do("end") == "[]"
    assert server.alive == []


def test_a_sweep_under_way_when_it_is_killed_is_asked_of_the_next_one(server, start, brokers):
    process = start()
    process.create()

    def die(_handler, _act):
        kill_broker(brokers)

    server.fail("DELETE", die)
    report = json.loads(process.do("sweep"))
    assert server.alive == []
    assert not report["failed"]


def test_killed_together_with_the_run_it_leaves_the_sessions_to_the_next_run(server, settings, folder, start, brokers):
    process = start()
    ids = [process.create(), process.create()]
    stop(process.pid)
    kill_broker(brokers)
    process.kill()
    assert not is_live(folder)
    assert server.alive == ids
    (recovery,) = recover_all(settings._replace(folder=folder.parent / "next"))
    assert [record.id for record in recovery.ended] == ids
    assert server.alive == []
    assert not folder.exists()


def test_a_stopped_one_goes_on(server, start, brokers):
    process = start()
    process.create()
    (pid,) = brokers()
    stop(pid)
    process.ask("create")
    time.sleep(0.3)
    assert server.count("POST") == 1
    os.kill(pid, signal.SIGCONT)
    assert process.answer() in server.alive
    stop(pid)
    process.kill()
    os.kill(pid, signal.SIGCONT)
    until(lambda: not server.alive)


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
    assert suite.server.count("GET") == 1  # the sweep's own list


@pytest.mark.slow
def test_a_test_that_breaks_its_interpreters_paths_breaks_no_broker(suite):
    suite.write(
        "import os, sys\n"
        "def test_a(request, monkeypatch):\n"
        "    monkeypatch.setattr(sys, 'executable', '/nowhere/python')\n"
        "    monkeypatch.setattr(sys, 'path', [])\n"
        "    monkeypatch.setattr(os, 'environ', {'PYTHONHOME': '/nowhere'})\n"
        "    create = request.getfixturevalue('anchor_session')\n"
        "    assert create().id\n"
    )
    run = suite.run(reaper=True)
    assert (run.status, run.section) == (0, "1 session created: 1 at teardown\n")
    assert not run.recorded


@pytest.mark.slow
def test_without_a_broker_no_session_is_created(suite, server):
    suite.write("import sys\nsys.executable = '/nowhere/python'\n", "conftest.py")  # before the plugin is configured
    run = suite.run(reaper=True)
    assert run.outcomes == {"failed": 1}
    assert "did not start: /nowhere/python: No such file or directory. No session is created without it" in run.out
    assert "IndexError" not in run.out
    assert server.requests == []


@pytest.mark.slow
def test_what_the_sweep_could_not_end_is_left_to_it(suite, server):
    server.fail_always("DELETE", fs.status(500))
    run = suite.run("--anchor-sweep-timeout=0.2", reaper=True)
    assert run.status == 1
    (folder,) = suite.runs
    assert f"the reaper goes on trying; it writes to {folder / REAPER_LOG}\n" in run.section
    server.fail_always("DELETE", None)
    until(lambda: not suite.alive)
