"""A test may patch, freeze or break anything in its own process while it creates, uses and ends a session."""

from __future__ import annotations

import importlib.util
import itertools
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import fault_server as faults
import pytest
from real_runs import Suite

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]


class Patch(NamedTuple):
    """What a test does to its process.

    :param setup: the body of a fixture `patched`, which may yield.
    :param module: the library that it takes.
    :param args: what pytest needs for it.
    """

    setup: str
    module: str = ""
    args: tuple[str, ...] = ()


def replaced(*names: str) -> Patch:
    """Functions and types that raise while the fixture is set up."""
    lines = [f"stack.enter_context(mock.patch({name!r}, side_effect=AssertionError({name!r})))" for name in names]
    body = "\n        ".join(lines)
    return Patch(f"with contextlib.ExitStack() as stack:\n        {body}\n        yield")


PATCHES = {
    "responses": Patch(
        "with responses.RequestsMock(assert_all_requests_are_fired=False) as mocked:\n"
        "        for method in ('GET', 'POST', 'DELETE'):\n"
        "            mocked.add(method, re.compile('.*'), json={'data': {'status': 'ended', 'id': 'mock'}})\n"
        "        yield",
        "responses",
    ),
    "requests-mock": Patch(
        "with requests_mock.Mocker() as mocked:\n"
        "        mocked.register_uri(requests_mock.ANY, requests_mock.ANY, json={'data': {'id': 'mock'}})\n"
        "        yield",
        "requests_mock",
    ),
    "a mock of requests.Session.request": Patch(
        "with mock.patch('requests.sessions.Session.request'), mock.patch('requests.Session.send'):\n        yield"
    ),
    "httpretty": Patch(
        "httpretty.enable(allow_net_connect=False)\n    yield\n    httpretty.disable()\n    httpretty.reset()",
        "httpretty",
        ("-W", "ignore"),
    ),
    "pytest-socket": Patch(
        "pytest_socket.disable_socket()\n    yield\n    pytest_socket.enable_socket()", "pytest_socket"
    ),
    "vcrpy": Patch("with vcr.use_cassette('cassette.yaml', record_mode='once'):\n        yield", "vcr"),
    "requests-cache": Patch(
        "requests_cache.install_cache('cache', backend='memory')\n    yield\n    requests_cache.uninstall_cache()",
        "requests_cache",
    ),
    "freezegun": Patch("with freezegun.freeze_time('2020-01-01'):\n        yield", "freezegun"),
    "freezegun that ticks": Patch("with freezegun.freeze_time('2020-01-01', tick=True):\n        yield", "freezegun"),
    "time-machine": Patch("with time_machine.travel(0, tick=False):\n        yield", "time_machine"),
    "pyfakefs": Patch("request.getfixturevalue('fs')\n    yield", "pyfakefs", ("-p", "pyfakefs.pytest_plugin")),
    "pytest-subprocess": Patch(
        "request.getfixturevalue('fp')\n    yield", "pytest_subprocess", ("-p", "pytest_subprocess.fixtures")
    ),
    "gevent": Patch("gevent.monkey.patch_all()\n    yield", "gevent.monkey", ("-W", "ignore")),
    "os": replaced("os.open", "os.getpid", "os.mkdir", "os.rename", "os.urandom", "os.fork", "os.pipe", "os.write"),
    "time": replaced("time.time", "time.monotonic", "time.sleep"),
    "json": replaced("json.dumps", "json.loads", "json.JSONEncoder", "json.JSONDecoder"),
    "socket and select": replaced("socket.socket", "socket.create_connection", "select.select", "socket.getaddrinfo"),
    "threading": replaced("threading.Thread.start", "threading.Lock", "threading.RLock", "threading.Condition"),
    "subprocess": replaced("subprocess.Popen", "subprocess.run"),
    "hashlib, random, uuid": replaced("hashlib.sha256", "random.random", "random.uniform", "uuid.uuid4"),
    "builtins.open": replaced("builtins.open", "io.open", "pathlib.Path.open"),
    "sys.path, sys.executable, the environment": Patch(
        "with mock.patch('sys.path', []), mock.patch('sys.executable', ''), mock.patch.dict('os.environ', clear=True):\n"
        "        yield"
    ),
    "sys.modules": Patch(
        "with mock.patch.dict('sys.modules', {'requests': None, 'filelock': None, 'json': None, 'socket': None}):\n"
        "        yield"
    ),
    "proxy and certificates": Patch(
        "with mock.patch.dict('os.environ', {'HTTP_PROXY': 'http://127.0.0.1:9', 'REQUESTS_CA_BUNDLE': 'nowhere'}):\n"
        "        yield"
    ),
    "a socket's default timeout": Patch(
        "socket.setdefaulttimeout(0.000001)\n    yield\n    socket.setdefaulttimeout(None)"
    ),
    "descriptors at their limit": Patch(
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))\n"
        "    held = []\n"
        "    with contextlib.suppress(OSError):\n"
        "        while True:\n"
        "            held.append(os.dup(1))\n"
        "    yield\n"
        "    for one in held:\n"
        "        os.close(one)\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))"
    ),
}

