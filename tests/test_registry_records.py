"""What the events of a journal come to."""

import json

import pytest
from records import ERROR, INTENT, intend, journal

from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import State


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
    run.append("taken", "n1", test="t.py::y")
    record = Run(run.folder).read().records["n1"]
    assert (record.ahead, record.retried, record.test) == (False, 2, "t.py::y")


def test_what_was_waited_is_no_record_of_a_session(run):
    run.append("waited", "n1", rate=1.5, slot=0.25)
    assert (run.read().waits, run.state.records) == ({"n1": (1.5, 0.25)}, {})
    assert run.state.settled


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
        {"event": "created", "nonce": "n", "id": "abc", "signature": "s"},
        {"event": "ended", "nonce": "n", "ended_by": "test", "already": False},
    ]
    state = State()
    for event in events:
        state.apply(event)
        once = dict(vars(state.records["n"]))
        state.apply(event)
        assert vars(state.records["n"]) == once
    assert len(state.records) == 1


def test_the_journal_is_json_lines(run):
    intend(run, "n1", test="ümlaut[\n]")
    lines = journal(run).read_bytes().split(b"\n")
    assert len(lines) == 2
    assert json.loads(lines[0])["test"] == "ümlaut[\n]"
    assert lines[1] == b""
