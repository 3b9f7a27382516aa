"""Runs that end badly, run out of something, or share a folder: what is alive at the server afterwards."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable

import fault_server as faults
import pytest
from fault_server import FaultServer
from real_runs import FIND_BROKER, Run, Suite, environment, until

pytestmark = pytest.mark.slow

SHORT = "--anchor-sweep-timeout=1"


def assert_clean(run: Run, **outcomes: int) -> None:
    assert not run.alive
    assert not run.recorded
    assert run.outcomes == outcomes


# Workers that die.

CRASH = """
import json, os, signal, time, threading, urllib.request
import pytest

def alive(tag="pytest-anchor"):
    request = urllib.request.Request(
        os.environ["ANCHORBROWSER_BASE_URL"] + "/v1/sessions/all/status?tags=" + tag,
        headers={{"anchor-api-key": os.environ["ANCHORBROWSER_API_KEY"]}},
    )
    with urllib.request.urlopen(request) as answer:
        items = json.load(answer)["data"]["items"]
    return {{one["session_id"] for one in items if one["status"] == "running"}}

def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)

STRANGERS = {strangers!r}

def test_dies(anchor_session, module_anchor_session):
    anchor_session()
    module_anchor_session()
    until(lambda: len(alive() - STRANGERS) == 3)  # the other test's own, too
    open("dying", "w").close()
    {death}

def test_sees_them_go(anchor_session):
    mine = anchor_session()
    until(lambda: os.path.exists("dying"))
    until(lambda: alive() - STRANGERS == {{mine.id}})
"""


@pytest.mark.parametrize("death", ["os._exit(3)", "os.kill(os.getpid(), signal.SIGKILL)"], ids=["exit", "kill"])
def test_a_dead_workers_sessions_are_ended_while_the_run_goes_on(suite: Suite, death: str):
    suite.write(CRASH.format(death=death, strangers=set(suite.strangers)))
    run = suite.run(workers=2)
    assert_clean(run, failed=1, passed=1)
    assert run.status == 1
    assert "3 sessions created: 1 at teardown, 2 by the sweep" in run.section


def test_a_worker_that_dies_during_a_creation(suite: Suite):
    # The session comes to be after its worker is gone, and its id reaches nobody.
    suite.server.fail("POST", faults.slow(0), faults.slow(1.5))
    suite.write(
        "import os, threading\n"
        "def test_dies(anchor_session):\n"
        "    anchor_session().end()\n"
        "    threading.Timer(0.7, os._exit, [3]).start()\n"
        "    anchor_session()\n"
    )
    run = suite.run("--max-worker-restart=0", workers=1)
    assert run.status != 0
    assert len(suite.server.sessions) == len(suite.strangers) + 2
    assert not run.alive
    assert not run.recorded
    assert "2 sessions created: 1 ended by the tests, 1 by the sweep" in run.section


# Tests that do not go well.

PAGE = """
import pytest

@pytest.fixture(scope="{0}")
def page({1}anchor_session):
    {1}anchor_session()
    {2}

