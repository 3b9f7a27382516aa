"""The broker's end of the socket, asked by raw connections: a line of JSON for each message."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import fault_server as fs
import pytest
from fault_server import KEY
from processes import script
from raw_broker import ACK, CREATE, DEADLINE, Peer, Served
from records import opened

from pytest_anchor.broker import broker as broker_module
from pytest_anchor.broker import reaper as reaper_module
from pytest_anchor.broker import server as module
from pytest_anchor.broker.keeper import Keeper
from pytest_anchor.broker.processes import Process
from pytest_anchor.registry.journal import Run


@pytest.fixture
def serve(settings, quick):
    with ExitStack() as stack:

        def serve(**changes):
            served = Served(settings._replace(**changes))
            stack.callback(served.end)
            return served

        yield serve


@pytest.fixture
def served(serve):
    return serve()


# whose connection it is


def test_a_process_of_the_run_is_served(server, served):
    peer = served.connect()
    answer = peer.create()
    assert server.alive == [answer["id"]]
    assert answer["cdp_url"].startswith("ws://")
    assert abs(answer["created"] - time.time()) < 30
    assert peer.ask(verb="end", nonces=[answer["nonce"]], ended_by="test", timeout=5) == (
        {"failures": {}, "already": [], "kept": []},
        [],
    )
    assert server.alive == []
    assert served.states == ["ended"]


def test_a_session_belongs_to_the_process_that_has_said_its_name(served):
    served.connect("gw3").create(test="t.py::y")
    (record,) = Run(served.settings.folder).read().records.values()
    assert (record.owner, record.test) == ("gw3", "t.py::y")


def test_the_kernel_tells_the_pid_whatever_the_process_says(served):
    peer = served.peer()
    peer.send({"verb": "hello", "owner": "main", "pid": 1})
    assert peer.receive() == {"ready": True}
    assert served.broker.processes.living == {Process("main", os.getpid())}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_not_served(server, served):
    Path(served.settings.socket_folder).chmod(0o755)
    served.folder.chmod(0o755)
    Path(served.path).chmod(0o777)
    code = (
        "import json, os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect(sys.argv[1])\n"
        "try:\n"
        "    s.sendall(json.dumps({'verb': 'hello', 'owner': 'main', 'pid': 1}).encode() + b'\\n')\n"
        "    print(s.recv(100))\n"
        "except OSError:\n"
        "    print(b'')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, served.path], capture_output=True, timeout=30, check=True)
    assert done.stdout == b"b''\n"
    assert served.connect().create()["id"] in server.alive


# goodbye


def refusal(answer):
    return answer["error"]["message"]


def test_a_process_that_said_goodbye_is_refused(server, served):
    served.connect("gw0")
    served.leave("main")
    peer = served.peer()
    peer.send({"verb": "hello", "owner": "main", "pid": os.getpid()})
    assert "has left the run, which creates no more" in refusal(peer.receive())
    assert peer.receive() is None
    assert served.broker.processes.living == {Process("gw0", os.getpid())}


@pytest.mark.parametrize("used", [False, True])
def test_what_a_thread_asks_for_after_its_process_said_goodbye_is_refused(server, served, used):
    served.connect("gw0")
    thread = served.connect()
    if used:
        thread.create()
    before = server.count("POST")
    served.leave("main")
    assert "no session was created" in refusal(thread.create()) or "left the run" in refusal(thread.create())
    assert server.count("POST") == before


def test_a_process_that_said_goodbye_leaves_nothing(server, served, until):
    served.connect("gw0")
    peer = served.connect()
    peer.create()
    other = served.connect("gw0").create()["id"]
    served.leave("main")
    until(lambda: server.alive == [other])
    until(lambda: served.states == ["ended", "open"])


def test_what_waits_when_its_process_says_goodbye_is_withdrawn(server, serve, until):
    served = serve(max_sessions=1)
    holder, waiting = served.connect("gw0"), served.connect("gw1")
    held = holder.create()
    waiting.send({**CREATE, "test": "t.py::waits"})
    until(lambda: served.broker.known_owner(Process("gw1", os.getpid())))
    served.leave("gw1")
    assert "t.py::waits" in refusal(waiting.receive())
    holder.ask(verb="end", nonces=[held["nonce"]], ended_by="test", timeout=5)
    assert holder.create()["id"] in server.alive
    assert server.count("POST") == 2


def test_the_broker_leaves_with_the_last_process(served):
    served.connect()
    served.leave("main")
    served.thread.join(DEADLINE)
    assert not served.thread.is_alive()
    assert not Path(served.settings.socket_folder).exists()
    with pytest.raises(FileNotFoundError):
        Peer(served.path)


def test_another_brokers_socket_is_left_alone(served):
    other = Path(served.settings.socket_folder, "1")
    other.mkdir()
    served.leave("main")
    served.thread.join(DEADLINE)
    assert served.folder.exists()  # whoever begins there finds that one dead, and goes on to the next
    assert other.exists()


# what is not confirmed


@pytest.mark.parametrize(
    "word", [b"", b'{"verb":', b"garbage\n", b"\xff\n"], ids=["nothing", "half", "garbage", "bytes"]
)
def test_what_is_created_and_not_confirmed_is_ended(server, served, until, word):
    peer = served.connect()
    peer.send(CREATE)
    answer = peer.receive()
    assert answer["ack"]
    assert server.alive == [answer["id"]]
    peer.send(word)
    peer.close()
    until(lambda: not server.alive)
    until(lambda: served.states == ["ended"])
    assert server.count("DELETE") == 1


def test_an_answer_that_reaches_nobody_is_not_confirmed(server, served, until, monkeypatch):
    """The connection is closed after the last look at whether it is."""
    monkeypatch.setattr(module._ClientRequest, "is_cancelled", False)
    server.held["POST"] = threading.Event()
    peer = served.connect()
    peer.send(CREATE)
    until(lambda: server.count("POST"))
    peer.close()
    server.held.pop("POST").set()
    until(lambda: server.sessions and not server.alive)


def test_what_is_confirmed_outlives_its_connection(server, served):
    peer = served.connect()
    peer.create()
    peer.close()
    other = served.connect()
    other.create()
    time.sleep(0.3)
    assert len(server.alive) == 2
    assert server.count("DELETE") == 0


def test_other_answers_need_no_confirmation(served):
    peer = served.connect()
    for _ in range(3):
        assert peer.ask(verb="end", nonces=["x"], ended_by="test", timeout=1) == (
            {"failures": {}, "already": [], "kept": []},
            [],
        )
    assert "error" in peer.create(config=7)  # nor does a creation that failed
    assert "id" in peer.create()


def test_a_closed_connection_withdraws_a_request_that_waits(server, serve, until):
    served = serve(max_sessions=1)
    peer, waiting = served.connect(), served.connect()
    first = peer.create()
    waiting.send({**CREATE, "test": "t.py::waits"})
    assert "t.py::waits waits for" in waiting.receive()["note"]
    waiting.close()
    limits = served.broker.known_owner(Process("main", os.getpid())).limits
    until(lambda: not limits.is_crowded())
    peer.ask(verb="end", nonces=[first["nonce"]], ended_by="test", timeout=5)
    assert peer.create()["id"] in server.alive
    assert server.count("POST") == 2
    assert len(server.alive) == 1


def test_a_closed_connection_ends_what_was_being_created(server, served, until):
    server.held["POST"] = threading.Event()
    peer, other = served.connect(), served.connect()
    peer.send(CREATE)
    until(lambda: server.count("POST"))
    peer.close()
    server.held.pop("POST").set()
    until(lambda: server.sessions and not server.alive)
    until(lambda: served.states == ["ended"])
    assert server.count("POST") == server.count("DELETE") == 1
    assert "id" in other.create()  # others are served


def test_a_closed_connection_tries_no_creation_again(server, served, until):
    server.held["POST"] = threading.Event()
    server.fail("POST", fs.status(500))
    peer = served.connect()
    peer.send(CREATE)
    until(lambda: server.count("POST"))
    peer.close()
    server.held.pop("POST").set()
    until(lambda: server.busy == 0)
    time.sleep(1.0)  # longer than the pause before another try
    assert server.count("POST") == 1


# what goes wrong


def test_an_error_of_ours_is_the_answer(server, served):
    server.fail_always("POST", fs.status(403, "not yours"))
    error = served.connect().create()["error"]
    assert error["type"] == "AnchorAPIError"
    assert (error["fields"]["status"], error["fields"]["message"]) == (403, "not yours")


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, OSError, KeyError])
def test_an_unexpected_exception_is_an_answer_without_the_key(served, monkeypatch, kind):
    def fail(*_):
        raise kind(f"with {KEY} in it")

    monkeypatch.setitem(module.VERBS, "report", fail)
    peer = served.connect()
    answer, _ = peer.ask(verb="report", verbose=False)
    assert "with " in refusal(answer)
    assert KEY not in json.dumps(answer)
    assert "id" in peer.create()  # the connection serves on


@pytest.mark.parametrize(
    "message",
    [
        {},
        [],
        7,
        None,
        "create",
        {"verb": "nonsense"},
        {"verb": ["create"]},
        {"verb": "create"},
        {**CREATE, "config": {"session": 7}},
        {"verb": "end"},
        {"verb": "end", "nonces": 7, "ended_by": "x", "timeout": 1},
        {"verb": "end", "nonces": [], "ended_by": "x", "timeout": "soon"},
        {"verb": "sweep"},
        {"verb": "take records", "records": [{"nonsense": 1}]},
    ],
    ids=json.dumps,
)
def test_a_message_that_means_nothing_harms_nobody(server, served, message):
    peer, other = served.connect(), served.connect()
    peer.send(message)
    answer = peer.receive()
    assert answer is None or "error" in answer
    assert "id" in other.create()
    assert "id" in served.connect().create()
    assert server.count("POST") == 2


GARBAGE = [
    b"\n",
    b"garbage\n",
    b"\xff\xfe\xfa\n",
    b"{\n",
    b"[" * 100_000 + b"\n",
    b"[]\n",
    b"7\n",
    b"null\n",
    b"{}\n",
    b'{"verb":"hello"}\n',
    b'{"verb":"hello","owner":"x"',
    b"GET / HTTP/1.1\r\n\r\n",
    b"x" * 1_000_000,
    b"",
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=lambda garbage: repr(garbage[:20]))
@pytest.mark.parametrize("known", [False, True], ids=["at first", "later"])
def test_garbage_on_the_socket_harms_nobody(server, served, garbage, known):
    peer, other = served.connect() if known else served.peer(), served.connect()
    held = other.create()
    peer.send(garbage)
    peer.socket.shutdown(socket.SHUT_WR)
    while (answer := peer.receive()) is not None:
        assert "error" in answer
    assert server.alive == [held["id"]]
    assert "id" in other.create()
    assert served.broker.processes.living == {Process("main", os.getpid())}


def test_a_message_without_end_is_cut_off(server, served):
    peer, other = served.connect(), served.connect()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            peer.send(b"x" * (1 << 20))
    assert "id" in other.create()


def test_connections_that_say_nothing_keep_nobody_from_being_served(server, served):
    for _ in range(20):
        served.peer()
    assert "id" in served.connect().create()


# what is told meanwhile


def test_what_a_process_waits_for_is_told_to_others_as_well(serve):
    served = serve(max_sessions=1)
    holder, waiting, watching = served.connect("gw0"), served.connect("gw1"), served.connect()
    held = holder.create()
    watching.send({"verb": "watch waits"})
    waiting.send({**CREATE, "test": "t.py::waits"})
    assert "t.py::waits waits for" in waiting.receive()["note"]
    note = watching.receive()["note"]
    assert "t.py::waits" in note
    assert "[gw1]" in note
    holder.ask(verb="end", nonces=[held["nonce"]], ended_by="test", timeout=5)
    while "note" in (answer := waiting.receive()):
        pass
    assert "id" in answer
    waiting.send(ACK)


def test_a_sweep_tells_how_far_it_is_and_what_came_of_it(server, served):
    peer = served.connect()
    for _ in range(3):
        peer.create()
    report, notes = peer.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert [3, 3] in notes
    assert not report["failed"]
    assert report["lines"][0][0] == "3 sessions created: 3 by the sweep"
    assert server.alive == []
    assert "the run is over" in refusal(peer.create())
    served.leave("main")
    assert not served.settings.folder.exists()


def test_a_sweep_looks_once_where_all_is_over(server, served):
    peer = served.connect()
    one = peer.create()
    peer.ask(verb="end", nonces=[one["nonce"]], ended_by="test", timeout=5)
    twin = server.add(*server.sessions[one["id"]].tags)
    report, _ = peer.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert server.alive == []
    assert server.count("DELETE", f"/v1/sessions/{twin}") == 1
    assert "2 sessions created" in report["lines"][0][0]
    assert server.count("GET") <= 2


@pytest.mark.parametrize("refused", [False, True])
def test_a_sweep_of_nothing_asks_nothing(server, served, refused):
    peer = served.connect()
    if refused:
        server.fail("POST", fs.status(403))
        assert "error" in peer.create()
    server.requests.clear()
    report, _ = peer.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert (report["lines"], report["failed"], report["settled"]) == ([], False, True)
    assert server.requests == []


def test_a_sweep_that_nobody_waits_for_any_more_goes_no_further(server, served, until):
    peer = served.connect()
    for _ in range(3):
        peer.create()
    server.fail_always("DELETE", fs.status(500))
    peer.send({"verb": "sweep", "has_remote_workers": False, "verbose": False})
    until(lambda: server.count("DELETE") >= 3)
    peer.close()
    answer, _ = served.connect().ask(verb="report", verbose=False)
    assert answer["failed"]
    assert answer["interrupted"]
    until(lambda: server.busy == 0)
    assert served.settings.folder.exists()
    server.fail_always("DELETE", None)


# records, plans, ends


def test_a_session_of_another_process_is_ended_by_its_nonce(server, served):
    one = served.connect("gw0").create()
    answer, _ = served.connect().ask(verb="end", nonces=[one["nonce"]], ended_by="test", timeout=5)
    assert answer == {"failures": {}, "already": [], "kept": []}
    assert server.alive == []


def test_what_cannot_be_ended_is_told_by_its_nonce(server, served):
    peer = served.connect()
    one, other = peer.create(), peer.create()
    server.fail_always("DELETE", fs.on(one["id"], fs.status(403, "no")))
    nonces = [one["nonce"], other["nonce"], "unknown"]
    answer, _ = peer.ask(verb="end", nonces=nonces, ended_by="teardown", timeout=5)
    assert list(answer["failures"]) == [one["nonce"]]
    assert answer["failures"][one["nonce"]]["fields"]["status"] == 403
    server.fail_always("DELETE", None)


def test_ends_in_the_background_are_not_waited_for(server, served, until):
    peer = served.connect()
    one = peer.create()
    server.held["DELETE"] = threading.Event()
    assert peer.ask(verb="end later", nonces=[one["nonce"]]) == ({}, [])
    assert server.alive
    server.held.pop("DELETE").set()
    until(lambda: not server.alive)
    until(lambda: served.states == ["ended"])


def test_nothing_is_created_ahead_of_a_tests_own_first_request(server, serve, until):
    served = serve(prefetch=1)
    peer = served.connect()
    plan = {"verb": "plan", "current": None, "upcoming": [["t.py::next", {}]]}
    assert peer.ask(**plan) == ({}, [])
    time.sleep(0.2)
    assert server.requests == []
    peer.create()
    peer.ask(**plan)
    until(lambda: len(server.alive) == 2)
    until(lambda: served.states == ["open", "open"])
    assert peer.create(test="t.py::next")["id"] in server.alive
    assert server.count("POST") == 2
    peer.ask(verb="finish", timeout=5)


def test_a_process_that_finishes_creates_nothing_more(server, served):
    peer, other = served.connect(), served.connect("gw0")
    peer.create()
    assert peer.ask(verb="finish", timeout=5) == ({"records": []}, [])
    assert "the run is over" in refusal(peer.create())
    assert "id" in other.create()


def test_records_of_a_registry_of_its_own_are_handed_over(server, serve, settings, tmp_path):
    far = serve(
        own_registry=True, folder=tmp_path / "far" / "inv", socket_folder=f"{settings.socket_folder}-far", owner="gw5"
    )
    worker = far.connect("gw5")
    ids = [worker.create()["id"], worker.create()["id"]]
    far.connect("gw6").create()
    records = worker.ask(verb="finish", timeout=5)[0]["records"]
    assert [record["id"] for record in records] == ids
    near = serve()
    controller = near.connect()
    assert controller.ask(verb="take records", records=records) == ({}, [])
    assert near.states == ["open", "open"]
    report, _ = controller.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert not set(ids) & set(server.alive)
    assert report["lines"][0][0].startswith("3 sessions created")  # the third by the API's list


def test_what_a_dead_run_left_is_ended_in_the_background(server, api, served, settings, until):
    dead = Run(settings.folder.parent / "dead")
    dead.join()
    opened(server, api, dead, "dead-1")
    dead.leave()
    peer = served.connect()
    assert peer.ask(verb="recover") == ({}, [])
    until(lambda: not server.alive)
    until(lambda: not dead.folder.exists())
    report, _ = peer.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert report["lines"][0][0].startswith("recovered 1 session of the run that died")


# deaths


def test_a_process_that_dies_with_its_connection_open_leaves_nothing(server, served, until):
    code = (
        "import json, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); f = s.makefile('rb')\n"
        "send = lambda **m: (s.sendall(json.dumps(m).encode() + b'\\n'), f.readline())\n"
        "send(verb='hello', owner='gw0', pid=0)\n"
        "send(verb='create', config={}, test='t', is_self_blocked=False)\n"
        's.sendall(b\'{"verb":"ack"}\\n\')\n'
        "print('created', flush=True)\n"
        "sys.stdin.read()\n"
    )
    mine = served.connect().create()["id"]
    with script(code, served.path) as process:
        assert process.stdout.readline() == "created\n"
        assert len(server.alive) == 2
        process.kill()
        until(lambda: server.alive == [mine])
    until(lambda: served.states == ["open", "ended"])


# the reaper: the broker, once the last process of the run is gone


def test_the_last_process_gets_the_answer_to_its_goodbye(served, monkeypatch):
    send, alive = module.Connection.send, []

    def send_late(connection, message):
        if message == {}:
            time.sleep(0.3)
            alive.append(served.thread.is_alive())
        send(connection, message)

    served.connect()
    monkeypatch.setattr(module.Connection, "send", send_late)
    served.leave("main")
    assert alive == [True], "the broker has gone before"
    served.thread.join(DEADLINE)
    assert not served.thread.is_alive()


@pytest.fixture
def reaping(serve, monkeypatch):
    """A broker that reaps, without the pauses of hours to come."""
    monkeypatch.setattr(reaper_module, "LONG_PAUSES", (0.05,))
    return serve(reaper=True)


def reaper_log(served):
    return (served.settings.folder / reaper_module.REAPER_LOG).read_text()


def test_the_reapers_budget_is_kept(server, reaping, monkeypatch):
    monkeypatch.setattr(reaper_module, "REAPER_BUDGET", 0.5)
    session_id = reaping.connect().create()["id"]
    server.fail_always("DELETE", fs.status(500))
    before = time.monotonic()
    reaping.leave("main")
    reaping.thread.join(DEADLINE)
    assert 0.3 < time.monotonic() - before < 10
    assert "given up, and left to the next run: 1 session open" in reaper_log(reaping)
    assert server.alive == [session_id]
    assert reaping.states == ["open"]


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyError])
def test_an_unexpected_error_of_the_reaper_is_in_its_log_and_it_leaves(server, reaping, monkeypatch, kind):
    def fail(*_args, **_more):
        raise kind(f"with {KEY} in it")

    reaping.connect().create()
    monkeypatch.setattr(reaper_module, "sweep_run", fail)
    reaping.leave("main")
    reaping.thread.join(DEADLINE)
    assert not reaping.thread.is_alive()
    assert "an unexpected error, please report it" in reaper_log(reaping)
    assert KEY not in reaper_log(reaping)
    assert reaping.states == ["open"]


def test_an_unexpected_error_of_the_last_sweep_fails_the_run(served, monkeypatch):
    def fail(*_args, **_more):
        raise RuntimeError(f"with {KEY} in it")

    peer = served.connect()
    peer.create()
    monkeypatch.setattr(broker_module, "sweep_run", fail)
    report, _ = peer.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert report["failed"]
    assert "an unexpected error, please report it: RuntimeError" in str(report["lines"])
    assert KEY not in json.dumps(report)


def test_an_unexpected_error_of_the_evidence_fails_no_run(served, server, monkeypatch):
    def fail(*_args, **_more):
        raise RuntimeError(f"with {KEY} in it")

    peer = served.connect()
    peer.create()
    monkeypatch.setattr(broker_module.Broker, "_mark_outcomes", fail)
    report, _ = peer.ask(verb="sweep", has_remote_workers=False, verbose=False)
    assert not report["failed"]
    assert "the evidence is incomplete, by an unexpected error, please report it: RuntimeError" in str(report["lines"])
    assert KEY not in json.dumps(report)
    assert not server.alive


def test_a_broker_whose_evidence_fails_leaves_all_the_same(server, reaping, monkeypatch):
    def fail(*_args, **_more):
        raise RuntimeError

    monkeypatch.setattr(Keeper, "kept", {"some-nonce": None})
    monkeypatch.setattr(Keeper, "wait", lambda *_: None)
    monkeypatch.setattr(broker_module.Broker, "_mark_outcomes", fail)
    reaping.connect().create()
    reaping.leave("main")
    reaping.thread.join(DEADLINE)
    assert not reaping.thread.is_alive()
    assert not server.alive
