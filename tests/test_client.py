"""The test process's end of the socket: how a broker is started, found, replaced and left. Real brokers."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_server import KEY, FaultServer
from processes import children, kill, read_line, status, stop
from real_brokers import broker, brokers, factory, generations, run_script, states
from real_runs import until

from pytest_anchor import client as client_module
from pytest_anchor import launcher
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorConfigError, AnchorError
from pytest_anchor.launcher import Launcher, can_be_sent
from pytest_anchor.registry.journal import Run
from pytest_anchor.settings import Settings

# start and join


def test_the_first_request_starts_a_broker_and_all_others_join(server: FaultServer, make_client, run_settings):
    one, other, before = make_client(), make_client(owner="gw1"), children(os.getpid())
    assert not one.is_active
    assert not one.used
    sessions = [factory(client)() for client in (one, other)]
    assert server.alive == [session.id for session in sessions]
    assert one.is_active
    assert one.used
    assert [record.owner for record in Run(run_settings.folder).read().records.values()] == ["main", "gw1"]
    broker(run_settings)
    assert generations(run_settings) == ["0"]
    assert children(os.getpid()) == before, "a child that the test does not know"


def test_a_broker_that_was_started_ahead_is_the_one_that_is_asked(server: FaultServer, make_client, run_settings):
    client = make_client()
    client.start()
    assert client.is_connected
    assert not client.used
    assert factory(client)().id in server.alive
    assert generations(run_settings) == ["0"]
    broker(run_settings)


def test_without_a_key_nothing_is_started_and_one_that_comes_later_is_used(
    server, make_client, run_settings, monkeypatch
):
    client = make_client(api_key=None)
    client.start()
    with pytest.raises(AnchorConfigError):
        factory(client)()
    assert not Path(run_settings.socket_folder).exists()
    assert not client.is_active
    monkeypatch.setenv("ANCHOR_API_KEY", KEY)
    assert factory(client)().id in server.alive


def test_threads_that_ask_at_once_start_one_broker(server: FaultServer, make_client, run_settings, monkeypatch):
    spawn, spawned = Launcher._spawn, []
    monkeypatch.setattr(Launcher, "_spawn", lambda *arguments: spawned.append(1) or spawn(*arguments))
    create, barrier = factory(make_client()), threading.Barrier(16)

    def ask(_: int) -> str:
        barrier.wait(20)
        return create().id

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(16))) == set(server.alive)
    assert spawned == [1]
    assert generations(run_settings) == ["0"]
    assert Path(run_settings.socket_folder, "log").read_text() == ""


def test_processes_that_ask_at_once_start_one_broker(server: FaultServer, run_settings):
    code = """
print("ready", flush=True)
sys.stdin.readline()
print(create().id, flush=True)
sys.stdin.readline()
client.leave()
"""
    running = [run_script(run_settings, code, owner=f"gw{number}") for number in range(6)]
    processes = [one.__enter__() for one in running]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        created = {process.stdout.readline().strip() for process in processes}
        assert created == set(server.alive)
        assert len(created) == 6
        assert generations(run_settings) == ["0"]
        broker(run_settings)
    finally:
        for process in processes:
            process.stdin.close()
        for process in processes:
            process.wait(30)
        for one in running:
            one.__exit__(None, None, None)
    assert [process.returncode for process in processes] == [0] * 6


# a broker that is dead, leaves, or does not answer


def is_closed(connection: client_module._Connection) -> bool:
    """Whether the kernel has closed the broker's end."""
    poll = select.poll()
    poll.register(connection._socket, select.POLLHUP)
    return bool(poll.poll(0))


