"""Sessions of failed tests that stay open for a person to look at."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import fault_server as faults
import pytest
from fault_server import FaultServer
from processes import kill
from real_runs import Run, Suite, environment, until

from pytest_anchor.broker import keeper as keeper_module
from pytest_anchor.broker.keeper import Keeper
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.errors import AnchorConfigError
from pytest_anchor.registry.journal import Run as Journal
from pytest_anchor.registry.locks import is_live
from pytest_anchor.settings import check_span

FAILS = """
def test_fails(anchor_session): anchor_session(); assert False
def test_passes(anchor_session): anchor_session()
"""


@pytest.fixture
def suite(suite: Suite) -> Iterator[Suite]:
    suite.write(FAILS)
    yield suite
    suite.end_kept()


def run_here(suite: Suite, *args: str) -> Run:
    """A run in this process, whose broker is not waited for."""
    suite.wait_for_broker = lambda _others: None
    return suite.run_here(*args)


def test_a_session_is_kept_and_ends_by_itself(suite: Suite, server: FaultServer):
    before = time.monotonic()
    run = run_here(suite, "--anchor-keep=failed", "--anchor-keep-for=4s")
    (kept,) = run.alive
    assert run.status == 1
    assert "2 sessions created: 1 at teardown, 1 kept" in run.section
    assert re.search(
        rf"KEPT {kept} of test_it.py::test_fails, until \d\d:\d\d:\d\d, which is in [0-4] s\n", run.section
    )
    assert f"  look at it: {server.url}/live/{kept}\n" in run.section
    assert f"  end it now: python -m pytest_anchor end --base-url {server.url} {kept}\n" in run.section
    assert "LEAKED" not in run.section
    assert "on record" not in run.section
    suite.wait_for_quiet()
    assert time.monotonic() - before > 4
    assert server.sessions[kept].tags[-1] == "pytest-anchor:outcome=failed"
    assert suite.alive == []
    assert suite.runs == []  # nothing is left on record


def test_it_is_neither_a_leak_nor_a_dead_runs(suite: Suite):
    first = run_here(suite, "--anchor-keep=failed", "--anchor-keep-for=1h")
    (kept,) = first.alive
    (folder,), (broker,) = suite.runs, suite.processes
    second = run_here(suite, "-k", "passes")
    assert second.section == "1 session created: 1 at teardown\n"
    assert second.alive == [kept]
    assert is_live(folder)
    os.kill(broker, signal.SIGTERM)
    os.kill(broker, signal.SIGTERM)
    suite.wait_for_quiet()
    assert suite.alive == []


def test_a_broker_that_is_killed_leaves_it_to_the_next_run(suite: Suite):
    first = run_here(suite, "--anchor-keep=failed")
    assert len(first.alive) == 1
    (broker,) = suite.processes
    kill(broker)
    second = run_here(suite, "-k", "passes")
    assert "recovered 1 session of the run that died" in second.section
    assert suite.alive == []


def test_a_killed_run_keeps_nothing_as_no_person_was_told(suite: Suite, server: FaultServer):
    suite.write(f"{FAILS}def test_hangs(anchor_session): anchor_session(); import time; time.sleep(60)")
    run = suite.start("--anchor-keep=failed", reaper=True)
    until(lambda: len(suite.alive) == 2 and server.count("POST") == 3)
    os.kill(run.pid, signal.SIGKILL)
    until(lambda: not suite.alive, 10)


def test_what_leaks_beside_it_is_reaped_meanwhile(suite: Suite, server: FaultServer):
    server.fail_always("DELETE", faults.status(500))
    run = suite.run("--anchor-keep=failed", "--anchor-sweep-timeout=1", reaper=True)
    assert "2 sessions created: 1 kept, 1 leaked" in run.section
    (kept,) = re.findall(r"KEPT (\S+) of", run.section)
    server.fail_always("DELETE", None)
    until(lambda: suite.alive == [kept], 20)
    assert suite.run("-k", "passes").section == "1 session created: 1 at teardown\n"
    assert suite.alive == [kept]


def test_what_the_api_has_made_beside_it_is_ended(suite: Suite, server: FaultServer):
    def twice(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
        act()
        return act()

    server.fail("POST", twice)
    run = run_here(suite, "--anchor-keep=failed", "-k", "fails")
    assert "2 sessions created: 1 by the sweep, 1 kept" in run.section
    assert re.findall(r"KEPT (\S+) of", run.section) == run.alive


@pytest.mark.parametrize("links", ["on", "off"])
def test_a_live_view_with_the_key_in_it_does_not_show_that(suite: Suite, server: FaultServer, links: str):
    def with_key(_handler: object, act: Callable[[], faults.Answer]) -> faults.Answer:
        status, headers, content = act()
        return status, headers, content.replace(b"/live/", f"/live?apiKey={faults.KEY}&id=".encode())

    server.fail_always("POST", with_key)
    run = run_here(suite, "--anchor-keep=failed", f"--anchor-links={links}", "-k", "fails")
    # That the key is nowhere, not even in a file, is checked of each run of the suite.
    assert len(run.alive) == 1
    assert run.section.count("/live?apiKey=***&id=") == (links == "on")


def test_what_keeps_a_tests_session_from_its_end(suite: Suite, server: FaultServer):
    suite.write("""
