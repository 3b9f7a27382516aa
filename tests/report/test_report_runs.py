"""Runs that are to draw their picture, whatever becomes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from base64 import b64encode
from typing import Any

import pytest
from fault_server import KEY, PNG, slow, status
from pictures import one_after_the_other
from real_runs import Suite, environment, until

from pytest_anchor.__main__ import main
from pytest_anchor.broker import picture
from pytest_anchor.broker.picture import PictureWriter
from pytest_anchor.report import write

SUITE = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_it(anchor_session, number):
    anchor_session()
    assert number != 1
"""
KILLED = """
import os, signal

def test_it(anchor_session):
    anchor_session()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def suite(suite: Suite) -> Suite:
    suite.write(SUITE)
    return suite


def drawn(suite: Suite, name: str = "run.json") -> dict[str, Any]:
    text = (suite.folder / name).read_text()
    assert KEY not in text
    assert "cdp_url" not in text
    document: dict[str, Any] = json.loads(text)
    return document


def test_data(suite):
    suite.server.cap = 7
    run = suite.run_here("--anchor-report", "run.json", "--anchor-prefetch", "1")
    assert run.status == 1
    assert run.section.endswith(f"the picture of the run is in {suite.folder / 'run.json'}\n")
    document = drawn(suite)
    assert (document["format"], document["version"]) == ("pytest-anchor-report", 1)
    assert document["run"]["status"] == "finished"
    assert (document["run"]["max_sessions"], document["run"]["prefetch"]) == (7, 1)
    assert [(test["test"], test["outcome"]) for test in document["tests"]] == [
        ("test_it.py::test_it[0]", "passed"),
        ("test_it.py::test_it[1]", "failed"),
        ("test_it.py::test_it[2]", "passed"),
    ]
    assert document["totals"]["sessions"] == len(document["sessions"]) == 3
    screenshots = [test["screenshots"] for test in document["tests"]]
    assert [len(paths) for paths in screenshots] == [0, 1, 0]
    assert (suite.folder / screenshots[1][0]).read_bytes() == PNG
    assert not suite.runs


def test_any_number_that_the_api_gives_can_be_on_record(suite):
    suite.server.cap = 10**12
    suite.server.fail("POST", status(429, RateLimit_Policy="q=100000;w=86400", Retry_After="0"))
    run = suite.run_here("--anchor-report", "run.json", "-k", "0")
    assert (run.status, drawn(suite)["totals"]["unreadable"]) == (0, 0)


def test_a_page_in_a_folder_that_is_made_for_it(suite):
    run = suite.run_here("--anchor-report", "ci/artifacts/run.html")
    assert run.status == 1
    page = (suite.folder / "ci/artifacts/run.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "test_it.py::test_it[1]" in page
    assert page.count(f"data:image/png;base64,{b64encode(PNG).decode()}") == 1
    assert KEY not in page
    assert [path.name for path in (suite.folder / "ci/artifacts").iterdir()] == ["run.html"]


@pytest.mark.parametrize("where", ["ini file", "environment"])
def test_where_it_can_be_asked_for(suite, where):
    if where == "ini file":
        (suite.folder / "pytest.ini").write_text("[pytest]\nanchor_report = run.json\n")
    variables = {"PYTEST_ANCHOR_REPORT": "run.json"} if where == "environment" else {}
    suite.run_here(env=environment(**suite.server.env, **variables))
    assert drawn(suite)["totals"]["tests"] == 3


@pytest.mark.parametrize("name", ["run.xml", "run", ".html.gz"])
def test_a_file_of_another_kind_is_refused(suite, name):
    run = suite.run_here("--anchor-report", name)
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert f"--anchor-report takes a file whose name ends in .html or .json, not {name!r}" in run.err


def test_a_page_needs_jinja_and_says_so_at_the_start(suite, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    run = suite.run_here("--anchor-report", "run.html")
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert "pip install 'pytest-anchor[report]'" in run.err
    assert not suite.server.sessions.keys() - set(suite.strangers)


@pytest.mark.parametrize("trouble", ["a folder is in its place", "a file is in the place of its folder"])
def test_what_cannot_be_written_changes_nothing_but_a_line(suite, trouble):
    if trouble == "a folder is in its place":
        (suite.folder / "out.json" / "full").mkdir(parents=True)
        name = "out.json"
    else:
        (suite.folder / "out").write_text("")
        name = "out/run.json"
    run = suite.run_here("--anchor-report", name, "-k", "0")
    assert run.status == 0
    assert f"the picture of the run could not be written to {suite.folder / name}: " in run.section
    assert re.search(r"directory|exists", run.section.rpartition(": ")[2])
    assert not list(suite.folder.glob(".out*"))


def test_a_run_without_sessions_draws_nothing(suite):
    suite.write("def test_it(anchor_session): pass")
    assert suite.run_here("--anchor-report", "run.json").status == 0
    assert not (suite.folder / "run.json").exists()


def test_a_leak_is_named(suite):
    suite.server.fail_always("DELETE", status(403))
    run = suite.run_here("--anchor-report", "run.json", "--anchor-sweep-timeout", "1", "-k", "0")
    assert run.status == 1
    document = drawn(suite)
    assert document["totals"]["open"] == 1
    assert [session["id"] for session in document["sessions"]] == run.alive


@pytest.mark.slow
def test_workers(suite):
    suite.run("--anchor-report", "run.json", workers=2)
    document = drawn(suite)
    assert {document["lanes"][test["lane"]] for test in document["tests"]} == {"gw0", "gw1"}
    assert document["totals"]["outcomes"] == {"passed": 2, "failed": 1}


@pytest.mark.slow
def test_an_interrupted_run(suite):
    suite.write(
        "import os, signal\ndef test_it(anchor_session):\n    anchor_session()\n    os.kill(os.getpid(), signal.SIGINT)\n    input()"
    )
    run = suite.run("--anchor-report", "run.json")
    assert run.status == pytest.ExitCode.INTERRUPTED
    assert drawn(suite)["run"]["status"] == "interrupted"


@pytest.mark.slow
def test_a_run_whose_end_is_not_waited_for(suite):
    """A second Ctrl-C: the broker draws it once it has ended what was left."""
    suite.write("def test_it(anchor_session):\n    anchor_session()\n")
    suite.server.fail("DELETE", status(403), *[status(500)] * 4)
    suite.server.fail_always("DELETE", slow(0.3))
    process = suite.start("--anchor-report", "run.json", reaper=True)
    until(lambda: suite.server.count("DELETE") > 2)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    suite.finish(process)
    until(lambda: (suite.folder / "run.json").exists() and drawn(suite)["totals"]["open"] == 0)
    suite.wait_for_quiet()


@pytest.mark.slow
def test_a_run_that_is_killed_is_drawn_by_its_broker(suite):
    suite.write(KILLED)
    suite.finish(suite.start("--anchor-report", "run.json", reaper=True))
    until((suite.folder / "run.json").exists)
    document = drawn(suite)
    assert (document["run"]["status"], document["totals"]["recovered"]) == ("killed", 1)
    assert document["sessions"][0]["ended_by"] == "reaper"
    suite.wait_for_quiet()


@pytest.mark.slow
def test_a_run_that_is_killed_is_drawn_by_hand(suite, monkeypatch, capsys):
    suite.write(KILLED)
    suite.run()
    monkeypatch.chdir(suite.folder)
    assert main(["report", "-o", "killed.html"]) == 0
    (record,) = suite.runs
    assert capsys.readouterr().out.splitlines()[-1] == f"killed.html: 1 session of run {record.name}, which was killed"
    page = (suite.folder / "killed.html").read_text()
    assert "killed</strong>" in page
    assert "1 session not confirmed to be over" in page
    assert suite.alive[0] in page


TIMED = """
import time, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(anchor_session, number):
    anchor_session()
    time.sleep(0.5)
