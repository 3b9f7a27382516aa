import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, urlsplit

import fault_server as fs
import pytest
from fault_server import KEY
from processes import CHECKOUT
from real_runs import Suite
from real_runs import environment as run_environment
from records import intend, intend_with, lost, opened, tags

from pytest_anchor import progress
from pytest_anchor.__main__ import main
from pytest_anchor.api import AnchorAPI
from pytest_anchor.locks import JOURNAL
from pytest_anchor.registry import Run
from pytest_anchor.tags import TAG, new_tag, run_tag

HOUR = 3600.0


@pytest.fixture
def environment(monkeypatch, server, quick, tmp_path):
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def strangers(server):
    """Sessions of somebody else, which no command may end."""
    theirs = [
        server.add(),
        server.add("r1", "nightly"),
        server.add("pytest-anchor:run=r12"),
        server.add(TAG, run_tag("r2"), new_tag("other-1")),
    ]
    for one in theirs:
        server.sessions[one].created -= 9.5 * HOUR
    yield theirs
    assert set(theirs) <= set(server.alive)
    assert server.count("DELETE", "/v1/sessions/all") == 0
    assert KEY not in str(server.requests)


@pytest.fixture
def alive(server, strangers):
    return lambda: [one for one in server.alive if one not in strangers]


@pytest.fixture
def registry(tmp_path):
    return tmp_path / ".pytest_anchor"


@pytest.fixture
def dead(registry, environment):
    """A run that is over and left its folder."""
    run = Run(registry / "dead", "main")
    run.join()
    run.leave()
    return run


@pytest.fixture
def live(registry, environment):
    run = Run(registry / "live", "main")
    run.join()
    yield run
    run.leave()


def told(capsys):
    return json.loads(capsys.readouterr().out)


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def aged(server, seconds, *carried):
    one = server.add(*carried)
    server.sessions[one].created -= seconds
    return one


# end


def test_end(server, environment, alive, capsys):
    ids, other = [server.add(TAG), server.add(TAG)], server.add("theirs")
    assert main(["end", *ids, ids[0]]) == 0
    assert alive() == [other]
    assert capsys.readouterr().out == f"{ids[0]}: ended\n{ids[1]}: ended\n"
    assert server.count("DELETE") == 2


def test_end_takes_many_at_once(server, environment, alive):
    ids = [server.add(TAG) for _ in range(8)]
    together = threading.Barrier(8, timeout=10)

    def wait_for_the_others(_handler, act):
        together.wait(10)
        return act()

    server.fail("DELETE", *[wait_for_the_others] * 8)
    assert main(["end", *ids]) == 0
    assert alive() == []


def test_a_session_that_is_over_is_no_failure(server, environment, capsys):
    session_id = server.add(TAG)
    server.end(session_id)
    assert main(["end", session_id]) == 0
    assert capsys.readouterr().out == f"{session_id}: already over, or no session of this account\n"


def test_what_the_api_still_lists_is_noted(server, environment, capsys):
    session_id = server.add(TAG)
    server.fail_always("DELETE", fs.status(401))
    assert main(["end", session_id]) == 0
    assert capsys.readouterr().out == f"{session_id}: already over, but the API lists it as 'running'\n"


def test_one_failure_does_not_keep_the_others(server, environment, alive, capsys):
    bad, good = server.add(TAG), server.add(TAG)
    server.fail_always("DELETE", fs.on(bad, fs.status(403, "no")))
    assert main(["end", bad, good]) == 1
    assert alive() == [bad]
    out, err = capsys.readouterr()
    assert out == f"{good}: ended\n"
    assert err.startswith(f"could not end session {bad}: HTTP 403: “no”")


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["end", "dry-run"])
@pytest.mark.parametrize("value", ["all", "ALL", "../all", "%61ll", "", "a\n", "\x1b[2J"])
def test_no_other_id_is_sent(server, environment, capsys, value, more):
    assert main(["end", value, *more]) == 1
    assert server.requests == []
    out, err = capsys.readouterr()
    assert out == ""
    assert "no session id" in err
    assert "\x1b" not in err


