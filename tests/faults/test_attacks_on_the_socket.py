"""Attacks on the socket between a run and its broker, and tests that do to their process what they must not."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fault_server as faults
import pytest
from attacks import NOBODY, ROOT
from fault_server import FaultServer
from raw_broker import CREATE, Served
from real_runs import FIND_BROKER, STOP, Run, Suite, until

from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorError
from pytest_anchor.registry.locks import process_names
from pytest_anchor.session import AnchorSessionFactory
from pytest_anchor.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

# For the text of a test or of a conftest.py: where the run's processes find their broker.
SOCKETS = """
import os, shutil, socket
import pytest
from pathlib import Path
from pytest_anchor.plugin.state import PLUGIN

def sockets(config):
    return Path(config.stash[PLUGIN].client.settings.socket_folder)

"""


def assert_passes(suite: Suite, *args: str, workers: int = 0, **outcomes: int) -> Run:
    """Check that a run passes, and that nothing of it is left."""
    run = suite.run(*args, workers=workers, reaper=True)
    assert (run.status, run.outcomes) == (0, outcomes or {"passed": 1})
    assert "LEAKED" not in run.section
    assert not run.err
    suite.wait_for_quiet()
    suite.assert_settled()
    return run


# The folder, before the run has one.

PREPARED = {
    "another user's": ["folder.mkdir(mode=0o700)", f"os.chown(folder, {NOBODY}, {NOBODY})"],
    "everybody's": ["folder.mkdir()", "folder.chmod(0o777)"],
    "open to a group": ["folder.mkdir()", "folder.chmod(0o750)"],
    "a link to a folder": ["Path('elsewhere').mkdir(mode=0o700)", "folder.symlink_to(Path('elsewhere').absolute())"],
    "a link to nowhere": ["folder.symlink_to(Path('nowhere').absolute())"],
    "a file": ["folder.touch(mode=0o600)"],
    "with a socket, and everybody's": [
        "(folder / '0').mkdir(parents=True)",
        "folder.chmod(0o777)",
        "KEPT.append(socket.socket(socket.AF_UNIX))",
        "KEPT[-1].bind(f'{folder}/0/socket')",
        "KEPT[-1].listen()",
    ],
    "with a socket, behind a link": [
        "(Path('elsewhere') / '0').mkdir(parents=True, mode=0o700)",
        "Path('elsewhere').chmod(0o700)",
        "folder.symlink_to(Path('elsewhere').absolute())",
        "KEPT.append(socket.socket(socket.AF_UNIX))",
        "os.chdir('elsewhere')",
        "KEPT[-1].bind('0/socket')",
        "os.chdir('..')",
        "KEPT[-1].listen()",
    ],
}


@pytest.mark.parametrize("how", PREPARED)
def test_a_folder_that_others_have_prepared_is_not_used(suite: Suite, how: str):
    if how == "another user's" and not ROOT:
        pytest.skip("giving folders away takes root")
    steps = "".join(f"    {step}\n" for step in PREPARED[how])
    suite.write(
        f"{SOCKETS}KEPT = []\n@pytest.hookimpl(trylast=True)\ndef pytest_configure(config):\n    folder = sockets(config)\n{steps}"
        "def pytest_unconfigure(config):\n    [one.close() for one in KEPT]\n"
        "    folder = sockets(config)\n"
        "    folder.unlink() if folder.is_symlink() or folder.is_file() else shutil.rmtree(folder, ignore_errors=True)\n",
        "conftest.py",
    )
    suite.write("def test_a(anchor_session):\n    anchor_session()\ndef test_b(): pass\n")
    before = time.monotonic()
    run = suite.run_here("-W", "ignore")
    assert time.monotonic() - before < 15
    assert run.outcomes == {"failed": 1, "passed": 1}
    assert "was made by another user: it is not used" in run.out
    assert "INTERNALERROR" not in run.out
    assert not suite.server.requests
    suite.wait_for_quiet()


# The folder, while the run goes on.

REMOVED = (
    SOCKETS
    + """
def test_a(anchor_session, pytestconfig):
    one = anchor_session()
    shutil.rmtree(sockets(pytestconfig))
    anchor_session()
    one.end()

def test_b(anchor_session):
    anchor_session()