def test_a_dead_broker_is_replaced_and_its_record_taken_over(server: FaultServer, make_client, run_settings):
    client = make_client()
    create = factory(client)
    with ThreadPoolExecutor(8) as pool:  # each has a connection of its own, and all of them are the dead one's
        sessions = list(pool.map(lambda _: create(), range(8)))
    first = broker(run_settings)
    os.kill(first, signal.SIGKILL)
    until(lambda: all(map(is_closed, client._idle)))
    new = create()
    assert broker(run_settings) != first
    assert generations(run_settings) == ["0", "1"]
    assert set(server.alive) == {new.id, *(session.id for session in sessions)}
    assert create.close(20) == {}
    assert server.alive == []
    assert states(run_settings) == ["ended"] * 9


def test_a_creation_under_way_at_the_brokers_death_fails_and_is_looked_for(
    server: FaultServer, make_client, run_settings
):
    client = make_client()
    create = factory(client)
    create().end()
    server.held["POST"] = threading.Event()
    pid = broker(run_settings)

    def kill_meanwhile() -> None:
        until(lambda: server.count("POST") == 2)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill_meanwhile)
    thread.start()
    with pytest.raises(AnchorError, match="died while it was asked to create: what it may have created is looked for"):
        create()
    thread.join()
    server.held.pop("POST").set()
    until(lambda: len(server.alive) == 1)
    session = create()
    until(lambda: server.alive == [session.id])
    assert server.count("POST") == 3, "a creation was repeated unasked"


def test_an_end_under_way_at_the_brokers_death_is_asked_of_the_next(server: FaultServer, make_client, run_settings):
    session = factory(make_client())()
    server.held["DELETE"] = threading.Event()
    pid = broker(run_settings)

    def kill_meanwhile() -> None:
        until(lambda: server.count("DELETE") == 1)
        os.kill(pid, signal.SIGKILL)
        server.held.pop("DELETE").set()

    thread = threading.Thread(target=kill_meanwhile)
    thread.start()
    session.end()
    thread.join()
    assert session.ended
    assert server.alive == []


def test_the_report_of_a_broker_that_dies_over_it_is_the_next_ones(server: FaultServer, make_client, run_settings):
    """Everything was ended by then, so that the next one has nothing to go by but the record."""
    client = make_client()
    factory(client)()

    def sweep() -> str:
        answer = client.request("sweep", timeout=20, again=True, has_remote_workers=False, verbose=False)
        return answer["lines"][0][0]

    said = sweep()
    assert said.startswith("1 session created: ")
    kill(broker(run_settings))
    assert sweep() == said
    client.leave()
    assert not run_settings.folder.exists(), "there is no use for it any more"


def test_a_broker_that_is_stopped_is_an_error_and_goes_on_later(
    server: FaultServer, make_client, run_settings, monkeypatch
):
    client = make_client()
    create = factory(client)
    create()
    monkeypatch.setattr(client_module, "SLACK", 0.4)
    pid = broker(run_settings)
    stop(pid)
    try:
        until(lambda: status(pid)["State"].startswith("T"))
        with pytest.raises(AnchorError, match=r"has not answered in 0\.5 s: is it stopped\?"):
            client.request("report", timeout=0.1, verbose=False)
    finally:
        os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    assert create().id in server.alive
    assert generations(run_settings) == ["0"]


def test_a_broker_that_never_greets_is_an_error(make_client, run_settings, monkeypatch):
    monkeypatch.setattr(client_module, "START_TIMEOUT", 0.3)
    unanswered = pytest.raises(AnchorError, match=r"did not start: it has not answered in 0\.3 s")
    with listener_of(run_settings), unanswered:
        factory(make_client())()
    assert generations(run_settings) == ["0"]


def listener_of(settings: Settings, generation: int = 0) -> socket.socket:
    """A socket where clients look for a broker."""
    folder = Path(settings.socket_folder, str(generation))
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{folder}/socket")
    listener.listen()
    return listener


def test_the_sockets_of_dead_brokers_are_passed_over(server: FaultServer, make_client, run_settings):
    for generation in range(6):
        listener_of(run_settings, generation).close()
    client = make_client()
    assert factory(client)().id in server.alive
    assert generations(run_settings) == list("0123456")
    assert client._generation == 6