def test_an_api_that_is_silent_holds_nobody(server, environment, alive, capsys):
    ids = [server.add(TAG) for _ in range(20)]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert main(["end", *ids, "--timeout", "0.5"]) == 1
    assert time.monotonic() - before < 8
    assert alive() == ids
    assert capsys.readouterr().err.count("could not end session") == 20


def test_end_dry_run_asks_nothing(server, environment, alive, capsys):
    session_id = server.add(TAG)
    assert main(["end", "--dry-run", session_id]) == 1
    assert alive() == [session_id]
    assert server.requests == []
    assert capsys.readouterr().out == f"would end {session_id}\n"


def test_the_base_url_option_wins(server, environment, alive, monkeypatch):
    monkeypatch.setenv("ANCHORBROWSER_BASE_URL", "http://elsewhere.example")
    session_id = server.add(TAG)
    assert main(["end", "--base-url", f"{server.url}/", session_id]) == 0
    assert alive() == []


# ls, by the record


def test_ls_shows_what_is_open_of_live_and_dead_runs(server, api, dead, live, capsys):
    now = time.time()
    one = opened(server, api, dead, "dead-1", time=now - 2 * HOUR, test="test_a.py::test_cart")
    lost(server, api, dead, "dead-2", time=now - 90, test="test_a.py::test_lost")
    intend_with(api, live, "live-1", time=now)
    over = opened(server, api, live, "live-2")
    live.append("ended", "live-2", how="teardown", already=False)
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
    near = Run(tmp_path / "suite" / ".pytest_anchor" / "other", "main")
    near.join()
    near.leave()
    intend_with(api, near, "other-1", test="near")
    main(["ls", "--json"])
    assert [row["test"] for row in told(capsys)] == ["near"]
    main(["ls", "--json", "--registry", str(tmp_path / ".pytest_anchor")])
    assert [row["test"] for row in told(capsys)] == ["far"]


@pytest.fixture(params=["others may write", "a link", "a file"])
def untrusted(request, dead, registry):
    """The registry cannot be trusted any more."""
    what = request.param
    if what == "others may write":
        registry.chmod(0o777)
    else:
        registry.rename(registry.with_name("moved"))
        registry.symlink_to("moved") if what == "a link" else registry.write_text("")


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
    other = Run(registry / "other", "main")
    other.join()
    other.leave()
    session_id = opened(server, api, other, "other-1")
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert session_id in out if command == ["ls"] else session_id not in server.alive
    assert "is no file" in err


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


# sweep, by the record


def test_sweep_ends_what_dead_runs_left_and_nothing_else(server, api, dead, live, alive, registry, capsys):
    for n in range(3):
        opened(server, api, dead, f"dead-{n}")
    lost(server, api, dead, "dead-3", time=time.time() - 60)
    running = opened(server, api, live, "live-1")
    assert main(["sweep"]) == 0
    assert alive() == [running]
    assert not dead.folder.exists()
    out, err = capsys.readouterr()
    assert "recovered 4 sessions of the run that died" in out
    assert f"Nothing of a dead run is left on record in {registry}." in out
    assert err == ""
    assert main(["sweep"]) == 0
    assert alive() == [running]


def test_sweep_of_nothing_needs_no_key(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--dry-run"], ["--registry", "elsewhere"]):
        assert main(["sweep", *more]) == 0
        assert "Nothing of a dead run is left" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_ended_stays_on_record(server, api, dead, alive, capsys):
    one = opened(server, api, dead, "dead-1")
    server.fail_always("DELETE", fs.status(403, "no \x1b"))
    assert main(["sweep"]) == 1
    assert alive() == [one]
    err = capsys.readouterr().err
    assert f"{one} of t.py::x: HTTP 403: “no \\x1b”" in err
    assert "left of dead runs: 1; to list them: python -m pytest_anchor ls\n" in err
    server.fail_always("DELETE", None)
    assert main(["sweep"]) == 0
    assert alive() == []


def test_what_is_given_up_is_told_once(server, api, dead, alive, capsys):
    one = opened(server, api, dead, "dead-1", time=time.time() - 8 * 24 * HOUR)
    server.fail_always("DELETE", fs.status(403))
    assert main(["sweep"]) == 1
    out, err = capsys.readouterr()
    assert f"GAVE UP on {one}" in err
    assert "Nothing of a dead run" not in out
    assert main(["sweep"]) == 0
    assert alive() == [one]


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["sweep", "dry-run"])
@pytest.mark.parametrize("other", ["key", "url"])
def test_sessions_of_another_key_or_place_are_left_alone(server, api, dead, alive, monkeypatch, capsys, other, more):
    one = opened(server, api, dead, "dead-1")
    server.keys.add("another-key")
    if other == "key":
        monkeypatch.setenv("ANCHORBROWSER_API_KEY", "another-key")
    else:
        monkeypatch.setenv("ANCHORBROWSER_BASE_URL", f"{server.url}/v2")
    assert main(["sweep", *more]) == 1
    assert alive() == [one]
    assert server.requests == []
    assert "another key or base URL" in "".join(capsys.readouterr())