HEAD = """
import contextlib, os, posix, re, resource, socket, sys, threading
from unittest import mock
import pytest

@pytest.fixture
def created(anchor_session):
    return anchor_session()

def die_in_a_child(anchor_session):
    if (child := posix.fork()) == 0:
        anchor_session()
        posix._exit(3)
    posix.waitpid(child, 0)
"""

# The patch is set up before our fixture, after it, and while a wider one is used; a test fails, and a process dies.
TESTS = """
{imports}

@pytest.fixture
def patched_{number}(request):
    {setup}

def test_before_{number}(patched_{number}, anchor_session):
    first = anchor_session()
    assert first.id != "mock" and not first.ended
    first.end()
    anchor_session()

def test_after_{number}(created, patched_{number}, anchor_session):
    anchor_session()
    created.end()

def test_wide_{number}(session_anchor_session, patched_{number}):
    session_anchor_session()

def test_dies_{number}(patched_{number}, anchor_session):
    die_in_a_child(anchor_session)

@pytest.mark.xfail(raises=ZeroDivisionError, strict=True)
def test_fails_{number}(patched_{number}, anchor_session):
    anchor_session()
    raise ZeroDivisionError
"""
PASSES, FAILS, SESSIONS = 4, 1, 7  # of the tests for one patch

MOMENT = 1.5  # seconds
ALONE = "gevent"  # cannot be undone


def write(suite: Suite, *names: str) -> tuple[int, list[str]]:
    """Write the tests for each of the patches whose library is there.

    :returns: how many patches these are, and what pytest needs for them.
    """
    text, args, count = HEAD, [], 0
    for number, name in enumerate(names):
        patch = PATCHES[name]
        if patch.module and importlib.util.find_spec(patch.module.partition(".")[0]) is None:
            continue
        count += 1
        args += patch.args
        imports = f"import {patch.module}" if patch.module else ""
        text += TESTS.format(imports=imports, setup=patch.setup, number=number)
    suite.write(text)
    return count, args


def every(number: int, fault: faults.Fault) -> faults.Fault:
    """The fault for each request whose number divides by *number*, the true answer for all others.

    Not twice within a moment: a creation would meet it at each of its attempts.
    """
    requests = itertools.count(1)
    last = [0.0]

    def fault_or_not(handler: faults._Handler, act: Callable[[], faults.Answer]) -> faults.Answer | None:
        if next(requests) % number or time.monotonic() < last[0] + MOMENT:
            return act()
        last[0] = time.monotonic()
        return fault(handler, act)

    return fault_or_not


SOME = [name for name in PATCHES if name != ALONE]


def test_under_any_patch_sessions_are_created_and_ended(suite: Suite):
    count, args = write(suite, *SOME)
    run = suite.run(*args)
    assert run.outcomes == {"passed": PASSES * count, "xfailed": FAILS * count}, run.out
    assert f"{SESSIONS * count} sessions created" in run.section
    assert (run.status, run.alive, run.recorded) == (0, [], False)


def test_under_any_patch_lost_answers_limits_and_failing_ends_cost_nothing(suite: Suite):
    count, args = write(suite, *SOME)
    suite.server.fail_always("POST", every(7, faults.lost_reset))
    suite.server.fail("POST", faults.status(429, Retry_After="1"))
    suite.server.fail_always("DELETE", every(5, faults.status(500)))
    run = suite.run(*args, workers=2)
    assert run.outcomes == {"passed": PASSES * count, "xfailed": FAILS * count}, run.out
    assert re.search("creations? retried", run.section)
    assert (run.status, run.alive, run.recorded) == (0, [], False)