def test_a(page): {3}
def test_b(session_anchor_session): session_anchor_session()
"""


@pytest.mark.parametrize(
    ("test", "option", "status", "creations", "outcomes"),
    [
        (PAGE.format("function", "", "yield", "raise KeyboardInterrupt"), "-s", 2, 1, {}),
        (PAGE.format("function", "", "yield", "pytest.exit('enough', 7)"), "-s", 7, 1, {}),
        (PAGE.format("function", "", "yield", "assert 0"), "-s", 1, 2, {"failed": 1, "passed": 1}),
        (PAGE.format("function", "", "1 / 0", "pass"), "-s", 1, 2, {"error": 1, "passed": 1}),
        (PAGE.format("module", "module_", "1 / 0", "pass"), "-s", 1, 2, {"error": 1, "passed": 1}),
        (PAGE.format("session", "session_", "yield; 1 / 0", "pass"), "-s", 1, 2, {"passed": 2, "error": 1}),
        (PAGE.format("class", "class_", "yield", "assert 0"), "-x", 1, 1, {"failed": 1}),
        (PAGE.format("package", "package_", "yield", "pass"), "--cache-clear", 0, 2, {"passed": 2}),
        (PAGE.format("function", "", "yield", "pass"), "--setup-show", 0, 2, {"passed": 2}),
    ],
    ids=[
        "interrupt",
        "exit",
        "failing",
        "setup",
        "module-setup",
        "session-teardown",
        "-x",
        "cache-clear",
        "setup-show",
    ],
)
def test_whatever_tests_do(suite: Suite, test: str, option: str, status: int, creations: int, outcomes: dict[str, int]):
    suite.write(test)
    run = suite.run_here(option)
    assert run.status == status
    assert not run.alive
    assert not run.recorded
    if outcomes:
        assert run.outcomes == outcomes
    assert suite.server.count("POST") == creations
    if status != 7:  # with a status of its own pytest shows no summary
        assert re.match(rf"{creations} sessions? created: {creations} at teardown\n", run.section)


# Runs that lack something.


def test_no_key(suite: Suite):
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    run = suite.run_here(env=environment(ANCHORBROWSER_BASE_URL=suite.server.url))
    assert run.status == 1
    assert "ANCHORBROWSER_API_KEY" in run.out
    assert "--anchor-local" in run.out
    assert not suite.server.requests
    assert not suite.registry.exists()


NO_SPACE = (
    FIND_BROKER
    + """
import resource
import pytest
from pytest_anchor import AnchorRegistryError

def test_a(anchor_session, request):
    anchor_session().end()
    (journal,) = request.config.rootpath.glob(".pytest_anchor/*/journal.jsonl")
    intent = len(journal.read_bytes().splitlines()[1])  # the first is about the run
    infinity, broker = resource.RLIM_INFINITY, find_broker()
    resource.prlimit(broker, resource.RLIMIT_FSIZE, (journal.stat().st_size + ROOM, infinity))
    try:
        with pytest.raises(AnchorRegistryError, match="--anchor-registry DIR"):
            anchor_session()
    finally:
        resource.prlimit(broker, resource.RLIMIT_FSIZE, (infinity, infinity))
    anchor_session()  # there is room again
"""
)


@pytest.mark.parametrize(("room", "creations"), [("10", 2), ("intent + 10", 3)], ids=["for-no-intent", "for-no-id"])
def test_a_journal_that_cannot_grow(suite: Suite, room: str, creations: int):
    suite.write(NO_SPACE.replace("ROOM", room))
    run = suite.run_here()
    assert_clean(run, passed=1)
    assert run.status == 0
    # Each is ended before the next is made: also the one whose id could not be written down.
    assert [method for method, _ in suite.server.requests if method != "GET"] == ["POST", "DELETE"] * creations


def file_in_the_way(suite: Suite) -> None:
    suite.registry.write_text("")


def link_in_the_way(suite: Suite) -> None:
    (suite.folder / "elsewhere").mkdir()
    suite.registry.symlink_to("elsewhere")


def full_disk(suite: Suite) -> None:
    suite.registry.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", suite.registry], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting takes root")
    with (suite.registry / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(4096))


@pytest.mark.parametrize(("arrange", "workers"), [(file_in_the_way, 0), (link_in_the_way, 2), (full_disk, 0)])
def test_an_unusable_registry_refuses_before_anything_is_created(
    suite: Suite, arrange: Callable[[Suite], None], workers: int
):
    arrange(suite)
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    try:
        run = suite.run_here(workers=workers)
    finally:
        if os.path.ismount(suite.registry):
            subprocess.run(["umount", suite.registry], check=True)
    assert run.status == 1
    assert f"the session registry '{suite.registry}" in run.out
    assert "--anchor-registry DIR" in run.out
    assert not suite.server.requests


# Many at once.

THREADS = """
from concurrent.futures import ThreadPoolExecutor

