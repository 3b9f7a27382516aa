"""A leak is seen whatever pytest is told to show, and the key is never seen."""

from __future__ import annotations

import re

import fault_server as faults
import pytest
from fault_server import KEY
from real_runs import Suite, environment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

SHORT = "--anchor-sweep-timeout=1"
LEAKS = "def test_leaks(anchor_session):\n    anchor_session()\n"


@pytest.mark.parametrize(
    "options", ["-q", "-qq", "-v", "--tb=no", "--color=yes", "--no-summary", "-p no:terminal", "-p no:cacheprovider -s"]
)
def test_a_leak_is_always_seen(suite: Suite, options: str):
    suite.server.fail_always("DELETE", faults.status(403, "these words"))
    suite.write(LEAKS)
    run = suite.run_here(SHORT, *options.split())
    (leaked,) = run.alive
    text = run.out + run.err
    assert run.status == 1
    assert run.recorded
    assert "1 session created: 1 leaked" in text
    assert text.count(f"LEAKED {leaked} of test_it.py::test_leaks") == 1
    assert "HTTP 403: “these words”" in text
    assert f"python -m pytest_anchor end --base-url {suite.server.url} {leaked}" in text
    assert ("\x1b[31m\x1b[1m1 session created: 1 leaked\x1b[0m" in text) == (options == "--color=yes")


@pytest.mark.parametrize("options", [["-qq"], ["-v"], ["--tb=no"], ["-p", "no:terminal"]], ids=" ".join)
def test_a_suite_without_sessions_hears_nothing(suite: Suite, options: list[str]):
    suite.write("def test_a(anchor_session):\n    assert anchor_session\n")
    run = suite.run_here(*options)
    assert run.status == 0
    assert not run.err
    # pytest's own lines of these name folders, which may be called anything.
    said = [line for line in run.out.splitlines() if not line.startswith(("plugins:", "rootdir:", "platform "))]
    assert not [line for line in said if "anchor" in line]
    assert not suite.registry.exists()


@pytest.mark.parametrize(("options", "workers"), [(["-q"], 0), ([], 1)])
def test_how_far_a_sweep_is_begins_a_line_of_its_own(suite: Suite, options: list[str], workers: int):
    suite.server.fail_always("DELETE", faults.status(500))
    suite.write("def test_a(anchor_session): anchor_session()\n")
    run = suite.run_here(*options, "--anchor-sweep-timeout=3", workers=workers)
    assert "100%]\nanchor: ending sessions: 0 of 1\n" in run.out


@pytest.mark.parametrize("workers", [0, 2])
def test_the_tests_own_report_says_that_its_teardown_failed(suite: Suite, workers: int):
    suite.server.fail_always("DELETE", faults.status(403, "these words"))
    suite.write(
        LEAKS
        + "def test_fails_and_leaks(anchor_session):\n    anchor_session()\n    assert 0\n"
        + "def test_innocent(anchor_session): pass\n"
    )
    suite.write(
        "import os\n"
        "def pytest_runtest_logreport(report):\n"
        "    for name, text in report.sections if 'PYTEST_XDIST_WORKER' not in os.environ else ():\n"
        "        with open('sections', 'a') as file:\n"
        "            file.write(f'{report.nodeid}: {name}: {text}\\n')\n",
        "conftest.py",
    )
    run = suite.run_here(SHORT, workers=workers)
    assert run.outcomes == {"passed": 2, "failed": 1}
    sections = (suite.folder / "sections").read_text().splitlines()
    leaked = re.findall("LEAKED (.*) of (.*?)(?: .gw[01].)?\n", run.section)
    assert sorted(sections) == sorted(
        f"{test}: Captured anchor teardown: session {one} was not ended: HTTP 403: “these words”. "
        "It is recorded; the final sweep tries again."
        for one, test in leaked
    )
    assert len(leaked) == 2
    assert run.out.count("Captured anchor teardown") == 1  # of the test that failed


