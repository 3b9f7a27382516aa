import json
import time
from pathlib import Path

import pytest

from pytest_anchor.cleanup.recovery import Recovery
from pytest_anchor.errors import AnchorAPIError, AnchorRegistryError
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.records import Record, State, Wait
from pytest_anchor.reporting.summary import SHOWN, Line, Report, ago, describe, end_command, span, teardown_section
from pytest_anchor.settings import DEFAULT_BASE_URL

ERROR = AnchorAPIError("x", status=500, code="E1", message="oops", remedy="Wait.", tries=8).fields()


def record(nonce, state="ended", **fields):
    values = {"owner": "main", "test": "t.py::a", "base_url": DEFAULT_BASE_URL, "id": f"s-{nonce}", **fields}
    return Record(nonce, state=state, **values)


def report(*records, unreadable=0, **attributes):
    made = Report(State({one.nonce: one for one in records}, unreadable), Path("/reg/run"))
    for name, value in attributes.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def text(made, **options):
    return [line.text for line in made.lines(**options)]


def test_what_is_kept_is_no_leak_and_can_be_ended():
    kept = {"1": (time.time() + 600.5, "http://live/1")}
    made = report(record("1", state="open"), kept=kept)
    assert (made.failed, made.settled, made.leaked) == (False, False, [])
    first, second, third, fourth = text(made)
    assert first == "1 session created: 1 kept"
    assert second.startswith("KEPT s-1 of t.py::a, until ")
    assert second.endswith(", which is in 10 min")
    assert third == "  look at it: http://live/1"
    assert fourth == "  end it now: python -m pytest_anchor end s-1"
    made.keeper_pid = 77  # a local backend's key is known to no person
    assert text(made)[3] == "  end it now: kill 77, with all that is kept"
    made.links = False
    assert text(made)[1].startswith("KEPT a session of t.py::a, until ")
    assert text(made)[2:] == ["how to look at them, and to end them, is in /reg/run/kept.txt"]


def test_a_run_without_sessions_says_nothing():
    assert not report()
    assert not report(record("n", "refused", id=None))


def test_counts():
    made = report(
        record("1", ended_by="test"),
        record("2", ended_by="teardown"),
        record("3", ended_by="teardown"),
        record("4", ended_by="sweep"),
        record("5", ended_by="sweep", already=True),
        record("6", ended_by="new"),
        record("7", "refused", id=None),
    )
    assert made
    assert not made.failed
    assert made.settled
    counts = "1 ended by the tests, 2 at teardown, 1 by the sweep, 1 already over, 1 ended"
    assert text(made) == [f"6 sessions created: {counts}"]
    assert next(made.lines()).markup == {"green": True}
    assert text(report(record("1", ended_by="test"))) == ["1 session created: 1 ended by the tests"]


def test_verbose_tells_each():
    made = report(
        record("1", ended_by="test"),
        record("2", ended_by="sweep", already=True, owner="gw3"),
        record("3", ended_by="later"),
        record("4", "open"),
    )
    lines = text(made, verbose=True)
    assert "s-1 of t.py::a: ended by the tests" in lines
    assert "s-2 of t.py::a [gw3]: already over" in lines
    assert "s-3 of t.py::a: ended" in lines
    assert not [line for line in lines if line.startswith("s-4")]


def test_a_leak():
    made = report(
        record("1", "open", error=ERROR, owner="gw0", base_url="http://localhost:1"), record("2", ended_by="test")
    )
    assert made.failed
    assert not made.settled
    assert text(made) == [
        "2 sessions created: 1 ended by the tests, 1 leaked",
        "LEAKED s-1 of t.py::a [gw0]",
        "  HTTP 500 code E1: “oops” (tried 8 times). Wait.",
        "  end it by hand: python -m pytest_anchor end --base-url http://localhost:1 s-1",
        "this is on record in /reg/run",
        "the next run here tries again; so does: python -m pytest_anchor sweep --base-url http://localhost:1 --registry /reg",
    ]
    markup = [line.markup for line in made.lines()]
    assert markup[:2] == [{"red": True, "bold": True}, {"red": True}]


