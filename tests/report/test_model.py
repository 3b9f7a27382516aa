"""What the record of a run comes to as a picture."""

from __future__ import annotations

import pytest
from pictures import BEGAN, ERROR, RecordedRun, one_after_the_other

from pytest_anchor.report.model import Picture, picture_of, union


@pytest.fixture
def run() -> RecordedRun:
    return RecordedRun(cap=5)


def drawn(run: RecordedRun, status: str = "finished", now: float = 0.0) -> Picture:
    return picture_of(run.state, status, BEGAN + now)


def test_a_session_of_a_test(run):
    nonce = run.session("a", 1.0, 2.5, 4.0, 4.5)
    run.tested("a", 0.5, 4.6, nonce)
    picture = drawn(run)
    assert (picture.began, picture.seconds, picture.cap, picture.lanes) == (BEGAN + 0.5, 4.1, 5, ["main"])
    (session,) = picture.sessions
    assert (session.asked, session.begun, session.created, session.ending, session.ended) == (0.5, 0.5, 2.0, 3.5, 4.0)
    assert (session.state, session.ended_by, session.tests, session.id) == ("ended", "teardown", [0], None)
    (test,) = picture.tests
    assert (test.test, test.began, test.ended, test.outcome, test.sessions) == ("a", 0.0, 4.1, "passed", [0])
    assert test.waits._asdict() == {"rate": 0, "slot": 0, "create": 1.5, "end": 0.5}
    assert picture.browser_seconds == 2.0


def test_lanes_are_in_the_order_of_their_numbers(run):
    for owner in ("gw10", "gw2", "main", "gw1"):
        run.session("a", 0, 1, owner=owner)
    assert drawn(run).lanes == ["main", "gw1", "gw2", "gw10"]


def test_a_test_with_several_sessions_is_one_test(run):
    first, second = run.session("a", 0, 1, 4, 5), run.session("a", 1, 2, 4, 5)
    run.tested("a", 0, 5, first, second)
    (test,) = drawn(run).tests
    assert test.sessions == [0, 1]
    assert test.waits == (0, 0, 2, 1)


def test_creations_at_once_are_waited_for_once(run):
    run.tested("a", 0, 5, run.session("a", 0, 2, 4, 5), run.session("a", 0, 2, 4, 5))
    assert drawn(run).tests[0].waits == (0, 0, 2, 1)


def test_what_is_waited_for_at_once_counts_once(run):
    """A thread of the test ends one session while another creates the next."""
    run.tested("a", 0, 9, run.session("a", 0, 1, 2, 4, ended_by="test"), run.session("a", 3, 5, 8, 9))
    assert drawn(run).tests[0].waits == (0, 0, 3, 2)


def test_a_session_of_several_tests_is_waited_for_by_the_first(run):
    nonce = run.session("a", 0, 2, 6, 7)
    run.tested("a", 0, 3, nonce)
    run.tested("b", 3, 7, nonce)
    picture = drawn(run)
    assert [(test.test, test.waits.create, test.waits.end) for test in picture.tests] == [("a", 2, 0), ("b", 0, 1)]
    assert picture.sessions[0].tests == [0, 1]


def test_a_rerun_is_a_test_of_its_own(run):
    run.tested("a", 0, 3, run.session("a", 0, 1, 2, 3), outcome="failed")
    run.tested("a", 3, 6, run.session("a", 3, 4, 5, 6), rerun=1)
    tests = drawn(run).tests
    assert [(test.outcome, test.rerun, test.sessions, test.waits.create) for test in tests] == [
        ("failed", 0, [0], 1),
        ("passed", 1, [1], 1),
    ]


def test_waits_for_the_plan(run):
    nonce = run.session("a", 5, 6, 8, 9)
    run.waited(nonce, 5, rate=3, slot=1.5, elsewhere=1, quota=20, window=10)
    run.tested("a", 0.5, 9, nonce)
    picture = drawn(run)
    assert picture.tests[0].waits == (3, 1.5, 1, 1)
    assert picture.sessions[0].begun - picture.sessions[0].asked == 4.5
    assert picture.limit_waits == {"rate": [3], "slot": [1.5], "elsewhere": [1]}
    assert (picture.quota, picture.window) == (20, 10)


def test_what_was_created_ahead_is_waited_for_as_long_as_the_record_says(run):
    run.tested("a", 0, 3, run.session("a", 0, 1, 2, 3))
    nonce = run.session("b", 1, 3.4, 5, 5.5, ahead=True)
    run.note("taken", nonce, 3.4, test="b", waited=0.4)
    run.tested("b", 3, 5.5, nonce)
    picture = drawn(run)
    assert (picture.sessions[1].ahead, picture.sessions[1].unused, picture.sessions[1].test) == (True, False, "b")
    assert picture.tests[1].waits == (0, 0, 0.4, 0.5)


def test_what_no_test_took(run):
    run.session("b", 1, 2, 5, 6, ahead=True)
    session = drawn(run).sessions[0]
    assert session.ahead
    assert session.unused
    assert drawn(run).counts["unused"] == 1


