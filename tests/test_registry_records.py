"""What the events of a journal come to."""

import copy
import json
import time

import pytest
from records import ERROR, INTENT, intend, journal

from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record, State


def test_the_life_of_a_session(run):
    intend(run, "n1", time=1)
    record = run.read().records["n1"]
    told = (
        record.owner,
        record.test,
        record.time,
        record.base_url,
        record.fingerprint,
        record.run_id,
        record.folder_inode,
    )
    assert told == ("main", "t.py::x", 1.0, "http://b", "f", "r1", run.folder.stat().st_ino)
    assert (record.state, record.unresolved, record.open, record.id) == ("pending", True, False, None)
    run.append("created", "n1", id="abc", signature="s")
    run.read()
    assert (record.state, record.unresolved, record.open, record.id) == ("open", False, True, "abc")
    assert record.signature == "s"
    run.append("failed", "n1", error=ERROR)
    run.read()
    assert (record.open, record.error) == (True, ERROR)
    run.append("ended", "n1", ended_by="sweep", already=True, note="hm")
    run.read()
    assert (record.state, record.open, record.unresolved, record.error) == ("ended", False, False, None)
    assert (record.ended_by, record.already, record.note) == ("sweep", True, "hm")


def test_what_is_over_stays_so_though_somebody_finds_it_later(run):
    run.append("created", "n1", id="abc", signature="s")
    run.append("ended", "n1", ended_by="sweep", already=False)
    run.append("created", "n1", id="abc", signature="s")
    assert run.read().records["n1"].state == "ended"


def test_what_ctrl_c_interrupts_is_read_again(run, monkeypatch):
    def interrupt(_state, _line):
        raise KeyboardInterrupt

    intend(Run(run.folder), "n1")
    with monkeypatch.context() as patch:
        patch.setattr(State, "apply", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.read()
    assert list(run.read().records) == ["n1"]


def test_a_lost_creation_is_unresolved_until_it_is_found(run):
    intend(run, "n1")
    run.append("lost", "n1", time=9.0, error=ERROR)
    record = run.read().records["n1"]
    assert (record.state, record.unresolved, record.time, record.error) == ("lost", True, 9.0, ERROR)
    run.append("created", "n1", id="abc", signature="s")
    run.read()
    assert (record.open, record.unresolved, record.error) == (True, False, None)


def test_a_creation_ahead_is_a_tests_once_it_is_taken(run):
    intend(run, "n1", ahead=True, retried=2)
    record = run.read().records["n1"]
    assert (record.ahead, record.retried, record.test) == (True, 2, "t.py::x")
    run.append("taken", "n1", test="t.py::y", waited=0.5)
    record = Run(run.folder).read().records["n1"]
    assert (record.ahead, record.retried, record.test) == (False, 2, "t.py::y")
    assert (record.taken, record.waited) == (True, 0.5)


def test_what_was_waited_is_no_record_of_a_session(run):
    run.append("waited", "n1", rate=1.5, slot=0.25, elsewhere=0.125, time=7)
    assert (run.read().waits, run.state.records) == ({"n1": (1.5, 0.25, 7.0, 0.125)}, {})
    assert run.state.settled


def test_how_the_run_is_set_up(run):
    assert run.read().facts == (0, 0, False)
    run.append("run", "", cap=5, prefetch=2, end_in_background=True)
    run.append("waited", "n1", rate=1, slot=0, quota=20, window=10)
    run.append("waited", "n2", rate=0, slot=1, quota=0, window=0)
    state = Run(run.folder).read()
    assert (state.facts, state.quota, state.window) == ((5, 2, True), 20, 10)
    run.append("limited", "n3", quota=5, window=60)
    assert (run.read().quota, run.state.window) == (5, 60)
    assert state.settled
    assert not state.records


def test_each_event_carries_its_time(run):
    before = time.time()
    intend(run, "n1")
    run.append("created", "n1", id="abc", signature="s")
    run.append("failed", "n1", error=ERROR, began=before + 1)
    run.append("ended", "n1", ended_by="sweep", already=False, began=before + 2)
    run.append("waited", "n1", rate=1, slot=0)
    run.append("limited", "n2")
    state = Run(run.folder).read()
    record = state.records["n1"]
    moments = [record.time, record.created_at, record.ended_at, state.waits["n1"].until, state.limited["n2"]]
    assert moments == sorted(moments)
    assert before - 0.001 <= moments[0]
    assert moments[-1] <= time.time()
    assert (record.begun_at, record.end_begun_at) == (record.time, before + 1)
    assert list(state.records) == ["n1"]


def test_the_record_of_an_earlier_version_has_no_times():
    state = State()
    created = {"event": "created", "nonce": "n", "id": "abc", "signature": "s"}
    ended = {"event": "ended", "nonce": "n", "ended_by": "test", "already": False}
    for line in (INTENT, created, ended, {"event": "waited", "nonce": "n", "rate": 1, "slot": 0}):
        state.apply(line)
    record = state.records["n"]
    assert (record.created_at, record.ended_at, record.end_begun_at, state.waits["n"].until) == (None,) * 4
    assert record.begun_at == 2


def test_the_tests_that_had_a_session(run):
    intend(run, "n1")
    for number in range(2):
        run.append("tested", "n1", test="t.py::x", began=number, ended=number + 0.5, outcome="failed", rerun=number)
    run.append("tested", "unknown", test="t.py::x", began=1, ended=2, outcome="passed")
    run.append("evidence", "unknown", kind="screenshot", path="b.png", test="t.py::x")
    run.append("evidence", "n1", kind="screenshot", path="a.png", test="t.py::x")
    assert list(run.read().records) == ["n1"]
    record = run.state.records["n1"]
    assert list(record.tests.values()) == [
        ("t.py::x", 0.0, 0.5, "failed", 0),
        ("t.py::x", 1.0, 1.5, "failed", 1),
    ]
    assert list(record.evidence.values()) == [("screenshot", "a.png", "t.py::x")]
    assert Record.from_values(json.loads(json.dumps(vars(record)))) == record


def test_a_refused_creation_is_settled(run):
    intend(run, "n1")
    run.append("refused", "n1")
    record = run.read().records["n1"]
    assert (record.state, record.open, record.unresolved) == ("refused", False, False)


def test_records_stay_in_the_order_of_their_intents(run):
    for nonce in "cab":
        intend(run, nonce)
    run.append("created", "b", id="x", signature="s")
    assert list(run.read().records) == ["c", "a", "b"]


def test_taking_an_event_in_twice_changes_nothing():
    events = [
        INTENT,
        {"event": "created", "nonce": "n", "id": "abc", "signature": "s", "time": 3},
        {"event": "tested", "nonce": "n", "test": "t", "began": 3, "ended": 4, "outcome": "passed"},
        {"event": "ended", "nonce": "n", "ended_by": "test", "already": False, "began": 5, "time": 6},
    ]
    state = State()
    for event in events:
        state.apply(event)
        once = copy.deepcopy(state.records["n"])
        state.apply(event)
        assert state.records["n"] == once
    assert len(state.records) == 1


def test_the_journal_is_json_lines(run):
    intend(run, "n1", test="ümlaut[\n]")
    lines = journal(run).read_bytes().split(b"\n")
    assert len(lines) == 2
    assert json.loads(lines[0])["test"] == "ümlaut[\n]"
    assert lines[1] == b""