def test_a_leak_that_nobody_tried_to_end():
    assert "  it was not ended" in text(report(record("1", "open")))


def test_unresolved_creations():
    made = report(record("1", "lost", id=None, error=ERROR), record("2", "pending", id=None, owner="gw1"))
    assert made
    assert made.failed
    assert not made.settled
    unknown = "  no answer told its id, and the API lists no such session: "
    assert text(made) == [
        "0 sessions created: 2 unresolved",
        "UNRESOLVED a creation of t.py::a",
        f"{unknown}HTTP 500 code E1: “oops” (tried 8 times). Wait.",
        "UNRESOLVED a creation of t.py::a [gw1]",
        f"{unknown}no answer had come when its run ended",
        "this is on record in /reg/run",
        "the next run here tries again; so does: python -m pytest_anchor sweep --registry /reg",
    ]
    assert next(made.lines()).markup == {"red": True, "bold": True}


def test_what_the_list_does_not_show_and_the_reaper_goes_on_looking_for_fails_nothing():
    lost = record("1", "lost", id=None, error=ERROR)
    made = report(lost, log=Path("/reg/run/reaper.log"))
    assert not made.failed
    assert not made.settled
    assert text(made)[:2] == ["0 sessions created: 1 unresolved", "UNRESOLVED a creation of t.py::a"]
    assert next(made.lines()).markup == {"green": False}
    assert report(lost, log=Path("/reg/run/reaper.log"), problem=AnchorAPIError("list")).failed


def test_a_note():
    made = report(record("1", ended_by="sweep", already=True, note="the API lists it as 'running'"))
    assert text(made)[1] == "NOTE s-1 of t.py::a: it is over by the API's answer, but the API lists it as 'running'"
    assert made.settled


def test_unreadable_lines_fail_the_run():
    made = report(unreadable=3)
    assert made
    assert made.failed
    assert "3 lines of the record cannot be read: sessions may be missing here" in text(made)


def test_a_problem_of_the_sweep():
    problem = AnchorAPIError("list the run's sessions", status=403)
    made = report(record("1", ended_by="test"), problem=problem)
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
    assert lines[-2] == "all of them are on record in /reg/run"
    lines = text(report(*[record(str(n), state, **ids) for n in range(SHOWN)]))
    assert lines[-2] == "this is on record in /reg/run"


@pytest.mark.parametrize("url", ["", DEFAULT_BASE_URL])
def test_the_command_leaves_out_the_default_base_url(url):
    assert end_command(record("1", base_url=url)) == "python -m pytest_anchor end s-1"


def test_an_owner_that_is_not_known_is_not_named():
    assert "LEAKED s-1 of t.py::a" in text(report(record("1", "open", owner="?")))


def test_an_interrupted_sweep_says_so_and_fails_the_run():
    made = report(record("1", ended_by="test"), interrupted=True)
    assert made.failed
    assert text(made) == [
        "1 session created: 1 ended by the tests",
        "the sweep was interrupted before it was done",
        "this is on record in /reg/run",
        "the next run here tries again; so does: python -m pytest_anchor sweep --registry /reg",
    ]


def test_a_reaper_that_goes_on_is_named_with_its_log():
    lines = text(report(record("1", "open"), log=Path("/reg/run/reaper.log")))
    assert lines[-2:] == [
        "this is on record in /reg/run",
        "the reaper goes on trying; it writes to /reg/run/reaper.log",
    ]
    assert len(text(report(record("1", ended_by="test"), log=Path("/reg/run/reaper.log")))) == 1


def test_creations_that_were_tried_again_are_counted():
    made = report(
        record("1", ended_by="test"), record("2", ended_by="test", retried=1), record("3", ended_by="sweep", retried=2)
    )
    assert text(made)[1:] == ["2 creations retried"]
    assert made.settled