def test_a_list_that_cannot_be_read_is_told(server, api, dead, capsys):
    opened(server, api, dead, "dead-1")
    server.fail_always("GET", fs.status(403))
    assert main(["sweep"]) == 2
    assert "could not list" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, "kéy"])
def test_a_sweep_with_something_to_do_needs_a_key(server, api, dead, alive, monkeypatch, capsys, key):
    one = opened(server, api, dead, "dead-1")
    if key is None:
        monkeypatch.delenv("ANCHORBROWSER_API_KEY")
    else:
        monkeypatch.setenv("ANCHORBROWSER_API_KEY", key)
    assert main(["sweep"]) == 2
    assert "ANCHORBROWSER_API_KEY" in capsys.readouterr().err
    assert alive() == [one]
    assert dead.claim()  # it was let go


def test_sweep_waits_for_who_is_at_it(server, api, dead, alive):
    opened(server, api, dead, "dead-1")
    reaper = Run(dead.folder, "reaper")
    assert reaper.claim()
    threading.Timer(0.6, reaper.release).start()
    assert main(["sweep"]) == 0
    assert alive() == []


def test_sweep_waits_for_nobody_before_the_rest_is_done(server, api, dead, registry, alive):
    one = opened(server, api, dead, "dead-1")
    later = Run(registry / "later", "main")
    later.join()
    later.leave()
    opened(server, api, later, "later-1")
    reaper = Run(dead.folder, "reaper")
    assert reaper.claim()
    assert main(["sweep", "--timeout", "1"]) == 1
    reaper.release()
    assert alive() == [one]


def test_sweep_waits_no_longer_than_its_timeout(server, api, dead, alive, capsys):
    one = opened(server, api, dead, "dead-1")
    reaper = Run(dead.folder, "reaper")
    assert reaper.claim()
    assert main(["sweep", "--timeout", "0.3"]) == 1
    reaper.release()
    assert alive() == [one]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert main(["sweep", "--timeout", "0.5"]) in (1, 2)
    assert time.monotonic() - before < 8
    assert alive() == [one]


def test_sweep_dry_run_changes_nothing(server, api, dead, live, registry, alive, capsys):
    one = opened(server, api, dead, "dead-1")
    lost(server, api, dead, "dead-2", test="test_lost")
    opened(server, api, live, "live-1")
    before, ids = contents(registry), alive()
    assert main(["sweep", "--dry-run"]) == 1
    assert contents(registry) == before
    assert alive() == ids
    assert {method for method, _ in server.requests} <= {"GET"}
    out = capsys.readouterr().out
    assert out == f"would end {one} of t.py::x\nwould look for, and end, a creation of test_lost\n"


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["sweep", "dry-run"])
def test_a_copied_registry_is_left_alone(server, api, live, registry, alive, capsys, more):
    one = opened(server, api, live, "live-1")
    copy = registry / "copy"
    copy.mkdir(mode=0o700)
    (copy / JOURNAL).write_bytes((live.folder / JOURNAL).read_bytes())
    assert main(["sweep", *more]) == 1
    assert alive() == [one]
    assert server.count("DELETE") == 0
    out, err = capsys.readouterr()
    assert "would end" not in out
    assert "elsewhere" in out + err