import pytest

@pytest.fixture
def ends_itself(anchor_session):
    session = anchor_session(browser={"headless": {"active": True}})
    yield
    session.end()

def test_with(anchor_session):
    with anchor_session():
        assert False

def test_expects(anchor_session):
    with pytest.raises(ValueError), anchor_session():
        raise ValueError

def test_ends_itself(ends_itself): assert False
def test_is_ended(anchor_session): anchor_session().end(); assert False
@pytest.mark.xfail
def test_xfails(anchor_session): anchor_session(); assert False
def test_shared(session_anchor_session): session_anchor_session(); assert False
def test_shares(session_anchor_session): pass
""")
    bodies = []
    act = server._act
    server._act = lambda method, path, query, body: bodies.append(body) or act(method, path, query, body)  # type: ignore[method-assign]
    run = run_here(suite, "--anchor-keep=failed", "--anchor-keep-for=1h")
    tests = re.findall(r"KEPT \S+ of test_it.py::test_(\w+),", run.section)
    assert tests == ["with", "ends_itself", "shared"]
    assert len(run.alive) == 3
    created = [body["session"] for body in bodies if "session" in body]
    assert all(one["timeout"] == {"idle_timeout": 60, "max_duration": 80} for one in created)


def test_in_ci_only_the_command_line_counts(suite: Suite):
    (suite.folder / "pytest.ini").write_text("[pytest]\nanchor_keep = failed\nanchor_keep_for = 1h\n")
    run = suite.run_here(env=environment(**suite.server.env, CI="1"))
    assert (run.outcomes, run.alive) == ({"failed": 1, "passed": 1}, [])
    run = run_here(suite)
    assert (run.outcomes, len(run.alive)) == ({"failed": 1, "passed": 1}, 1)


def test_the_debugger_shows_where_to_look(suite: Suite, server: FaultServer):
    suite.write("def test_it(anchor_session): session = anchor_session(); assert False")
    command = [sys.executable, "-m", "pytest", "-p", "pytest_anchor", "--pdb", "--anchor-reaper=off"]
    asked = "print(f'{session.ended=}')\nq\n"
    env = environment(**server.env)
    done = subprocess.run(
        command, input=asked, cwd=suite.folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    (session,) = set(server.sessions) - set(suite.strangers)
    assert f"anchor: the live view of the test's session: {server.url}/live/{session}\n" in done.stdout
    assert "session.ended=False" in done.stdout
    assert "1 session created: 1 at teardown" in done.stdout
    assert suite.alive == []


# The keeper, without a run around it.


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr(keeper_module, "POLL_INTERVAL", 0.02)
    monkeypatch.setattr(keeper_module, "END_AGAIN", 0.05)
    return Keeper(0.4)


def keep(owner: Owner, keeper: Keeper, test: str = "t") -> str:
    """A kept session's id."""
    owner._keeper = keeper
    session = owner.create({}, Request(test))
    owner.keep([session.record.nonce, "unknown"])
    assert owner.end([session.record.nonce], ended_by="teardown", timeout=5) == {}
    assert owner.end([session.record.nonce], ended_by="test", timeout=5) == {}
    assert owner.left == set()
    return str(session.record.id)


