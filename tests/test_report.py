import pytest

from pytest_anchor.errors import AnchorAPIError, AnchorRegistryError
from pytest_anchor.registry import Record, State
from pytest_anchor.report import SHOWN, Report, end_command, teardown_section
from pytest_anchor.settings import DEFAULT_BASE_URL

ERROR = AnchorAPIError("x", status=500, code="E1", message="oops", remedy="Wait.", tries=8).fields()


def record(nonce, state="ended", **fields):
    values = {"owner": "main", "test": "t.py::a", "base_url": DEFAULT_BASE_URL, "id": f"s-{nonce}", **fields}
    return Record(nonce, state=state, **values)


def report(*records, problem=None, unreadable=0):
    return Report(State({one.nonce: one for one in records}, unreadable), problem, "/reg/run")


def text(made, **options):
    return [line.text for line in made.lines(**options)]


def test_a_run_without_sessions_says_nothing():
    assert not report()
    assert not report(record("n", "refused", id=None))


def test_counts():
    made = report(
        record("1", how="test"),
        record("2", how="teardown"),
        record("3", how="teardown"),
        record("4", how="sweep"),
        record("5", how="sweep", already=True),
        record("6", how="new"),
        record("7", "refused", id=None),
    )
    assert made
    assert not made.failed
    assert made.settled
    counts = "1 ended by the tests, 2 at teardown, 1 by the sweep, 1 already over, 1 ended"
    assert text(made) == [f"6 sessions created: {counts}"]
    assert next(made.lines()).markup == {"green": True}
    assert text(report(record("1", how="test"))) == ["1 session created: 1 ended by the tests"]


def test_verbose_tells_each():
    made = report(
        record("1", how="test"),
        record("2", how="sweep", already=True, owner="gw3"),
        record("3", how="later"),
        record("4", "open"),
    )
    lines = text(made, verbose=True)
    assert "s-1 of t.py::a: ended by the tests" in lines
    assert "s-2 of t.py::a [gw3]: already over" in lines
    assert "s-3 of t.py::a: ended" in lines
    assert not [line for line in lines if line.startswith("s-4")]


def test_a_leak():
    made = report(record("1", "open", error=ERROR, owner="gw0", base_url="http://localhost:1"), record("2", how="test"))
    assert made.failed
    assert not made.settled
    assert text(made) == [
        "2 sessions created: 1 ended by the tests, 1 leaked",
        "LEAKED s-1 of t.py::a [gw0]",
        "  HTTP 500 code E1: “oops” (tried 8 times). Wait.",
        "  end it by hand: python -m pytest_anchor end --base-url http://localhost:1 s-1",
        "this is on record in /reg/run",
    ]
    markup = [line.markup for line in made.lines()]
    assert markup[:2] == [{"red": True, "bold": True}, {"red": True}]


def test_a_leak_that_nobody_tried_to_end():
    assert "  it was not ended" in text(report(record("1", "open")))


def test_unresolved_creations():
    made = report(record("1", "lost", id=None, error=ERROR), record("2", "pending", id=None, owner="gw1"))
    assert made
    assert not made.failed
    assert not made.settled
    unknown = "  no answer told its id, and the API lists no such session: "
    assert text(made) == [
        "0 sessions created: 2 unresolved",
        "UNRESOLVED a creation of t.py::a",
        f"{unknown}HTTP 500 code E1: “oops” (tried 8 times). Wait.",
        "UNRESOLVED a creation of t.py::a [gw1]",
        f"{unknown}the process died while it waited for the answer",
        "this is on record in /reg/run",
    ]
    assert next(made.lines()).markup == {"green": False}


def test_a_note():
    made = report(record("1", how="sweep", already=True, note="the API lists it as 'running'"))
    assert text(made)[1] == "NOTE s-1 of t.py::a: it is over by the API's answer, but the API lists it as 'running'"
    assert made.settled


def test_unreadable_lines_fail_the_run():
    made = report(unreadable=3)
    assert made
    assert made.failed
    assert "3 lines of the record cannot be read: sessions may be missing here" in text(made)


def test_a_problem_of_the_sweep():
    problem = AnchorAPIError("list the run's sessions", status=403)
    made = report(record("1", how="test"), problem=problem)
    assert not made.failed
    assert "the sweep is incomplete: could not list the run's sessions: HTTP 403" in text(made)
    made = report(problem=AnchorRegistryError("no disk"))
    assert made
    assert made.failed
    assert "the sweep is incomplete: no disk" in text(made)


@pytest.mark.parametrize(("state", "word"), [("open", "LEAKED"), ("lost", "UNRESOLVED")])
def test_of_many_failures_the_first_are_written_out(state, word):
    ids = {} if state == "open" else {"id": None}
    lines = text(report(*[record(str(n), state, **ids) for n in range(SHOWN + 1)]))
    assert sum(line.startswith(word) for line in lines) == SHOWN == 20
    assert lines[-1] == "all of them are on record in /reg/run"
    lines = text(report(*[record(str(n), state, **ids) for n in range(SHOWN)]))
    assert lines[-1] == "this is on record in /reg/run"


@pytest.mark.parametrize("url", ["", "?", DEFAULT_BASE_URL])
def test_the_command_leaves_out_the_default_base_url(url):
    assert end_command(record("1", base_url=url)) == "python -m pytest_anchor end s-1"


def test_an_owner_that_is_not_known_is_not_named():
    assert "LEAKED s-1 of t.py::a" in text(report(record("1", "open", owner="?")))


def test_what_a_test_says_of_its_teardown():
    failures = [("s1", AnchorAPIError("x", status=500, tries=4)), ("s2", AnchorAPIError("x"))]
    assert teardown_section(failures).splitlines() == [
        "session s1 was not ended: HTTP 500 (tried 4 times). It is recorded; the final sweep tries again.",
        "session s2 was not ended: no answer. It is recorded; the final sweep tries again.",
    ]