@pytest.mark.parametrize("forged", [False, True])
def test_what_a_local_backend_served_is_over_with_it_and_nothing_else_is(server, api, dead, alive, capsys, forged):
    (dead.folder / "local.url").write_text("http://127.0.0.1:1")
    (dead.folder / "local.alive").touch()
    intend(dead, "dead-1", base_url="http://127.0.0.1:1", time=time.time() - 60)
    ids = [opened(server, api, dead, "dead-2")] if forged else []
    assert main(["ls", "--json"]) == len(ids)
    assert [row["id"] for row in told(capsys)] == ids
    assert main(["sweep"]) == 0
    assert alive() == []


def test_sweep_dry_run_tells_what_would_be_left_alone(server, api, dead, alive, capsys, monkeypatch):
    then = time.time() - HOUR
    intend_with(api, dead, "dead-1", test="edited")
    dead.append("created", "dead-1", id="abc", seal="0" * 32)
    intend_with(api, dead, "dead-2", test="theirs", fingerprint="0" * 16, time=then)
    intend(dead, "dead-3", test="moved", base_url=api.base_url, fingerprint=api.fingerprint, place=1, time=then)
    opened(server, api, dead, "dead-4", test="ours")
    ids = alive()
    expected = [
        "would leave alone, since its record was edited: abc of edited",
        "would leave alone, since it was created with another key or base URL: a creation of theirs",
        "would leave alone, since it is on record elsewhere: a creation of moved",
        f"would end {ids[0]} of ours",
    ]
    assert main(["sweep", "--dry-run"]) == 1
    assert capsys.readouterr().out.splitlines() == expected
    assert main(["sweep"]) == 1
    assert alive() == []
    assert server.count("DELETE") == server.count("DELETE", f"/v1/sessions/{ids[0]}") == 1
    assert "tried" not in capsys.readouterr().err
    monkeypatch.delenv("ANCHORBROWSER_API_KEY")
    assert main(["sweep", "--dry-run"]) == 1
    assert "no API key is set" in capsys.readouterr().err


def test_sweep_dry_run_tells_what_would_be_given_up(api, dead, capsys):
    intend_with(api, dead, "dead-1", test="theirs", fingerprint="0" * 16, time=time.time() - 8 * 24 * HOUR)
    assert main(["sweep", "--dry-run"]) == 1
    assert capsys.readouterr().out.startswith("would give up on, since it was created with another key")
    assert main(["sweep"]) == 1
    assert "GAVE UP on a creation of theirs" in capsys.readouterr().err


def test_an_edited_record_ends_nothing(server, api, dead, strangers, capsys):
    intend_with(api, dead, "dead-1")
    dead.append("created", "dead-1", id=strangers[0], seal="0" * 32)
    assert main(["sweep"]) == 1
    assert server.count("DELETE") == 0


# sweep, by tags


def test_sweep_by_run_id_from_any_machine(server, environment, alive, capsys):
    ids = [server.add(*tags(f"machine{n % 3}-{n}")) for n in range(60)]
    server.end(ids[0])
    assert main(["sweep", "--run-id", "r1"]) == 0
    assert alive() == []
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == sorted([*(f"{one}: ended" for one in ids[1:]), "59 ended, nothing is left."])
    assert err == ""
    assert server.count("DELETE") == 59


@pytest.mark.parametrize("command", [["ls", "--remote"], ["sweep"], ["sweep", "--dry-run"]], ids=" ".join)
def test_the_run_id_of_the_ci_run_under_way(server, environment, alive, monkeypatch, capsys, command):
    monkeypatch.setenv("CI_PIPELINE_ID", "42")
    one = server.add(*tags("x", run_id="gitlab-42"))
    assert main([*command, "--run-id"]) == (0 if command == ["sweep"] else 1)
    assert one in capsys.readouterr().out
    assert alive() == ([] if command == ["sweep"] else [one])


def test_nothing_to_end(server, environment, capsys):
    assert main(["sweep", "--run-id", "r9"]) == 0
    assert capsys.readouterr().out == "No session that is alive carries 'pytest-anchor:run=r9'.\n"
    assert server.count("DELETE") == 0


def test_what_appears_during_a_sweep_is_ended(server, environment, alive):
    server.add(*tags("x-1"))

    def appear(_handler, act):
        server.add(*tags("x-2"))
        return act()

    server.fail("DELETE", appear)
    assert main(["sweep", "--run-id", "r1"]) == 0
    assert alive() == []
    assert server.count("DELETE") == 2