def test_a_broker_that_is_just_leaving_is_replaced(server: FaultServer, make_client, run_settings):
    with listener_of(run_settings) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert factory(make_client())().id in server.alive
        thread.join()
    assert generations(run_settings) == ["0", "1"]


def test_whoever_comes_as_the_broker_leaves_finds_another(server: FaultServer, make_client, run_settings):
    for number in range(3):
        client = make_client(reaper=True, owner=f"gw{number}", main_pid=0)
        factory(client)()
        client.leave()
    until(lambda: not server.alive)
    assert server.count("POST") == 3


def test_a_broker_that_no_process_can_reach_leaves(run_settings):
    Launcher(run_settings).launch(0, KEY)
    broker(run_settings)
    shutil.rmtree(run_settings.socket_folder)
    until(lambda: not brokers(run_settings), 10)


def test_a_broker_that_leaves_so_takes_nothing_of_the_one_in_its_place(server: FaultServer, make_client, run_settings):
    Launcher(run_settings).launch(0, KEY)
    unreachable = broker(run_settings)
    shutil.rmtree(run_settings.socket_folder)
    assert factory(make_client())().id in server.alive
    until(lambda: unreachable not in brokers(run_settings), 10)
    assert factory(make_client(owner="gw1"))().id in server.alive
    assert generations(run_settings) == ["0"]
    broker(run_settings)


def test_a_client_that_has_left_asks_for_nothing_more(server: FaultServer, make_client, run_settings):
    client = make_client(reaper=True)
    create = factory(client, "t.py::late")
    create()
    client.leave()
    assert not client.is_connected
    with pytest.raises(AnchorError, match="no session was created for t.py::late: the run is over"):
        create()
    client.leave()
    until(lambda: not server.alive)
    assert server.count("POST") == 1


# a start that fails


def test_a_broker_that_does_not_start_says_why_and_is_tried_again(
    server: FaultServer, make_client, run_settings, tmp_path
):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho a warning >&2\necho no room for a broker >&2\nexit 1\n")
    broken.chmod(0o755)
    client = make_client()
    right, client._launcher.executable = client._launcher.executable, str(broken)
    with pytest.raises(AnchorError, match="did not start: no room for a broker. No session is created without it"):
        factory(client)()
    assert server.requests == []
    client._launcher.executable = right
    assert factory(client)().id in server.alive


def test_without_a_python_there_is_no_session(server: FaultServer, make_client, run_settings):
    client = make_client()
    right, client._launcher.executable = client._launcher.executable, "/nowhere/python"
    for _ in range(2):
        with pytest.raises(AnchorError, match="did not start: .*No such file or directory"):
            factory(client)()
    client._launcher.executable = right
    assert factory(client)().id in server.alive


@pytest.mark.parametrize("what", ["link", "open", "file"])
def test_a_folder_that_another_user_could_have_made_is_not_used(
    server: FaultServer, make_client, run_settings, tmp_path, what
):
    folder = Path(run_settings.socket_folder)
    if what == "link":
        folder.symlink_to(tmp_path)
    elif what == "file":
        folder.touch(mode=0o600)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    try:
        with pytest.raises(AnchorError, match=f"{folder}|did not start"):
            factory(make_client())()
    finally:
        folder.unlink() if what != "open" else shutil.rmtree(folder)
    assert server.requests == []
    assert not list(tmp_path.glob("[0-9]*"))