def test_what_was_waited_is_added_up():
    made = report(record("1", ended_by="test"))
    made.state.waits = {"1": Wait(1.5, 0.0), "2": Wait(2.25, 0.5)}
    assert text(made)[1:] == [
        "2 creations waited 3.8 s for the plan's rate limit",
        "1 creation waited 0.5 s for a free browser slot",
    ]
    made.state.waits = {"1": Wait(0.0, 2.0, elsewhere=1.5)}
    assert text(made)[1:] == [
        "1 creation waited 2.0 s for a free browser slot",
        "1.5 s of that for runs on other machines",
    ]
    made.state.waits = {"1": Wait(0.0, 0.0)}
    assert len(text(made)) == 1


# what the broker sends


def test_a_report_as_plain_values_is_the_same_at_the_other_end():
    made = report(record("1", ended_by="test"), record("2", "open", error=ERROR, owner="gw0"))
    for verbose in (False, True):
        values = json.loads(json.dumps(made.as_values(verbose=verbose)))
        assert [Line(*line) for line in values["lines"]] == list(made.lines(verbose=verbose))
        assert (values["failed"], values["settled"], values["interrupted"]) == (True, False, False)
    assert "s-1 of t.py::a: ended by the tests" in [line for line, _ in values["lines"]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (False, True, False)),
        ({"problem": AnchorAPIError("list")}, (False, True, False)),
        ({"problem": AnchorRegistryError("no disk")}, (True, False, False)),
        ({"interrupted": True}, (True, False, True)),
        ({"unreadable": 1}, (True, False, False)),
    ],
)
def test_what_a_run_comes_to_as_plain_values(changes, expected):
    values = report(record("1", ended_by="test"), **changes).as_values(verbose=False)
    assert (values["failed"], values["settled"], values["interrupted"]) == expected
    assert values["leaks"] == []


def test_what_the_reaper_goes_on_looking_for_is_not_settled():
    made = report(record("1", "lost", id=None, error=ERROR), log=Path("/reg/run/reaper.log"))
    values = made.as_values(verbose=False)
    assert (values["failed"], values["settled"], values["interrupted"]) == (False, False, False)
    assert [leak["id"] for leak in values["leaks"]] == [None]


def test_a_run_that_says_nothing_sends_no_lines():
    values = report(record("n", "refused", id=None)).as_values(verbose=True)
    assert values == {"lines": [], "failed": False, "settled": True, "interrupted": False, "leaks": []}


def test_leaks_as_plain_values():
    made = report(
        record("1", "open", error=ERROR, owner="gw0", base_url="http://localhost:1"),
        record("2", "lost", id=None, error=ERROR),
        record("3", ended_by="test"),
    )
    why = "HTTP 500 code E1: “oops” (tried 8 times). Wait."
    assert made.as_values(verbose=False)["leaks"] == [
        {
            "id": "s-1",
            "test": "t.py::a",
            "owner": "gw0",
            "why": why,
            "command": "python -m pytest_anchor end --base-url http://localhost:1 s-1",
        },
        {"id": None, "test": "t.py::a", "owner": "main", "why": why, "command": ""},
    ]


# what became of earlier runs


def recovery(**fields):
    return Recovery(Run(Path("/reg/dead")), time.time() - 2 * 3600 - 60, **fields)