def test_the_age_of_what_has_just_been_created_is_none(server, environment, alive, capsys):
    server.add(TAG, "checkout")  # later than the whole second that the answer's Date header tells
    assert main(["sweep", "--tag", "checkout", "--older-than", "0"]) == 0
    assert alive() == []


def test_trouble_that_passes_is_waited_for(server, environment, alive, capsys):
    one = server.add(*tags("x-1"))
    server.fail("DELETE", *[fs.status(503)] * 6)
    assert main(["sweep", "--run-id", "r1"]) == 0
    assert alive() == []
    assert capsys.readouterr().out == f"{one}: ended\n1 ended, nothing is left.\n"


def test_what_the_list_still_shows_is_asked_again(server, environment, capsys):
    one = server.add(*tags("x-1"))
    server.fail("DELETE", fs.body(b'{"data": {"status": "ended"}}'))  # it says so, and ends nothing
    assert main(["sweep", "--run-id", "r1"]) == 0
    assert one not in server.alive
    assert capsys.readouterr().out.startswith(f"{one}: ended\n1 ended")


def test_what_the_list_shows_to_the_end_is_left(server, environment, capsys):
    one = server.add(*tags("x-1"))
    server.fail_always("DELETE", fs.body(b'{"data": {"status": "ended"}}'))
    assert main(["sweep", "--run-id", "r1", "--timeout", "1"]) == 1
    assert f"left: {one}: the API lists it as alive" in capsys.readouterr().err


def test_what_is_refused_is_left_and_told(server, environment, alive, capsys):
    bad = server.add(*tags("x-1"))
    server.add(*tags("x-2"))
    server.fail_always("DELETE", fs.on(bad, fs.status(403, "no \x1b[2J")))
    assert main(["sweep", "--run-id", "r1"]) == 1
    assert alive() == [bad]
    assert server.count("DELETE", f"/v1/sessions/{bad}") == 1
    assert f"left: {bad}: could not end session {bad}: HTTP 403: “no \\x1b[2J”" in capsys.readouterr().err


@pytest.mark.parametrize("fault", [fs.status(500), fs.reset, fs.status(401), fs.body(b"<html>")])
def test_a_list_that_cannot_be_had_ends_nothing(server, environment, alive, capsys, fault):
    one = server.add(*tags("x-1"))
    server.fail_always("GET", fault)
    for command in (["sweep", "--run-id", "r1"], ["ls", "--remote"]):
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("could not list")
        assert "Traceback" not in err
    assert alive() == [one]


def test_without_a_last_list_it_cannot_be_told_what_is_left(server, environment, alive, capsys):
    one = server.add(*tags("x-1"))
    server.fail("GET", lambda _handler, act: act(), *[fs.status(403)] * 9)
    assert main(["sweep", "--run-id", "r1"]) == 2
    assert alive() == []
    out, err = capsys.readouterr()
    assert out == f"{one}: ended\n"
    assert err.startswith("could not list")


def test_a_list_that_ignores_the_filter_ends_no_strangers(server, environment, alive, strangers):
    mine = server.add(*tags("x-1"))
    items = [{"session_id": one, "status": "running", "tags": s.tags} for one, s in server.sessions.items()]
    server.fail("GET", fs.body(json.dumps({"data": {"items": items}}).encode()))
    assert main(["sweep", "--run-id", "r1"]) == 0
    assert alive() == []
    assert [path for method, path in server.requests if method == "DELETE"] == [f"/v1/sessions/{mine}"]


def test_a_sweep_keeps_its_timeout(server, environment, alive, capsys):
    ids = [server.add(*tags(f"x-{n}")) for n in range(40)]
    server.fail_always("DELETE", fs.silent)
    before = time.monotonic()
    assert main(["sweep", "--run-id", "r1", "--timeout", "1"]) == 1
    assert time.monotonic() - before < 8
    assert alive() == ids
    err = capsys.readouterr().err
    assert err.count("left: ") == err.count(": no answer ") == 40