def test_an_attempt_that_was_interrupted_is_in_nobodys_way(server: FaultServer, make_client, run_settings, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    create = factory(make_client())
    with monkeypatch.context() as patch:
        patch.setattr(launcher.System, "rename", interrupt)
        with pytest.raises(KeyboardInterrupt):
            create()
    assert create().id in server.alive


# Ctrl-C


def interrupt_when(condition) -> threading.Thread:
    """Ctrl-C, once *condition* holds."""
    main = threading.get_ident()

    def interrupt() -> None:
        until(condition)
        time.sleep(0.05)  # for the client to wait in its read
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_ctrl_c_withdraws_a_creation_and_what_it_made_is_ended(server: FaultServer, client):
    server.held["POST"] = threading.Event()
    thread = interrupt_when(lambda: server.count("POST") == 1)
    with pytest.raises(KeyboardInterrupt):
        factory(client)()
    thread.join()
    assert not client.is_connected
    server.held.pop("POST").set()
    until(lambda: len(server.sessions) == 1 and not server.alive)
    until(lambda: states(client.settings) == ["ended"])


def test_ctrl_c_leaves_the_queue(server: FaultServer, serve, settings, monkeypatch):
    monkeypatch.setattr(Client, "is_self_blocked", False)
    create = factory(serve(settings._replace(max_sessions=1, create_timeout=60.0)))
    create()

    def queue() -> list[object]:
        (file,) = settings.folder.parent.glob("limits-*.json")
        return json.loads(file.read_text().partition("\n")[0])["queue"]

    thread = interrupt_when(queue)
    with pytest.raises(KeyboardInterrupt):
        create()
    thread.join()
    until(lambda: not queue())
    assert states(settings) == ["open"]


def test_ctrl_c_before_the_answer_is_confirmed_leaves_no_session(server: FaultServer, client, monkeypatch):
    def interrupt(_connection: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client_module._Connection, "confirm", interrupt)
        with pytest.raises(KeyboardInterrupt):
            factory(client)()
    until(lambda: len(server.sessions) == 1 and not server.alive)
    assert factory(client)().id in server.alive


def test_the_session_of_a_broker_that_dies_before_its_answer_is_confirmed_counts(
    server, make_client, run_settings, monkeypatch
):
    client = make_client()
    confirm = client_module._Connection.confirm

    def confirm_too_late(connection: object) -> None:
        kill(broker(run_settings))
        confirm(connection)

    with monkeypatch.context() as patch:
        patch.setattr(client_module._Connection, "confirm", confirm_too_late)
        session = factory(client)()
    assert [*server.alive] == [session.id]
    other = factory(client)()
    assert {*server.alive} == {session.id, other.id}
    session.end()
    assert [*server.alive] == [other.id]
    assert sorted(states(run_settings)) == ["ended", "open"]


# who can end a session while a test waits


def test_a_process_is_self_blocked_while_only_its_main_thread_asks(client):
    create, go = factory(client), threading.Event()
    assert client.is_self_blocked
    create()
    assert client.is_self_blocked
    seen = []

    def other() -> None:
        create()
        seen.append(client.is_self_blocked)
        go.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    until(lambda: seen)
    assert seen == [False]
    assert not client.is_self_blocked
    go.set()
    thread.join()
    assert client.is_self_blocked
    assert len(threading.enumerate()) > 1, "a thread that asks for nothing does not count"


def test_it_is_told_while_threads_start_and_garbage_is_collected(server: FaultServer, run_settings):
    """What asks the interpreter for its threads may wait for ever for one that starts at that moment."""
    code = """
import gc, threading, time
create()
going_on = True

def start_threads():
    while going_on:
        thread = threading.Thread(target=int)
        thread.start()
        thread.join()

starter = threading.Thread(target=start_threads)
starter.start()
gc.callbacks.append(lambda *_: time.sleep(0))
gc.set_threshold(1)
blocked = {client.is_self_blocked for _ in range(200)}
gc.set_threshold(0)
going_on = False
starter.join()
client.leave()
print(blocked, flush=True)
"""
    with run_script(run_settings, code) as process:
        assert read_line(process) == "{True}\n"


LOOP: list[object] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "can"),
    [({"a": [1, None, "x\ud800"]}, True), ({1}, False), (float("nan"), False), (LOOP, False), (object(), False)],
    ids=["plain", "set", "nan", "loop", "object"],
)
def test_what_can_be_sent(value, can):
    assert can_be_sent(value) is can
