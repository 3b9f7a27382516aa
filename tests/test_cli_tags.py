import json
import time
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs, urlsplit

import fault_server as fs
import pytest
from commands import HOUR, aged
from records import tags

from pytest_anchor.__main__ import main
from pytest_anchor.reporting import progress
from pytest_anchor.tags import TAG

pytest_plugins = ["command_fixtures"]
pytestmark = pytest.mark.usefixtures("strangers")


def test_sweep_by_run_id_from_any_machine(server, environment, alive, capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET", 600.0)
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
    assert main(["sweep", "--run-id", "r1", "--timeout", "2"]) == 1
    assert time.monotonic() - before < 15
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
