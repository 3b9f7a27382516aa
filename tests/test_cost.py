"""What a run costs: minutes of browser, credits, and a budget for them."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import fault_server as faults
import pytest
from fault_server import FaultServer

from pytest_anchor.api import AnchorAPI
from pytest_anchor.api.headers import parse_amount
from pytest_anchor.broker.owner import Owner, Request
from pytest_anchor.configuration import Wanted
from pytest_anchor.errors import AnchorConfigError, AnchorLimitError
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record, State
from pytest_anchor.reporting.summary import Report
from pytest_anchor.settings import check_minutes


def record(nonce: str, created: float | None, ended: float | None, state: str = "ended") -> Record:
    return Record(nonce, id=nonce, state=state, ended_by="test", created_at=created, ended_at=ended)


def report(*records: Record, **attributes: object) -> Report:
    made = Report(State({one.nonce: one for one in records}), Path("/reg/run"))
    vars(made).update(attributes)
    return made


def first_line(made: Report) -> str:
    return next(made.lines()).text


def test_the_minutes_of_all_sessions_are_added_up():
    made = report(record("1", 100, 700), record("2", 100, 1540), record("3", None, 5), record("4", 9, None))
    assert first_line(made) == "4 sessions created: 4 ended by the tests; 34 min of browser"
    made.credits = 5.1
    assert first_line(made).endswith("; 34 min of browser, 5.1 credits")


def test_next_to_nothing_is_not_told():
    assert first_line(report(record("1", 0, 29))) == "1 session created: 1 ended by the tests"
    assert first_line(report(record("1", 0, 31))).endswith("; 1 min of browser")


def test_what_runs_still_counts_until_now():
    open_one = record("1", time.time() - 600, None, "open")
    assert "; 10 min of browser" in first_line(report(open_one))
    assert State({"1": open_one}).browser_seconds(time.time() - 1000) == 0.0  # by a clock that was set back


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        *[(1, 1), (0.5, 0.5), ("1.25", 1.25), (0, 0)],
        *((other, None) for other in ["N/A", True, -1, math.nan, math.inf, 1e300, "1e5", "1" * 99, None, [1], ""]),
    ],
)
def test_an_amount(value: object, amount: float | None):
    assert parse_amount(value) == amount


def page(*items: dict[str, object]) -> faults.Fault:
    return faults.body(json.dumps({"data": {"sessions": items, "total": len(items)}}).encode())


@pytest.mark.parametrize(
    ("fault", "total"),
    [
        (page({"id": "a", "used_credits": 1}, {"id": "b", "used_credits": "0.5"}, {"id": "c", "used_credits": 9}), 1.5),
        (page({"id": "a", "used_credits": 1}), None),
        (page({"id": "a", "used_credits": 1}, {"id": "b", "used_credits": "N/A"}), None),
        (faults.status(404), None),
        (faults.status(500), None),
        (faults.body(b'{"data": [1]}'), None),
        (faults.body(b'{"data": {"sessions": [7, null, {"id": ["a"]}]}}'), None),
        (faults.body(b"garbage"), None),
        (faults.silent, None),
    ],
)
def test_credits_are_told_if_one_page_of_the_history_has_them_all(
    api: AnchorAPI, server: FaultServer, fault: faults.Fault, total: float | None
):
    server.fail_always("HISTORY", fault)
    assert api.credits(["a", "b"], "tag", deadline=time.monotonic() + 0.5) == total
    assert not server.requests


# The budget.


@pytest.mark.parametrize("value", ["0", "-1", "x", "nan", "inf", "1e9"])
def test_a_budget_is_a_number_of_minutes(value: str):
    with pytest.raises(AnchorConfigError, match="--anchor-budget takes a number of minutes above 0"):
        check_minutes("--anchor-budget", value)
    assert check_minutes("--anchor-budget", "") == 0.0
    assert check_minutes("--anchor-budget", "1.5") == 1.5


@pytest.fixture
def used(run: Run) -> None:
    """A session that has run for a minute."""
    run.append("created", "inv-0", id="x", signature="s", time=1000)
    run.append("ended", "inv-0", ended_by="test", already=False, time=1060)


@pytest.mark.usefixtures("used")
def test_what_has_used_its_budget_creates_nothing_more(make_owner, server: FaultServer):
    owner: Owner = make_owner(budget=1.0, prefetch=1)
    with pytest.raises(AnchorLimitError, match=r"no session was created for t: .* --anchor-budget 1 \(minutes\)"):
        owner.create({}, Request("t"))
    owner.plan(None, [Wanted("t", {})])
    assert owner._prefetch is not None
    assert owner._prefetch._creations.wait(30)
    assert server.count("POST") == 0
    assert owner.refused == 1
    assert "1 creation refused: the run has used up its --anchor-budget" in [
        line.text for line in report(record("1", 0, 60), refused=owner.refused).lines()
    ]


@pytest.mark.usefixtures("used")
def test_what_has_not_goes_on(make_owner, server: FaultServer):
    owner: Owner = make_owner(budget=1.1, max_sessions=1)
    assert owner.create({}, Request("t")).record.id in server.alive


def test_what_is_used_up_while_a_creation_waits_is_refused_then(make_owner, server: FaultServer, run: Run):
    owner: Owner = make_owner(budget=1.0, max_sessions=1)
    session = owner.create({}, Request("t"))

    class Waits(Request):
        def report_wait(self, _text: str) -> None:
            session.record.created_at = time.time() - 61
            owner.end([session.record.nonce], ended_by="test", timeout=5)

    with pytest.raises(AnchorLimitError, match="--anchor-budget"):
        owner.create({}, Waits("u"))
    assert server.count("POST") == 1
    session = make_owner("other", max_sessions=1).create({}, Request("v"))  # the slot is free
    assert session.record.id in server.alive