SECRETS = """
import logging, sys, warnings
import pytest

@pytest.fixture
def leaky(anchor_session):
    url = anchor_session().cdp_url
    print("fixture", url)
    yield url
    print("teardown", url, file=sys.stderr)
    assert url == "teardown"

def test_shows_it(anchor_session, leaky, request, record_property):
    session = anchor_session()
    url = session.cdp_url
    plain = str(url) + " "
    cut_off = "a" * 80 + plain.replace("ws:", "wss:") + "b" * 400
    everything = {"url": plain, "config": request.config, "session": session, "factory": anchor_session}
    vars_of_it = vars(session)
    print(url)
    logging.warning("here: %s", url)
    record_property("url", plain)
    assert plain == "something else"

def test_raises_it(anchor_session):
    raise ValueError(anchor_session().cdp_url)

def test_cannot_create(anchor_session):
    anchor_session()

def test_loses_it(anchor_session):
    anchor_session()

def test_cannot_end(anchor_session):
    anchor_session().end()

def test_skips(anchor_session):
    pytest.skip(anchor_session().cdp_url)
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_the_key_is_never_seen(suite: Suite, workers: int):
    echo = f"no such key: {KEY}"

    true = faults.slow(0)
    suite.server.fail("POST", true, true, true, faults.status(402, echo), faults.lost_body(f"<b>{echo}</b>".encode()))
    suite.server.fail_always("DELETE", faults.status(403, echo))
    suite.write(SECRETS)
    # One worker of two gets all of it, so that the creations meet their faults in order.
    dist = ["--dist=loadfile"] if workers else []
    show = ["-vv", "-l", "--tb=long", "-rA", "--junitxml=report.xml", "-o", "junit_family=xunit1"]
    show += ["--anchor-create-retries=0"]
    run = suite.run_here(*show, SHORT, *dist, workers=workers)
    assert run.outcomes == {"failed": 5, "skipped": 1, "error": 1}
    assert "no such key: ***" in run.section
    assert "no such key: ***" in run.out.replace(run.section, "")
    assert "apiKey=***" in run.out
    assert "leaky" in run.out
    report = (suite.folder / "report.xml").read_text()
    assert "apiKey=***" in report
    assert KEY[:6] not in run.out + report, "a part of it, where a long text was cut off"


RECORDS = """
def test_it(anchor_session, record_property):
    session = anchor_session()
    record_property("watch", session.live_view_url)
    record_property("url", session.cdp_url)
    record_property("number", 7)
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_urls_may_be_recorded_and_cross_to_the_controller_without_the_key(suite: Suite, workers: int):
    suite.write(RECORDS)
    run = suite.run_here("--junitxml=report.xml", "-o", "junit_family=xunit1", workers=workers)
    assert run.outcomes == {"passed": 1}
    report = (suite.folder / "report.xml").read_text()
    assert f'<property name="watch" value="{suite.server.url}/live/' in report
    assert "apiKey=***&amp;sessionId=" in report
    assert '<property name="number" value="7"' in report


SUBTESTS = """
import logging

def test_it(anchor_session, subtests):
    url = anchor_session().cdp_url
    for say in (print, logging.warning):
        with subtests.test():
            say(url)
            assert not str(url)
"""


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="the fixture came with pytest 9")
@pytest.mark.parametrize("workers", [0, 1])
def test_the_key_is_in_no_report_of_a_subtest(suite: Suite, workers: int):
    suite.write(SUBTESTS)
    run = suite.run_here("-l", workers=workers)
    assert run.status == 1
    assert run.out.count("apiKey=***") >= 4


def test_the_key_is_in_no_traceback_of_a_server_that_is_not_there(suite: Suite):
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    env = {"ANCHORBROWSER_BASE_URL": "http://127.0.0.1:9", "ANCHORBROWSER_API_KEY": KEY}
    for style in ("long", "native"):
        run = suite.run_here("-vv", "-l", f"--tb={style}", "--full-trace", SHORT, env=environment(**env))
        assert run.status == 1
        assert "Connection refused" in run.out
        assert not run.recorded


def test_a_clock_that_a_test_has_left_broken_keeps_nothing_from_being_told(suite: Suite):
    suite.server.fail_always("DELETE", faults.status(403))
    suite.write("""
import time
def test_it(anchor_session):
    anchor_session()
    time.time = time.monotonic = None
""")
    run = suite.run("--junitxml=report.xml")
    assert run.status == 1
    assert "1 session created: 1 leaked" in run.section
    assert f"leaked session {run.alive[0]}" in (suite.folder / "report.xml").read_text()
    suite.server.fail_always("DELETE", None)