"""
)


def test_a_folder_that_a_test_removes(suite: Suite):
    suite.write(REMOVED)
    assert_passes(suite, workers=1, passed=2)


def test_a_folder_that_is_removed_and_a_run_that_is_killed(suite: Suite):
    suite.write(
        f"{SOCKETS}def test_a(anchor_session, pytestconfig):\n"
        "    anchor_session()\n    shutil.rmtree(sockets(pytestconfig))\n    os.kill(os.getpid(), 9)\n"
    )
    process = suite.start(reaper=True)
    suite.outcome(process)
    until(lambda: suite.server.sessions and not suite.alive, 5)
    suite.wait_for_quiet()
    suite.assert_settled()


REPLACED = (
    SOCKETS
    + """
import threading

def test_a(anchor_session, pytestconfig):
    one, folder, errors = anchor_session(), sockets(pytestconfig), []
    old = folder.rename(folder.with_name(folder.name + "-old"))
    (folder / "0").mkdir(parents=True)
    folder.chmod(0o777)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "0" / "socket"))
        listener.listen()

        def create():
            try:
                anchor_session()
            except Exception as error:
                errors.append(str(error))

        threads = [threading.Thread(target=create) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
    shutil.rmtree(folder)
    old.rename(folder)
    assert errors  # all but the one that had the connection that there was
    assert all("was made by another user: it is not used" in error for error in errors)
    one.end()
"""
)


def test_a_folder_that_another_user_replaces_is_not_used(suite: Suite):
    suite.write(REPLACED)
    suite.server.fail_always("POST", faults.slow(0.5))  # so that no thread can use the connection of another
    assert_passes(suite, "-W", "ignore")


@pytest.fixture
def impostor(settings: Settings) -> Iterator[socket.socket]:
    """A socket where the run's processes look for their broker, of some process of the same user."""
    folder = Path(settings.socket_folder)
    folder.mkdir(mode=0o700)
    (folder / "0").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "0" / "socket"))
        listener.listen()
        yield listener
    shutil.rmtree(folder)


ANSWERS = [b"\xff\x00 garbage\n", b'{"ack":tr', b"5\n", b'["ack"]\n', b"null\n", b"[" * 100_000 + b"\n", b"{}", b""]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: repr(answer[:10]))
def test_garbage_for_an_answer_is_an_error(settings: Settings, impostor: socket.socket, answer: bytes):
    def serve() -> None:
        connection, _ = impostor.accept()
        with connection, connection.makefile("rb") as file:
            file.readline()
            connection.sendall(b'{"ready":true}\n')
            file.readline()
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(settings)
    with pytest.raises(AnchorError, match="died while it was asked to create"):
        AnchorSessionFactory(client, {}, lambda: "t.py::x")()
    thread.join()
    client.leave()


# What others say to the broker.

MESSAGES = {
    "nothing": b"",
    "binary": bytes(range(256)) * 10,
    "half a message": b'{"verb": "cre',
    "an empty line": b"\n",
    "no object": b"5\n",
    "null": b"null\n",
    "no verb": b"{}\n",
    "an unknown verb": b'{"verb": "rm -rf"}\n',
    "a verb that is no text": b'{"verb": ["create"]}\n',
    "no arguments": b'{"verb": "create"}\n{"verb": "end"}\n{"verb": "plan"}\n{"verb": "sweep"}\n{"verb": "take records"}\n',
    "a creation of a wrong type": b'{"verb": "create", "config": 5, "test": 5, "is_self_blocked": 5}\n',
    "an end of all": b'{"verb": "end", "nonces": ["all", "../all", ""], "ended_by": "test", "timeout": 1}\n',
    "an end in no time": b'{"verb": "end", "nonces": ["x"], "ended_by": "test", "timeout": NaN}\n',
    "records of another's": b'{"verb": "take records", "records": [{"nonce": "x", "id": "all", "state": "open"}]}\n',
    "records that are none": b'{"verb": "take records", "records": [{"x": 1}, 5]}\n',
    "deep nesting": b"[" * 100_000 + b"\n",
    "a long line": b"x" * (4 << 20) + b"\n",
    "two greetings": b'{"verb": "hello", "owner": "main", "pid": 1}\n' * 2,
    "acknowledgements": b'{"verb": "ack"}\n' * 100,
}