def test_a_lost_creation_and_its_retry(run):
    lost = run.ask("a", 0)
    run.note("lost", lost, 2, error=ERROR)
    nonce = run.session("a", 2.5, 3.5, 5, 6, retried=1)
    run.note("created", lost, 4, id="found", signature="s")
    run.note("ended", lost, 4.5, ended_by="sweep", already=False, began=BEGAN + 4.2)
    run.tested("a", 0, 6, nonce)
    picture = drawn(run)
    first, second = picture.sessions
    assert (first.lost, first.created, first.ended, first.ended_by) == (2, 4, 4.5, "sweep")
    assert (second.lost, second.retried) == (None, 1)
    assert picture.tests[0].waits.create == 3  # what lies between the attempts is no wait for the API
    assert (picture.counts["retried"], picture.counts["swept"], picture.counts["sessions"]) == (1, 1, 2)


def test_what_may_be_open(run):
    run.session("a", 0, 1)
    run.note("lost", run.ask("b", 1), 3, error=ERROR)
    picture = drawn(run)
    assert [(session.state, session.id, session.ended) for session in picture.sessions] == [
        ("open", "session-1", None),
        ("lost", None, None),
    ]
    assert (picture.counts["open"], picture.counts["unresolved"]) == (1, 1)
    assert picture.browser_seconds == 2.0  # until the last that is known of the run


def test_a_refused_creation_is_counted_and_not_drawn(run):
    nonce = run.ask("a", 0)
    run.note("refused", nonce, 1)
    run.note("limited", nonce, 1)
    picture = drawn(run)
    assert picture.sessions == []
    assert (picture.counts["refused"], picture.counts["rate_limited"], picture.counts["sessions"]) == (1, 1, 0)


def test_what_ends_sessions_after_death(run):
    run.session("a", 0, 1, 5, 6, ended_by="reaper")
    run.session("a", 0, 1, 5, 6, ended_by="recovery")
    assert drawn(run, "killed").counts["recovered"] == 2


def test_how_many_are_open(run):
    for begun, ended in ((0, 4), (1, 3), (1, 5)):
        run.session("a", begun, begun + 1, ended - 0.5, ended)
    picture = drawn(run)
    assert picture.live == [(0, 0), (1, 1), (2, 3), (3, 2), (4, 1), (5, 0)]
    assert picture.peak == 3


def test_a_run_that_goes_on_lasts_until_now(run):
    run.session("a", 0, 1)
    assert drawn(run, "running", now=60).seconds == 60
    assert drawn(run, "killed", now=60).seconds == 1


def test_a_record_without_times(run):
    """An earlier version's."""
    events = [
        {
            "event": "intent",
            "nonce": "n",
            "owner": "main",
            "test": "a",
            "time": BEGAN,
            "base_url": "",
            "fingerprint": "",
            "run_id": "r",
            "folder_inode": 1,
        },
        {"event": "created", "nonce": "n", "id": "abc", "signature": "s"},
        {"event": "ended", "nonce": "n", "ended_by": "teardown", "already": False},
    ]
    for event in events:
        run.state.apply(event)
    (session,) = drawn(run).sessions
    assert (session.begun, session.created, session.ending, session.ended) == (0, 0, None, 0)


def test_a_clock_that_was_set_back(run):
    nonce = run.session("a", 100, 50, 20, 10)
    run.tested("a", 90, 95, nonce)
    session = drawn(run).sessions[0]
    assert session.begun <= session.created <= session.ending <= session.ended
    assert min(drawn(run).tests[0].waits) >= 0


def test_credits_are_what_the_api_told(run):
    assert picture_of(run.state, "finished", BEGAN).credits is None
    assert picture_of(run.state, "finished", BEGAN, 5.1).credits == 5.1


def test_a_record_whose_beginning_is_of_no_time_that_can_be(run):
    run.session("a", 0, 1, 2, 3)
    (record,) = run.state.records.values()
    record.begun_at, record.time = None, float("nan")
    (session,) = drawn(run).sessions
    assert (session.begun, session.created, session.lost) == (0, 0, None)


def test_an_empty_record():
    picture = picture_of(RecordedRun().state, "finished", BEGAN)
    assert (picture.seconds, picture.sessions, picture.tests, picture.peak) == (0, [], [], 0)


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(0, 1)], 1),
        ([(0, 2), (1, 3)], 3),
        ([(5, 6), (0, 1)], 2),
        ([(0, 9), (1, 2), (3, 4)], 9),
        ([(3, 3)], 0),
    ],
)
def test_union(spans, seconds):
    assert union(spans) == seconds


def test_waits_and_work_are_all_of_a_tests_time():
    for test in drawn(one_after_the_other(5, work=1, create=2, end=0.5)).tests:
        assert test.waits == (0, 0, 2, 0.5)
        assert test.ended - test.began == 3.5