def test_recovered_sessions_are_counted_with_the_time_of_the_runs_death():
    made = report(recovered=[recovery(ended=[record(str(n)) for n in range(3)])])
    assert made
    assert made.settled
    assert text(made) == ["recovered 3 sessions of the run that died 2 h ago"]


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"ended": [record("1")]}, ["recovered 1 session of {run}"]),
        ({"reaped": [record("1"), record("2")]}, ["the reaper ended 2 sessions of {run}"]),
        (
            {"ended": [record("1")], "left": [record("2", "open", error=ERROR)]},
            [
                "recovered 1 session of {run}",
                "not yet recovered: 1 session of {run}; the next run tries again",
                "  s-2 of t.py::a: HTTP 500 code E1: “oops” (tried 8 times). Wait.",
            ],
        ),
        (
            {"left": [record("1", "open"), record("2", "lost", id=None)], "stranger": True},
            ["left alone: 2 sessions of {run}, created with another key or base URL, or recorded elsewhere"],
        ),
        (
            {"given_up": [record("1", "open", error=ERROR, owner="gw1")]},
            [
                "GAVE UP on s-1 of t.py::a [gw1], a week after its creation: "
                "HTTP 500 code E1: “oops” (tried 8 times). Wait."
            ],
        ),
        ({"problem": AnchorRegistryError("no disk")}, ["the recovery of {run} is incomplete: no disk"]),
    ],
    ids=["ended", "reaped", "left", "stranger", "given-up", "problem"],
)
def test_what_became_of_a_dead_run(fields, lines):
    made = report(recovered=[recovery(**fields)])
    assert made
    assert not made.failed
    assert text(made) == [line.format(run="the run that died 2 h ago") for line in lines]


def test_this_runs_own_lines_come_first():
    made = report(
        record("1", ended_by="test"), recovered=[recovery(ended=[record("2")]), recovery(reaped=[record("3")])]
    )
    assert [line.split()[0] for line in text(made)] == ["1", "recovered", "the"]


def test_of_many_that_are_left_the_first_are_written_out():
    made = report(recovered=[recovery(left=[record(str(n), "open") for n in range(SHOWN + 1)])])
    assert len(text(made)) == 1 + SHOWN


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1e9, "0 s"),
        (0, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (2 * 3600 + 59 * 60, "2 h"),
        (86399, "23 h"),
        (86400, "1 d"),
        (30 * 86400, "30 d"),
    ],
)
def test_spans(seconds, said):
    assert span(seconds) == said
    assert ago(time.time() - seconds) in (f"{said} ago", f"{span(seconds + 1)} ago")


# whatever is on record, or comes from the API, is escaped

EVIL = "\x1b]0;owned\x07\x9b2J\r\n\u202e"


def test_no_control_character_gets_through():
    error = AnchorAPIError("x", status=500, code=EVIL, message=EVIL).fields()
    raw = {**error, "code": EVIL, "message": EVIL, "remedy": EVIL}
    evil = {"test": EVIL, "owner": EVIL, "base_url": f"http://{EVIL}", "error": raw}
    note = record("3", ended_by="sweep", already=True, test=EVIL, owner=EVIL, note=EVIL)
    records = record("1", "open", **evil), record("2", "lost", **{**evil, "id": None}), note
    dead = recovery(
        ended=[note],
        left=[record("4", "open", **evil)],
        given_up=[record("5", "open", **evil)],
        problem=AnchorAPIError("list the run's sessions", message=EVIL),
    )
    made = report(*records, recovered=[dead], problem=AnchorAPIError("x", code=EVIL, message=EVIL))
    lines = text(made, verbose=True)
    assert len(lines) > 12
    assert [line for line in lines if not line.isprintable()] == []
    assert sum("owned" in line for line in lines) > 7


def test_what_is_left_in_a_few_words():
    records = record("1", "open"), record("2", "open"), record("3", "lost", id=None), record("4", ended_by="test")
    assert describe(report(*records, unreadable=1).state) == "2 sessions open, 1 creation unresolved, 1 line unreadable"
    assert describe(report(record("1", ended_by="test")).state) == "0 sessions open"


def test_what_a_test_says_of_its_teardown():
    failures = [("s1", AnchorAPIError("x", status=500, tries=4)), ("s2", AnchorAPIError("x"))]
    assert teardown_section(failures).splitlines() == [
        "session s1 was not ended: HTTP 500 (tried 4 times). It is recorded; the final sweep tries again.",
        "session s2 was not ended: no answer. It is recorded; the final sweep tries again.",
    ]