@pytest.mark.parametrize("is_greeted", [True, False])
def test_garbage_costs_no_other_connection_anything(
    server: FaultServer, settings: Settings, quick: None, *, is_greeted: bool
):
    stranger = server.add("pytest-anchor")
    served = Served(settings)
    try:
        first = served.connect()
        created = first.create()
        for name, message in MESSAGES.items():
            for _ in range(3):
                peer = served.connect() if is_greeted else served.peer()
                with suppress(OSError, ValueError):  # the broker has had enough
                    peer.send(message)
                    peer.socket.shutdown(socket.SHUT_WR)
                    while peer.receive():
                        pass
                peer.close()
            assert server.alive == [stranger, created["id"]], name
            answer, _ = first.ask(verb="end", nonces=[created["nonce"]], ended_by="test", timeout=5)
            assert answer == {"failures": {}, "already": [], "kept": []}, name
            created = first.create()
            assert created["id"] in server.alive, name
        answer, _ = first.ask(verb="sweep", has_remote_workers=False, verbose=False, timeout=5)
        assert answer["failed"] is is_greeted  # by the records of another's, which nobody can tell are not its own
    finally:
        served.end()
    assert server.alive == [stranger]
    assert server.count("DELETE", "/v1/sessions/all") == 0


def test_a_creation_whose_caller_hangs_up_in_the_middle_is_ended(server: FaultServer, settings: Settings, quick: None):
    served = Served(settings)
    try:
        for number, shutdown in enumerate((socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR), 1):
            peer = served.connect()
            peer.send(CREATE)
            peer.socket.shutdown(shutdown)
            until(lambda number=number: server.count("POST") == number)
            peer.close()
        until(lambda: not (server.busy or server.alive))
    finally:
        served.end()
    assert not server.alive


def test_a_process_may_call_itself_anything(server: FaultServer, settings: Settings, quick: None, tmp_path: Path):
    served = Served(settings)
    try:
        first = served.connect()
        first.create()
        for name in ("../../evil", "/evil", "a/b%2F", "..", "", "x" * 5000, "\0", "main", "é"):
            answer = served.connect(name).create()
            assert "error" in answer or answer["id"] in server.alive, name
            assert (name, os.getpid()) in process_names(settings.folder) or len(name) > 200, name
        first.ask(verb="sweep", has_remote_workers=False, verbose=False, timeout=5)
    finally:
        served.end()
    assert not list(tmp_path.rglob("*.pid"))
    assert not list(Path("/").glob("evil*"))
    assert not server.alive


# What a test does to its own process.

SELF_HARM = {
    "closes all descriptors": "anchor_session(); os.closerange(3, 1000); anchor_session()",
    "closes all descriptors and opens others": """
    one = anchor_session()
    os.closerange(3, 1000)
    mine = [open("mine", "w") for _ in range(50)] + list(socket.socketpair())
    anchor_session()
    one.end()
    mine[-1].sendall(b"x")
    assert mine[-2].recv(10) == b"x"
    for file in mine[:-2]:
        file.write("y"), file.flush()
    assert Path("mine").read_text() == "y"
""",
    "has no descriptor left": """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    one = anchor_session()
    resource.setrlimit(resource.RLIMIT_NOFILE, (20, hard))
    mine = []
    try:
        while True: mine.append(os.dup(0))
    except OSError: pass
    anchor_session()
    one.end()
    [os.close(fd) for fd in mine]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
""",
    "closes its standard streams": "anchor_session(); [os.close(fd) for fd in (0,)]; anchor_session()",
    "dies of a broken pipe": """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    one = anchor_session()
    pid = find_broker()
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}"): time.sleep(0.01)
    anchor_session()
    one.end()
""",
    "ignores its children": "signal.signal(signal.SIGCHLD, signal.SIG_IGN); anchor_session()",
    "waits for any child": """
    anchor_session()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, 0)
""",
    "changes its folder, its root and its user's": """
    one = anchor_session()
    os.mkdir("gone"), os.chdir("gone"), os.rmdir("../gone")
    os.environ["TMPDIR"] = os.environ["HOME"] = "/nowhere"
    anchor_session()
    one.end()
""",
    "has a umask": "os.umask(0o777); anchor_session(); os.umask(0o022)",
    "is a group of its own": "os.setpgid(0, 0) if os.getpid() != os.getpgid(0) else None; anchor_session()",
    "is interrupted by signals": """
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for _ in range(20): anchor_session().end()
    signal.setitimer(signal.ITIMER_REAL, 0)
""",
    "switches threads all the time": """
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=anchor_session) for _ in range(20)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
""",
}
HEAD = (
    "import os, resource, signal, socket, sys, threading, time, pytest\nfrom pathlib import Path\n"
    + FIND_BROKER
    + "def test_a(anchor_session):\n    "
)


@pytest.mark.parametrize("what", SELF_HARM)
def test_a_test_may_do_to_its_process(suite: Suite, what: str):
    suite.write(HEAD + SELF_HARM[what].strip() + "\n")
    # With its descriptors, pytest's own ways to capture lose theirs.
    assert_passes(suite, "--capture=sys", "-p", "no:logging", "-p", "no:faulthandler", "-W", "ignore")