@pytest.mark.parametrize(
    ("duration", "left"),
    [
        ("90", ["80 s", "0 s"]),
        ("90s", ["80 s", "0 s"]),
        ("1.5m", ["80 s", "0 s"]),
        ("2m", ["100 s", "80 s", "0 s"]),
        ("1h", ["100 s", "80 s", "0 s"]),
        ("2h", ["90 min", "100 s", "80 s", "0 s"]),
        ("2d", ["3 h", "90 min", "100 s", "80 s", "0 s"]),
    ],
)
@pytest.mark.parametrize("by", [["--tag", "nightly"], ["--run-id", "r1"]], ids=lambda by: by[0])
def test_only_what_is_old_enough(server, environment, alive, duration, left, by):
    ages = {"3 h": 3 * HOUR, "90 min": 1.5 * HOUR, "100 s": 100, "80 s": 80, "0 s": 0}
    ids = {aged(server, seconds, *tags("x-1"), "nightly"): name for name, seconds in ages.items()}
    assert main(["sweep", *by, "--older-than", duration]) == 0
    assert [ids[one] for one in alive()] == left


def test_a_tag_is_taken_together_with_our_own(server, environment, alive):
    both = aged(server, HOUR, "nightly", TAG)
    ours, theirs = aged(server, HOUR, TAG), aged(server, HOUR, "nightly")
    assert main(["sweep", "--tag", "nightly", "--older-than", "10m"]) == 0
    assert both not in alive()
    assert alive() == [ours, theirs]


def test_the_api_is_asked_for_both_tags(server, environment):
    asked = []

    def listen(handler, act):
        asked.append(parse_qs(urlsplit(handler.path).query))
        return act()

    server.fail_always("GET", listen)
    assert main(["sweep", "--tag", "night & day", "--older-than", "10m"]) == 0
    assert asked == [{"tags": ["pytest-anchor,night & day"]}]


def test_the_servers_clock_tells_the_age(server, environment, alive, capsys):
    """This machine's clock is a day ahead, by the server's view."""
    young = server.add(TAG, "nightly")
    yesterday = datetime.now(timezone.utc) - timedelta(days=1)
    server.sessions[young].created = yesterday.timestamp() - 60

    def a_day_behind(handler, act):
        handler.date_time_string = lambda: f"{yesterday:%a, %d %b %Y %H:%M:%S GMT}"
        return act()

    server.fail_always("GET", a_day_behind)
    assert main(["sweep", "--tag", "nightly", "--older-than", "1h"]) == 0
    assert alive() == [young]
    assert "No session that is alive carries 'pytest-anchor' and 'nightly' and is older" in capsys.readouterr().out


def test_a_session_without_an_age_is_left_alone_and_told(server, environment, alive, capsys):
    one = server.add(*tags("x-1"))
    item = {"session_id": one, "status": "running", "tags": list(tags("x-1")), "created_at": "long ago"}
    server.fail_always("GET", fs.body(json.dumps({"data": {"items": [item]}}).encode()))
    assert main(["sweep", "--run-id", "r1", "--older-than", "0"]) == 0
    assert alive() == [one]
    assert f"left alone, since the API does not tell when they were created: {one}" in capsys.readouterr().err


@pytest.mark.parametrize("by", [["--run-id", "r1"], ["--tag", "nightly", "--older-than", "1h"]], ids=lambda by: by[0])
def test_dry_run_by_tags(server, environment, alive, tmp_path, capsys, by):
    one = aged(server, 2 * HOUR, *tags("x-1"), "nightly")
    assert main(["sweep", "--dry-run", *by]) == 1
    assert alive() == [one]
    assert {method for method, _ in server.requests} == {"GET"}
    assert capsys.readouterr().out == f"would end {one}\n"
    assert list(tmp_path.iterdir()) == []