def test_under_gevent(suite: Suite):
    count, args = write(suite, ALONE)
    if not count:
        pytest.skip("gevent is not installed")
    run = suite.run(*args)
    assert run.outcomes == {"passed": PASSES, "xfailed": FAILS}, run.out
    assert (run.status, run.alive, run.recorded) == (0, [], False)


ASYNC = """
import asyncio

LOOP = asyncio.new_event_loop()  # most patches let no other be made

async def scenario(async_anchor_session):
    async def create_and_end():
        async with await async_anchor_session() as session:
            assert session.id != "mock"
    await asyncio.gather(create_and_end(), create_and_end())
    creation = asyncio.ensure_future(async_anchor_session())
    await asyncio.sleep(0)
    creation.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creation
    await async_anchor_session()
"""
ASYNC_TEST = """
def test_async_{number}(patched_{number}, async_anchor_session):
    LOOP.run_until_complete(scenario(async_anchor_session))
"""


def test_under_a_patch_an_event_loop_creates_and_ends_sessions_and_withdraws_creations(suite: Suite):
    # Without a clock, no event loop runs; and several connections need several descriptors.
    count, args = write(suite, *[name for name in SOME if name not in ("time", "descriptors at their limit")])
    tests = (suite.folder / "test_it.py").read_text() + ASYNC
    for number in re.findall(r"def patched_(\d+)", tests):
        tests += ASYNC_TEST.format(number=number)
    suite.write(tests)
    run = suite.run(*args, "-k", "test_async")
    assert run.outcomes == {"passed": count, "deselected": (PASSES + FAILS) * count}, run.out
    assert (run.status, run.alive, run.recorded) == (0, [], False)


KILLED = """
def test_it(patched_0, session_anchor_session):
    session_anchor_session()
    posix.kill(posix.getpid(), 9)
"""


@pytest.mark.parametrize("patch", ["pyfakefs", "freezegun", "os"])
def test_what_is_killed_under_a_patch_leaves_nothing(suite: Suite, patch: str):
    count, args = write(suite, patch)
    if not count:
        pytest.skip(f"{patch} is not installed")
    suite.write((suite.folder / "test_it.py").read_text() + KILLED)
    suite.run(*args, "-k", "test_it", reaper=True)
    suite.wait_for_quiet()
    assert len(suite.server.sessions) == len(suite.strangers) + SESSIONS + 1
    assert not suite.alive


UNTOUCHED = """
import random, sys
import pytest, requests

def test_a_mock_counts_calls_of_the_suite_only(anchor_session):
    responses = pytest.importorskip("responses")
    with responses.RequestsMock() as mocked:
        mocked.get("https://example.com", json={})
        anchor_session().end()
        requests.get("https://example.com")
        assert len(mocked.calls) == 1

def test_a_cassette_holds_requests_of_the_suite_only(anchor_session):
    vcr = pytest.importorskip("vcr")
    with vcr.use_cassette("cassette.yaml", record_mode="all") as cassette:
        anchor_session().end()
        assert len(cassette) == 0

def test_seeded_numbers_stay_the_same(anchor_session):
    random.seed(4711)
    expected = [random.random() for _ in range(3)]
    random.seed(4711)
    anchor_session().end()
    assert [random.random() for _ in range(3)] == expected

def test_no_child_is_met(anchor_session):
    import os
    anchor_session()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)

def test_no_thread_is_started_and_no_library_imported(anchor_session):
    import threading
    anchor_session()
    assert threading.active_count() == 1
    assert "filelock" not in sys.modules
"""


def test_what_tests_count_and_record_is_theirs(suite: Suite):
    suite.server.fail("POST", *[faults.status(429, Retry_After="0")] * 2)
    suite.write(UNTOUCHED)
    run = suite.run()
    assert run.outcomes == {"passed": 5}, run.out
    assert not (suite.folder / "cassette.yaml").exists()


PARALLEL = """
def test_it(anchor_session):
    session = anchor_session()
    assert not session.ended
    session.end()
    anchor_session()
"""


def test_threads_that_run_one_test_at_once(suite: Suite):
    pytest.importorskip("pytest_run_parallel")
    suite.write(PARALLEL)
    run = suite.run("-p", "pytest_run_parallel.plugin", "--parallel-threads=4", "-W", "ignore")
    assert (run.status, run.outcomes["passed"]) == (0, 1)
    assert "8 sessions created: 4 ended by the tests, 4 at teardown" in run.section
    assert not run.alive