def test_threads(anchor_session, module_anchor_session):
    def three(number):
        factory = anchor_session if number % 2 else module_anchor_session
        return [factory().id for _ in range(3)]

    with ThreadPoolExecutor(10) as pool:
        ids = sum(pool.map(three, range(10)), [])
    assert len(set(ids)) == 30
"""


def test_threads(suite: Suite):
    suite.write(THREADS)
    run = suite.run_here()
    assert_clean(run, passed=1)
    assert run.status == 0
    assert "30 sessions created: 30 at teardown\n" in run.section


TWO_RUNS = """
import os, time, urllib.request
from pathlib import Path

def test_it(anchor_session):
    anchor_session()
    me, other = os.environ["ME"], os.environ["OTHER"]
    Path(me).touch()
    deadline = time.monotonic() + 30
    while not Path(other).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


def test_two_runs_in_one_folder_end_their_own_only(suite: Suite):
    # Both have a session before either ends; the second then goes on until it is told to stop.
    suite.write(TWO_RUNS)
    env = environment(**suite.server.env)
    first = suite.start(env={**env, "ME": "first", "OTHER": "second"})
    second = suite.start(env={**env, "ME": "second", "OTHER": "go"})
    until(lambda: first.poll() is not None)
    (left,) = suite.alive
    (folder,) = (one for one in suite.registry.iterdir() if one.is_dir())
    assert f'"id":"{left}"' in (folder / "journal.jsonl").read_text()
    (suite.folder / "go").touch()
    for process in (second, first):
        run = suite.finish(process)
        assert run.status == 0
        assert_clean(run, passed=1)
        assert "1 session created: 1 at teardown\n" in run.section


# A second server, to which the first redirects.


def test_redirects_are_not_followed(suite: Suite):
    with FaultServer() as elsewhere:
        for method in ("POST", "DELETE"):
            answer = faults.body(b"", 307, Location=f"{elsewhere.url}/v1/sessions")
            suite.server.fail(method, answer)
        suite.write(
            "import pytest\n"
            "def test_a(anchor_session):\n"
            "    with pytest.raises(Exception, match='redirect'):\n"
            "        anchor_session()\n"
            "    anchor_session()\n"
        )
        run = suite.run_here(SHORT)
        assert run.outcomes == {"passed": 1}
        assert "1 session created: 1 by the sweep, 1 unresolved" in run.section
        assert not run.alive
        assert not elsewhere.requests
        assert not elsewhere.connections


def test_a_record_that_cannot_be_read_fails_the_run_and_says_so(suite: Suite):
    suite.write(
        "import pathlib\n"
        "def test_a(anchor_session):\n"
        "    anchor_session()\n"
        "    (journal,) = pathlib.Path('.pytest_anchor').glob('*/journal.jsonl')\n"
        "    journal.unlink()\n"
        "    journal.mkdir()\n"
    )
    run = suite.run_here(SHORT)
    assert run.status == 1
    assert not run.alive  # teardown ended it; but nobody can say that it was the only one
    assert "the sweep is incomplete: the session registry" in run.section
    assert "INTERNALERROR" not in run.out + run.err


def test_a_second_ctrl_c_that_meets_pytest_at_the_first_gives_the_prompt_back(suite: Suite):
    suite.server.held["DELETE"] = threading.Event()
    suite.write(
        "import os, signal, pytest\n"
        "@pytest.hookimpl(trylast=True)\n"
        "def pytest_keyboard_interrupt(): os.kill(os.getpid(), signal.SIGINT)",
        "conftest.py",
    )
    suite.write(
        "import os, signal\n"
        "def test_it(session_anchor_session):\n"
        "    session_anchor_session()\n"
        "    os.kill(os.getpid(), signal.SIGINT)"
    )
    run = suite.run(reaper=True)
    suite.server.held["DELETE"].set()
    assert run.status == -signal.SIGINT
    assert "the sweep was interrupted" in run.section
    suite.wait_for_quiet(30)
    suite.assert_settled()
