import json
import os
import time

import fault_server as fs
import pytest
from commands import HOUR, aged, told
from records import intend_with, lost, opened, tags

from pytest_anchor.__main__ import main
from pytest_anchor.registry.journal import Run
from pytest_anchor.registry.locks import JOURNAL
from pytest_anchor.tags import TAG, run_tag

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("strangers")


# ls, by the record


def test_ls_shows_what_is_open_of_live_and_dead_runs(server, api, dead, live, capsys):
    now = time.time()
    one = opened(server, api, dead, "dead-1", time=now - 2 * HOUR, test="test_a.py::test_cart")
    lost(server, api, dead, "dead-2", time=now - 90, test="test_a.py::test_lost")
    intend_with(api, live, "live-1", time=now)
    over = opened(server, api, live, "live-2")
    live.append("ended", "live-2", ended_by="teardown", already=False)
    assert main(["ls"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["ID", "STATE", "AGE", "TEST", "RUN"],
        [one, "open", "2", "h", "test_a.py::test_cart", "dead", "(dead)"],
        ["-", "lost", "1", "min", "test_a.py::test_lost", "dead", "(dead)"],
        ["-", "pending", "0", "s", "t.py::x", "live", "(lives)"],
    ]
    assert len({line.index(word) for line, word in zip(lines, ["STATE", "open", "lost", "pending"], strict=True)}) == 1
    assert over in server.alive
    assert server.requests == []


def test_ls_as_json(server, api, dead, live, capsys):
    one = opened(server, api, dead, "dead-1", time=time.time() - HOUR)
    intend_with(api, live, "live-1")
    assert main(["ls", "--json"]) == 1
    first, second = told(capsys)
    assert first.pop("age_seconds") == pytest.approx(HOUR, abs=30)
    assert first == {"id": one, "state": "open", "test": "t.py::x", "run": "dead", "run_lives": False}
    assert second.pop("age_seconds") < 30
    assert second == {"id": None, "state": "pending", "test": "t.py::x", "run": "live", "run_lives": True}


def test_ls_of_nothing(dead, registry, capsys):
    assert main(["ls"]) == 0
    assert capsys.readouterr() == (f"No session is open on record in {registry}.\n", "")
    assert main(["ls", "--json"]) == 0
    assert told(capsys) == []


def test_ls_where_there_never_was_a_run_needs_no_key(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 0
    assert (
        capsys.readouterr().out
        == "No session is open on record: there is no .pytest_anchor here or in a folder above.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_ls_of_one_run_id(server, api, dead, capsys):
    intend_with(api, dead, "dead-1", run_id="github-1")
    intend_with(api, dead, "dead-2", run_id="github-2", test="test_b")
    assert main(["ls", "--json", "--run-id", "github-2"]) == 1
    assert [row["test"] for row in told(capsys)] == ["test_b"]
    assert main(["ls", "--run-id", "github-3"]) == 0


def test_ls_remote_needs_no_registry(server, untrusted, alive, capsys):
    one = server.add(TAG, run_tag("r1"))
    assert main(["ls", "--remote", "--json", "--run-id", "r1"]) == 1
    assert [(row["id"], row["test"]) for row in told(capsys)] == [(one, None)]


def test_the_nearest_registry_is_taken(api, dead, monkeypatch, tmp_path, capsys):
    intend_with(api, dead, "dead-1", test="far")
    inner = tmp_path / "suite" / "tests"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    main(["ls", "--json"])
    assert [row["test"] for row in told(capsys)] == ["far"]
    near = Run(tmp_path / "suite" / ".pytest_anchor" / "other")
    near.join()
    near.leave()
    intend_with(api, near, "other-1", test="near")
    main(["ls", "--json"])
    assert [row["test"] for row in told(capsys)] == ["near"]
    main(["ls", "--json", "--registry", str(tmp_path / ".pytest_anchor")])
    assert [row["test"] for row in told(capsys)] == ["far"]


@pytest.mark.parametrize("command", [["ls"], ["sweep"], ["sweep", "--dry-run"]], ids=" ".join)
def test_a_registry_that_cannot_be_trusted_is_refused(server, untrusted, capsys, command):
    assert main(command) == 2
    assert "cannot be used" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize("command", [["ls"], ["ls", "--json"], ["sweep"], ["sweep", "--dry-run"]], ids=" ".join)
def test_a_record_that_cannot_be_read_in_whole_is_told(dead, capsys, command):
    (dead.folder / JOURNAL).write_text("junk\n")
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "sessions may be missing here" in err
    assert str(dead.folder) in err
    assert out in ("", "[]\n")


@pytest.mark.parametrize("command", [["ls"], ["sweep"]], ids=" ".join)
def test_a_record_that_cannot_be_read_hides_no_other(server, api, registry, dead, capsys, command):
    os.mkfifo(dead.folder / JOURNAL)
    other = Run(registry / "other")
    other.join()
    other.leave()
    session_id = opened(server, api, other, "other-1")
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert session_id in out if command == ["ls"] else session_id not in server.alive
    assert "is not a file" in err


def test_nothing_from_a_record_reaches_the_terminal_raw(api, dead, capsys):
    intend_with(api, dead, "dead-1", test="\x1b[2J\u202eé", time=float("nan"))
    main(["ls"])
    out = capsys.readouterr().out
    assert "\\x1b[2J\\u202eé" in out
    assert out.isascii() is False
    assert "\x1b" not in out
    main(["ls", "--json"])
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out)[0]["age_seconds"] is None


# ls, by the API's list


def test_ls_remote(server, api, dead, strangers, capsys):
    mine = opened(server, api, dead, "dead-1", test="test_cart")
    server.sessions[mine].created -= 2.5 * HOUR
    untold = server.add(TAG)
    server.end(server.add(*tags("dead-2")))
    assert main(["ls", "--remote"]) == 1
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ID", "STATUS", "AGE", "TEST", "RUN"],
        [strangers[3], "running", "9", "h", "-", "r2"],
        [mine, "running", "2", "h", "test_cart", "r1"],
        [untold, "running", "0", "s", "-", "-"],
    ]
    assert main(["ls", "--remote", "--json", "--run-id", "r1"]) == 1
    (row,) = told(capsys)
    assert row.pop("age_seconds") == pytest.approx(2.5 * HOUR, abs=30)
    assert row == {"id": mine, "status": "running", "test": "test_cart", "run": "r1"}
    assert server.count("GET") == len(server.requests) == 2


def test_ls_remote_of_nothing(server, environment, capsys):
    assert main(["ls", "--remote", "--run-id", "r3"]) == 0
    assert capsys.readouterr().out == "No session that is alive carries the tag 'pytest-anchor:run=r3'.\n"


def test_nothing_from_the_api_reaches_the_terminal_raw(server, environment, capsys):
    item = {"session_id": "x", "status": "\x1b[2J", "tags": [TAG, run_tag("\x1b]0;owned\x07")], "created_at": "\x1b"}
    server.fail_always("GET", fs.body(json.dumps({"data": {"items": [item]}}).encode()))
    assert main(["ls", "--remote"]) == 1
    assert "\x1b" not in capsys.readouterr().out
    assert main(["ls", "--remote", "--json"]) == 1
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert json.loads(out)[0]["status"] == "\x1b[2J"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("2026-03-09T12:34:56.789Z", True),
        ("2026-03-09T12:34:56Z", True),
        ("2026-03-09t12:34:56z", True),
        ("2026-03-09 12:34:56.1+00:00", True),
        ("2026-03-09T14:34:56.123456789+0200", True),
        ("2026-03-09T07:04:56,5-05:30", True),
        ("2026-03-09T17:34:56+05", True),
        ("2026-03-09T12:34:56", False),  # in which time zone?
        ("2026-03-09", False),
        ("2026-13-09T12:34:56Z", False),
        ("2026-03-09T12:34:56+99:99", False),
        ("0001-01-01T00:00:00+14:00", None),
        ("٢٠٢٦-03-09T12:34:56Z", False),
        ("", False),
        (1773059696, False),
        (None, False),
        ([], False),
    ],
)
def test_ages(server, environment, capsys, text, known):
    item = {"session_id": "x", "status": "running", "tags": [TAG], "created_at": text}
    listed = json.dumps({"data": {"items": [item]}}).encode()

    def an_hour_later(handler, _act):
        handler.date_time_string = lambda: "Mon, 09 Mar 2026 13:34:57 GMT"
        return 200, {}, listed

    server.fail("GET", an_hour_later)
    main(["ls", "--remote", "--json"])
    age = told(capsys)[0]["age_seconds"]
    if known is None:
        assert age is None or age > 1e10
    else:
        assert age == (pytest.approx(HOUR, abs=1.5) if known else None)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Mar 2026 13:34:57 GMT"])
def test_without_the_servers_clock_this_machines_counts(server, environment, capsys, date):
    one = aged(server, HOUR, *tags("x"))

    def with_date(handler, act):
        handler.date_time_string = lambda: date
        return act()

    server.fail("GET", with_date)
    main(["ls", "--remote", "--json", "--run-id", "r1"])
    (row,) = told(capsys)
    assert row["id"] == one
    assert row["age_seconds"] == pytest.approx(HOUR, abs=30)