"""


@pytest.mark.slow
def test_estimates_hold(suite):
    """What was estimated is what further runs show, within 15 %."""
    suite.write(TIMED)
    suite.server.fail_always("POST", slow(0.6))
    suite.server.fail_always("DELETE", slow(0.3))
    suite.run("--anchor-report", "run.json", "--anchor-max-sessions", "2")
    first = drawn(suite)
    estimates = {one["options"]: one["seconds"] for one in first["estimates"]}
    assert {"--anchor-prefetch 1", "--anchor-end background", "-n 2"} <= estimates.keys(), estimates
    for options, workers, arguments in (
        ("--anchor-prefetch 1", 0, ["--anchor-prefetch", "1"]),
        ("-n 2", 2, []),
    ):
        for _ in range(3):  # at times, the machine does so much else that nothing holds
            suite.run("--anchor-report", "next.json", *arguments, workers=workers)
            second = drawn(suite, "next.json")
            # On a machine that is busier by now, the tests' own work takes longer, of which no estimate can know.
            own = [document["totals"]["test_seconds"]["own"] for document in (first, second)]
            busier = max(own[1] - own[0], 0.0) / max(workers, 1)
            seconds = second["run"]["seconds"] - busier
            if seconds == pytest.approx(estimates[options], rel=0.15):
                break
        else:
            pytest.fail(f"{options}: {seconds} s, not {estimates[options]} s")


def test_what_another_run_has_drawn_meanwhile_stays(tmp_path, settings):
    path = tmp_path / "run.json"
    path.write_text("an earlier run's")
    os.utime(path, (1, 1))
    run = one_after_the_other(2)
    writer = PictureWriter(settings._replace(report=str(path)))
    for _ in range(2):
        writer.write_late(run.state)
        assert len(json.loads(path.read_text())["tests"]) == 2
    path.write_text("a later run's")
    later = time.time() + 1
    os.utime(path, (later, later))
    writer.write_late(run.state)
    assert path.read_text() == "a later run's"
    writer.write(run.state)
    assert path.read_text() != "a later run's"


def test_the_end_of_a_run_does_not_wait_for_long(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(picture, "WRITE_TIMEOUT", 0.05)
    monkeypatch.setattr(write, "write_report", lambda *_: time.sleep(1))
    (line,) = PictureWriter(settings._replace(report=str(tmp_path / "run.json"))).write(one_after_the_other(2).state)
    assert line.text.endswith("run.json: it is not done after 0 s")


def test_a_defect_is_a_line_without_the_key(tmp_path, settings, monkeypatch):
    def fail(*_):
        raise ValueError(KEY)

    monkeypatch.setattr(write, "write_report", fail)
    (line,) = PictureWriter(settings._replace(report=str(tmp_path / "run.json"))).write(one_after_the_other(2).state)
    assert line.text.endswith("run.json: ValueError: ***")