FORKS = (
    HEAD
    + """one, pids = anchor_session(), []
    for _ in range(20):
        if (pid := os.fork()) == 0:
            try:
                mine = anchor_session()
                assert mine.id != one.id
                {end}
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [{status}] * 20
    assert not one.ended
    Path("waited").touch()
    while not Path("go").exists(): time.sleep(0.01)
    one.end()
"""
)


@pytest.mark.parametrize(
    ("workers", "end", "status"), [(0, "mine.end()", 0), (1, "pass", 0), (0, "os.kill(os.getpid(), 9)", -9)]
)
def test_forks_that_all_create_sessions(suite: Suite, workers: int, end: str, status: int):
    suite.write(FORKS.format(end=end, status=status))
    process = suite.start("-W", "ignore", workers=workers, reaper=True)
    until((suite.folder / "waited").exists, 40)
    until(lambda: len(suite.alive) == 1)  # the children's are ended while the run goes on
    (suite.folder / "go").touch()
    run = suite.finish(process)
    assert (run.status, run.outcomes) == (0, {"passed": 1})
    assert suite.server.count("POST") == 21
    suite.wait_for_quiet()
    suite.assert_settled()


FORK_FROM_A_THREAD = (
    HEAD
    + """one = anchor_session()
    statuses = []
    def fork():
        if (pid := os.fork()) == 0:
            try:
                anchor_session().end()
                os._exit(0)
            finally:
                os._exit(1)
        statuses.append(os.waitpid(pid, 0)[1])
    def create():
        for _ in range(10): anchor_session().end()
    threads = [threading.Thread(target=target) for target in [fork, create] * 5]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert statuses == [0] * 5
    one.end()
"""
)


def test_forks_from_threads_while_others_create(suite: Suite):
    suite.write(FORK_FROM_A_THREAD)
    assert_passes(suite, "-W", "ignore")
    assert suite.server.count("POST") == 56


def test_a_fork_that_goes_on_as_pytest_ends_nothing_of_its_parents(suite: Suite):
    suite.write(
        HEAD + "one = anchor_session()\n    pid = os.fork()\n    if pid: os.waitpid(pid, 0)\n"
        "    anchor_session()\n    assert not one.ended\n    Path(f'went on {os.getpid()}').touch()\n"
    )
    run = suite.run("-W", "ignore", reaper=True)
    assert run.status == 0
    assert len(list(suite.folder.glob("went on *"))) == 2
    assert suite.server.count("POST") == 3
    suite.wait_for_quiet()
    suite.assert_settled()


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_process_had_that_became_another_program_is_ended_with_it(suite: Suite, workers: int):
    suite.write(HEAD + "anchor_session()\n    os.execv('/bin/sleep', ['sleep', '0.5'])\n")
    run = suite.run(workers=workers, reaper=True)
    until(lambda: not suite.alive, 5)
    assert suite.server.count("POST") == 1
    assert run.outcomes == ({"failed": 1} if workers else {})
    suite.wait_for_quiet()
    suite.assert_settled()


def test_many_threads_ask_at_once(suite: Suite):
    suite.write(
        STOP + HEAD + "errors = []\n"
        "    def create():\n"
        "        try: anchor_session()\n"
        "        except Exception as error: errors.append(error)\n"
        "    anchor_session()\n"
        "    pid = find_broker()\n"
        "    stop(pid)\n"
        "    threads = [threading.Thread(target=create) for _ in range(300)]\n"
        "    [thread.start() for thread in threads]\n"
        "    time.sleep(1)\n"
        "    os.kill(pid, signal.SIGCONT)\n"
        "    [thread.join() for thread in threads]\n"
        "    assert errors == []\n"
    )
    assert_passes(suite)
    assert suite.server.count("POST") == 301


def test_a_kill_of_all_that_the_user_has_started_but_the_broker(suite: Suite):
    """As a terminal that is closed, or a container's stop, does it: each gets the signal."""
    suite.write(HEAD + "anchor_session()\n    Path('there').touch()\n    time.sleep(60)\n")
    process = suite.start(reaper=True)
    until((suite.folder / "there").exists)
    for number in (signal.SIGHUP, signal.SIGTERM):
        suite.signal_all(number)
    suite.outcome(process)
    until(lambda: not suite.alive, 10)
    suite.wait_for_quiet()
    suite.assert_settled()