def test_it_is_ended_when_its_time_is_over(owner: Owner, keeper: Keeper, server: FaultServer, run: Journal):
    kept = keep(owner, keeper)
    (record,) = run.read().records.values()
    assert record.kept_until is not None
    assert 0 < record.kept_until - time.time() <= 0.4
    assert server.alive == [kept]
    keeper.wait(lambda: True)
    assert server.alive == []
    assert (record.state, record.ended_by) == ("ended", "keeper")
    assert keeper.kept == {}


def test_it_is_ended_at_once_on_request(owner: Owner, server: FaultServer, keeper: Keeper):
    keeper._seconds = 3600.0
    kept = keep(owner, keeper)
    assert server.alive == [kept]
    keeper.hurry()
    keeper.wait(lambda: True)
    assert server.alive == []


def test_it_makes_room_for_a_test_that_waits(make_owner: Callable[..., Owner], server: FaultServer, keeper: Keeper):
    keeper._seconds = 3600.0
    owner = make_owner(max_sessions=2)
    first, second = keep(owner, keeper, "a"), keep(owner, keeper, "b")
    assert server.alive == [first, second]
    created = owner.create({}, Request("c", is_self_blocked=True))
    assert server.alive == [second, created.record.id]
    owner.end([created.record.nonce], ended_by="test", timeout=5)
    keeper.hurry()
    keeper.wait(lambda: True)


def test_what_cannot_be_ended_is_tried_thrice(owner: Owner, server: FaultServer, keeper: Keeper):
    server.fail_always("DELETE", faults.status(403))
    kept = keep(owner, keeper)
    keeper.wait(lambda: True)
    assert server.alive == [kept]
    assert server.count("DELETE") == keeper_module.ATTEMPTS
    server.fail_always("DELETE", None)


def test_whatever_fails_meanwhile_it_is_ended(
    owner: Owner, server: FaultServer, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    keep(owner, keeper)
    monkeypatch.setattr(owner.limits, "is_crowded", fails)
    monkeypatch.setattr(keeper_module, "END_AGAIN", 0.1)
    attempts = iter([fails, owner.end_kept])

    def end_kept(*given: Any) -> Any:
        return next(attempts)(*given)

    monkeypatch.setattr(owner, "end_kept", end_kept)
    keeper.wait(lambda: True)
    assert server.alive == []


def test_without_a_thread_to_end_it_it_is_ended_as_ever(
    owner: Owner, server: FaultServer, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
):
    start = threading.Thread.start

    def no_more(thread: threading.Thread) -> None:
        if thread.name == "keeper":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_more)
    owner._keeper = keeper
    session = owner.create({}, Request("t"))
    owner.keep([session.record.nonce])
    assert owner.end([session.record.nonce], ended_by="teardown", timeout=5) == {}
    assert server.alive == []


def test_what_hangs_holds_up_no_other(owner: Owner, server: FaultServer, keeper: Keeper):
    server.fail("DELETE", faults.silent)
    for test in "abc":
        keep(owner, keeper, test)
    until(lambda: len(server.alive) == 1, 10)


@pytest.mark.parametrize("value", ["", "0s", "15", "1d", "25h", "-1m", "x", "1e3s", "١m"])
def test_a_time_has_a_unit(value: str):
    with pytest.raises(AnchorConfigError, match="--anchor-keep-for takes a time such as 90s, 15m or 1h"):
        check_span("--anchor-keep-for", value)
    assert [check_span("x", text) for text in ("90s", "1.5m", "24h")] == [90, 90, 86400]
