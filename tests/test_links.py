"""Links and ids of sessions are credentials, and can be kept out of all that is shared."""

from __future__ import annotations

from collections.abc import Iterator

import fault_server as faults
import pytest
from fault_server import FaultServer
from real_runs import Suite

TESTS = """
def test_fails(anchor_session):
    session = anchor_session()
    print(session, [session], anchor_session)
    assert (session.live_view_url, session.cdp_url) == 1

def test_passes(anchor_session): anchor_session().end()
"""
TELLING = """
import logging
import pytest

def test_ends(anchor_session): anchor_session().end()
def test_is_ended(anchor_session): anchor_session()
def test_compares(anchor_session): assert anchor_session().cdp_url == ""

@pytest.fixture
def connected(anchor_session):
    session = anchor_session()
    logging.error(session.live_view_url)
    raise ValueError("cannot connect to " + session.cdp_url)

def test_connects(connected): pass
"""


@pytest.fixture
def suite(suite: Suite) -> Iterator[Suite]:
    suite.write(TESTS)
    yield suite
    suite.end_kept()


def ids(suite: Suite) -> list[str]:
    return [one for one in suite.server.sessions if one not in suite.strangers]


def shown(suite: Suite, out: str) -> list[str]:
    """The ids that the terminal or a report shows."""
    text = out + "".join(path.read_text() for path in suite.folder.glob("report.*"))
    return [one for one in ids(suite) if one in text]


SHOWING = ["-vv", "-l", "-rA", "--junitxml=report.xml", "-p", "pytest_reportlog.plugin", "--report-log=report.jsonl"]


def test_a_report_shows_links_and_ids(suite: Suite):
    run = suite.run_here(*SHOWING)
    assert shown(suite, run.out) == ids(suite)
    assert "\nrecording: " in run.out


def test_none_is_shown_where_links_are_off(suite: Suite):
    run = suite.run_here(*SHOWING, "--anchor-links=off")
    assert len(ids(suite)) == 2
    assert shown(suite, run.out) == []
    assert "recording: " not in run.out
    assert "anchor_recording" not in (suite.folder / "report.xml").read_text()
    assert "screenshot: anchor-results/" in run.out
    assert "<AnchorSession open>" in run.out
    assert "a session of test_it.py::test_passes: ended by the tests" in run.section


def test_no_error_tells_what_leads_to_a_session(suite: Suite, server: FaultServer):
    suite.write(TELLING)
    server.fail("DELETE", *[faults.status(400)] * 4)
    run = suite.run_here(*SHOWING, "--anchor-links=off")
    assert (len(ids(suite)), run.alive) == (4, [])
    assert "could not end session ***: HTTP 400" in run.out
    assert "session *** was not ended: HTTP 400" in run.out
    assert "sessionId=***" in run.out
    assert shown(suite, run.out) == []
    assert "/live/" not in run.out


def test_what_the_api_says_of_missing_evidence_does_not_tell(suite: Suite, server: FaultServer):
    for call in ("SCREENSHOT", "RECORDING", "TAGS"):
        server.fail_always(call, lambda handler, _act: faults.error(403, f"not {handler.path}"))
    run = suite.run_here(*SHOWING, "--anchor-links=off", "--anchor-recording=on")
    assert "no screenshot: HTTP 403: “not /v1/sessions/***/screenshot”" in run.out
    assert "not /v1/sessions/***/recordings" in run.section
    assert "not /v1/sessions/***/tags" in run.section
    assert shown(suite, run.out) == []


def test_the_id_of_a_leak_is_shown(suite: Suite):
    suite.server.fail_always("DELETE", faults.status(403))
    run = suite.run_here("--anchor-links=off", "--anchor-sweep-timeout=0.5", "-k", "passes")
    (leaked,) = run.alive
    assert f"LEAKED {leaked}" in run.section
    suite.server.fail_always("DELETE", None)


def test_what_is_kept_is_told_in_a_local_file(suite: Suite):
    suite.wait_for_broker = lambda _others: None
    run = suite.run_here(*SHOWING, "--anchor-links=off", "--anchor-keep=failed")
    (kept,) = run.alive
    assert shown(suite, run.out) == []
    (folder,) = suite.runs
    assert f"how to look at them, and to end them, is in {folder}/kept.txt\n" in run.section
    file = folder / "kept.txt"
    assert f"/live/{kept}\n" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
