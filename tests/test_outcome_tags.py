"""What became of a test is told by its sessions' tags, once these are over."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import fault_server as faults
import pytest
from fault_server import FaultServer
from real_runs import Suite
from records import opened, tags

from pytest_anchor.api import AnchorAPI
from pytest_anchor.broker import outcome_tags as module
from pytest_anchor.broker.outcome_tags import OutcomeTags
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record
from pytest_anchor.tags import named_tag

OUTCOME = "pytest-anchor:outcome="


@pytest.fixture
def suite(suite: Suite) -> Suite:
    suite.write("""
def test_passes(anchor_session): anchor_session(session={"tags": ["mine"]})
def test_fails(anchor_session): anchor_session().end(); assert False
def test_shared(session_anchor_session): session_anchor_session()
def test_fails_too(session_anchor_session): assert False
def test_shares(session_anchor_session): pass
""")
    return suite


def of_the_suite(suite: Suite) -> list[list[str]]:
    """The tags of its sessions, without what only a run knows."""
    sessions = [one for one in suite.server.sessions.values() if one.id not in suite.strangers]
    return [[re.sub(r"(:run=|:new=).*", r"\1", tag) for tag in one.tags] for one in sessions]


def test_each_session_tells_its_test_and_what_became_of_it(suite: Suite):
    run = suite.run_here()
    assert run.section == "3 sessions created: 1 ended by the tests, 2 at teardown\n"
    ours = ["pytest-anchor", "pytest-anchor:run=", "pytest-anchor:new="]
    owner = "pytest-anchor:owner=main"
    assert of_the_suite(suite) == [
        ["mine", *ours, "pytest-anchor:test=test_it.py::test_passes", owner, f"{OUTCOME}passed"],
        [*ours, "pytest-anchor:test=test_it.py::test_fails", owner, f"{OUTCOME}failed"],
        [*ours, "pytest-anchor:test=test_it.py::test_shared", owner, f"{OUTCOME}failed"],
    ]
    assert len(suite.server.asked_for("TAGS")) == 3


def test_nothing_of_it_where_it_is_off(suite: Suite):
    suite.run_here("--anchor-mark-outcome=off")
    assert all(len(tags) - ("mine" in tags) == 3 for tags in of_the_suite(suite))


def test_one_refusal_switches_it_off(suite: Suite, server: FaultServer):
    server.fail_always("TAGS", faults.status(404, "no such thing"))
    run = suite.run_here()
    assert (run.status, run.outcomes) == (1, {"failed": 2, "passed": 3})
    first, second = run.section.splitlines()
    assert first == "3 sessions created: 1 ended by the tests, 2 at teardown"
    assert second.startswith("outcomes are missing in the dashboard: HTTP 404: “no such thing”")
    assert len(server.asked_for("TAGS")) == 1


# Without a run around it.


@pytest.fixture
def outcome_tags(api: AnchorAPI) -> OutcomeTags:
    return OutcomeTags(api)


@pytest.fixture
def tested(server: FaultServer, api: AnchorAPI, run: Run, outcome_tags: OutcomeTags) -> Callable[..., Record]:
    def tested(nonce: str, *outcomes: str, over: bool = True) -> Record:
        opened(server, api, run, nonce)
        outcome_tags.created(nonce, list(tags(nonce)))
        for number, outcome in enumerate(outcomes):
            run.append("tested", nonce, test=f"t{number}", began=1, ended=2, outcome=outcome)
        if over:
            run.append("ended", nonce, ended_by="test", already=False)
        return run.known(nonce)

    return tested


@pytest.mark.parametrize(
    ("outcomes", "shown"),
    [
        (["passed", "failed", "error"], "failed"),
        (["skipped", "error"], "error"),
        (["xfailed", "passed"], "passed"),
        (["xpassed", "passed"], "xpassed"),
        (["skipped", "xfailed"], "xfailed"),
    ],
)
def test_of_several_outcomes_the_worst_counts(tested, outcome_tags, server: FaultServer, outcomes, shown):
    record = tested("inv-1", *outcomes)
    outcome_tags.mark([record])
    outcome_tags.mark([record])
    outcome_tags.finish()
    assert server.sessions[record.id].tags == [*tags("inv-1"), f"{OUTCOME}{shown}"]
    assert len(server.asked_for_evidence) == 1
    assert list(outcome_tags.lines()) == []


def test_what_runs_keeps_its_tags(tested, outcome_tags, server: FaultServer):
    outcome_tags.mark([tested("inv-1", "failed", over=False), tested("inv-2")])
    outcome_tags.finish()
    assert not server.asked_for_evidence


@pytest.mark.parametrize(
    "fault",
    [faults.status(500), faults.reset, faults.silent, faults.status(429, Retry_After="30"), faults.trickle(b"")],
)
def test_an_api_that_fails_holds_up_nothing(
    tested, outcome_tags, server: FaultServer, monkeypatch: pytest.MonkeyPatch, fault: faults.Fault
):
    monkeypatch.setattr(module, "CALL_TIMEOUT", 0.2)
    monkeypatch.setattr(module, "FINISH_TIMEOUT", 1.0)
    server.fail_always("TAGS", fault)
    outcome_tags.mark([tested(f"inv-{number}", "passed") for number in range(20)])
    outcome_tags.finish()
    server.fail_always("TAGS", None)
    assert len(list(outcome_tags.lines())) <= 1
    assert len(set(server.asked_for("TAGS"))) < 20  # most are not even tried


def test_several_at_once_meet_one_refusal(tested, outcome_tags, server: FaultServer):
    server.fail_always("TAGS", lambda _handler, _act: time.sleep(0.1) or faults.error(404))
    outcome_tags.mark([tested(f"inv-{number}", "passed") for number in range(8)])
    outcome_tags.finish()
    assert len(list(outcome_tags.lines())) == 1
    assert len(server.asked_for("TAGS")) == 1


def test_what_has_not_come_by_the_end_is_a_line(
    tested, outcome_tags, server: FaultServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "FINISH_TIMEOUT", 0.1)
    server.fail("TAGS", faults.silent)
    outcome_tags.mark([tested("inv-1", "passed")])
    outcome_tags.finish()
    ((text, is_trouble),) = outcome_tags.lines()
    assert text.startswith("outcomes are missing in the dashboard: the API did not answer in the time there was")
    assert is_trouble


def test_a_tag_is_plain_and_short():
    assert named_tag("test", "t.py::x[a,b\n-ü]") == "pytest-anchor:test=t.py::x[a_b_-_]"
    long = named_tag("test", "x" * 500 + "end")
    assert len(long) < 100
    assert long.endswith("end")