# use


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["sweep", "--tag", "nightly"], "needs --older-than"),
        (["sweep", "--older-than", "1h"], "goes with --tag"),
        (["sweep", "--run-id", "r1", "--registry", "x"], "leave it out"),
        (["sweep", "--run-id"], "no run of a CI service"),
        (["ls", "--run-id"], "no run of a CI service"),
        (["sweep", "--run-id", ""], "run id ''"),
        (["sweep", "--run-id", "a,b"], "run id 'a,b'"),
        (["ls", "--run-id", "\x1b[2J"], "\\x1b"),
        (["sweep", "--tag", "", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", " ", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", "a,b", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", "a\nb", "--older-than", "1h"], "--tag takes one tag"),
        (["sweep", "--tag", "\x1b", "--older-than", "1h"], "--tag takes one tag"),
        *((["sweep", "--tag", "a", "--older-than", bad], "such as 90") for bad in ("", "h", "-1", "1w", "1 h", "1h30m", "nan", "inf", "١")),
        *((["sweep", "--timeout", bad], "--timeout takes") for bad in ("0", "-1", "nan", "x")),
        (["end", "abc", "--timeout", "0"], "--timeout takes"),
        (["end", "abc", "--base-url", "http://elsewhere.example"], "in the clear"),
        (["ls", "--remote", "--base-url", "nonsense"], "no http:// or https:// URL"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_a_sentence(server, environment, capsys, arguments, word):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert word in err
    assert "\x1b" not in err
    assert server.requests == []


@pytest.mark.parametrize("command", [["end", "abc"], ["ls", "--remote"], ["sweep", "--run-id", "r1"]], ids=" ".join)
def test_without_a_key(server, environment, monkeypatch, capsys, command):
    monkeypatch.delenv("ANCHORBROWSER_API_KEY")
    assert main(command) == 2
    assert "ANCHORBROWSER_API_KEY" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["end"],
        ["nonsense"],
        ["end", "abc", "--nonsense"],
        ["sweep", "all"],
        ["ls", "--dry-run"],
        ["sweep", "--tag", "a", "--run-id", "b", "--older-than", "1"],
    ],
)
def test_wrong_use(server, environment, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m pytest_anchor" in capsys.readouterr().err
    assert server.requests == []


@pytest.mark.parametrize(
    ("command", "word"), [("ls", "jq"), ("sweep", "if: always()"), ("end", "--dry-run"), ("local", "--port")]
)
def test_each_command_has_a_help_of_its_own(capsys, command, word):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert word in capsys.readouterr().out


@pytest.mark.parametrize("by", ["record", "tags", "ids"])
def test_a_long_sweep_says_how_far_it_is(server, api, dead, alive, monkeypatch, capsys, by):
    monkeypatch.setattr(progress, "QUIET", 0.0)
    ids = [opened(server, api, dead, f"dead-{n}") for n in range(3)]
    command = {"record": ["sweep"], "tags": ["sweep", "--run-id", "r1"], "ids": ["end", *ids]}[by]
    assert main(command) == 0
    out, err = capsys.readouterr()
    assert err.startswith("anchor: ending sessions: ")
    assert " of 3\n" in err
    assert "anchor:" not in out
    assert alive() == []


def test_nothing_more_is_sent_once_it_is_interrupted(server, environment, alive, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "__call__", interrupt)
    ids = [server.add(TAG) for _ in range(40)]
    server.fail_always("DELETE", fs.slow(1.0))
    assert main(["end", *ids]) == 130
    for thread in threading.enumerate():
        if thread.name == "pytest-anchor-end":
            thread.join(10)
    assert server.count("DELETE") == 16
    assert len(alive()) == 24
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_those_that_hang_leave_time_for_the_others(server, environment, alive, capsys):
    ids = [server.add(TAG, "pytest-anchor:run=r1") for _ in range(40)]
    server.fail_always("DELETE", fs.among(ids[:20], fs.silent))
    assert main(["sweep", "--run-id", "r1", "--timeout", "4"]) == 1
    assert set(alive()) == set(ids[:20])
    out, err = capsys.readouterr()
    assert out.count(": ended\n") == 20
    assert err.count("no answer") == 20


def test_those_that_hang_once_are_tried_again(server, environment, alive, capsys):
    for _ in range(3):
        server.add(TAG, "pytest-anchor:run=r1")
    server.fail_always("DELETE", fs.once_each(fs.silent))
    assert main(["sweep", "--run-id", "r1", "--timeout", "4"]) == 0
    assert alive() == []


def test_an_api_that_asks_to_wait_is_left_alone(server, environment, alive, capsys):
    ids = [server.add(TAG, "pytest-anchor:run=r1") for _ in range(40)]
    server.fail_always("DELETE", fs.status(429, Retry_After="30"))
    assert main(["sweep", "--run-id", "r1", "--timeout", "4"]) == 1
    assert server.count("DELETE") <= 16
    assert server.count("GET") == 1
    assert capsys.readouterr().err.count("HTTP 429") == len(ids) == len(alive())


# real processes


def command(*arguments, **env):
    return subprocess.Popen(
        [sys.executable, "-m", "pytest_anchor", *arguments],
        env={**run_environment(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("arguments", [["--help"], ["sweep", "--help"]], ids=" ".join)
def test_help_is_cheap(arguments):
    code = (
        "import sys, pytest_anchor.__main__ as m\n"
        "try: m.main(sys.argv[1:])\n"
        "finally: print({'requests', 'filelock', 'pytest'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "set()\n")
    assert "usage: python -m pytest_anchor" in done.stdout


def test_what_a_run_that_died_left_is_listed_and_swept(server, alive, tmp_path):
    suite = Suite(tmp_path, server)
    suite.write("import os\ndef test_it(anchor_session):\n    anchor_session()\n    os._exit(9)\n")
    assert suite.run("--anchor-reaper", "off").status == 9
    (left,) = set(alive()) - set(suite.strangers)
    where = ["--registry", str(suite.registry)]
    status, out, err = finished(command("ls", "--json", *where))
    assert (status, err) == (1, "")
    assert [(row["id"], row["test"], row["run_lives"]) for row in json.loads(out)] == [
        (left, "test_it.py::test_it", False)
    ]
    status, out, _progress = finished(command("sweep", *where, **server.env))
    assert status == 0
    assert "recovered 1 session" in out
    assert alive() == suite.strangers
    assert finished(command("ls", *where))[0] == 0


def test_as_a_command_from_any_machine(server, alive):
    session_id = server.add(*tags("x-1"))
    status, out, err = finished(command("ls", "--remote", "--run-id", "r1", PYTHONIOENCODING="ascii", **server.env))
    assert (status, err) == (1, "")
    assert session_id in out
    status, out, err = finished(command("sweep", "--run-id", "r1", **server.env))
    assert (status, out, err) == (0, f"{session_id}: ended\n1 ended, nothing is left.\n", "")
    assert alive() == []


def test_a_terminal_that_knows_no_such_letter(api, dead):
    intend(dead, "dead-1", test="é")
    status, out, err = finished(command("ls", PYTHONIOENCODING="ascii"))
    assert (status, err) == (1, "")
    assert "\\xe9" in out


@pytest.mark.parametrize("by", ["record", "tags", "ids"])
@pytest.mark.parametrize("lost", ["out", "err", "both"])
def test_output_that_nobody_reads_keeps_nothing_from_being_ended(server, dead, alive, by, lost):
    api = AnchorAPI(server.url, KEY)
    ids = [opened(server, api, dead, f"dead-{n}") for n in range(5)]
    server.fail_always("DELETE", fs.once_each(fs.status(409)))
    # The reader of a pipe has gone, or there was no stream from the start.
    lose = {"out": " | true", "err": " 2>&-", "both": " >&- 2>&-"}[lost]
    arguments = {"record": "sweep", "tags": "sweep --run-id r1", "ids": f"end {' '.join(ids)}"}[by]
    for _ in range(2):
        done = subprocess.run(
            f"{shlex.quote(sys.executable)} -m pytest_anchor {arguments}{lose}",
            shell=True,
            env={**run_environment(), **server.env},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert "Broken pipe" not in done.stderr
    assert alive() == []


@pytest.mark.parametrize("by", ["record", "tags", "ids"])
def test_ctrl_c_ends_it_at_once(server, dead, alive, until, by):
    api = AnchorAPI(server.url, KEY)
    ids = [opened(server, api, dead, f"dead-{n}") for n in range(20)]
    server.fail_always("DELETE", fs.silent)
    process = command(
        *{"record": ["sweep"], "tags": ["sweep", "--run-id", "r1"], "ids": ["end", *ids]}[by], **server.env
    )
    until(lambda: server.count("DELETE") >= 16)
    process.send_signal(signal.SIGINT)
    before = time.monotonic()
    status, _, err = finished(process)
    assert time.monotonic() - before < 8
    assert status == 130
    assert err == "interrupted: what has not been ended is still there; the same command goes on\n"
    assert alive() == ids
