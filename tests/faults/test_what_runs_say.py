"""A leak is seen whatever pytest is told to show, and the key is never seen."""

from __future__ import annotations

import fault_server as faults
import pytest
from fault_server import KEY
from real_runs import Suite, environment

pytestmark = pytest.mark.slow

SWEEP_ONCE = "--anchor-sweep-timeout=0.2"
LEAKS = "def test_leaks(anchor_session):\n    anchor_session()\n"


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (["-q"], "section"),
        (["-qq"], "section"),
        (["-v"], "section"),
        (["--tb=no"], "section"),
        (["--color=yes"], "out"),
        (["--no-summary"], "err"),
        (["-p", "no:terminal"], "err"),
    ],
    ids=" ".join,
)
def test_a_leak_is_always_seen(suite: Suite, options: list[str], where: str):
    suite.server.fail_always("DELETE", faults.status(403, "these words"))
    suite.write(LEAKS)
    run = suite.run(SWEEP_ONCE, *options)
    (leaked,) = run.alive
    text = getattr(run, where)
    assert run.status == 1
    assert run.recorded
    assert "1 session created: 1 leaked" in text
    assert f"LEAKED {leaked} of test_it.py::test_leaks" in text
    assert "HTTP 403: “these words”" in text
    assert f"python -m pytest_anchor end --base-url {suite.server.url} {leaked}" in text
    assert (run.out + run.err).count(f"LEAKED {leaked}") == 1
    assert ("\x1b[31m\x1b[1m1 session created: 1 leaked\x1b[0m" in text) == ("--color=yes" in options)


@pytest.mark.parametrize("options", [["-qq"], ["-v"], ["--tb=no"], ["-p", "no:terminal"]], ids=" ".join)
def test_a_suite_without_sessions_hears_nothing(suite: Suite, options: list[str]):
    suite.write("def test_a(anchor_session):\n    assert anchor_session\n")
    run = suite.run(*options)
    assert run.status == 0
    assert not run.err
    assert "anchor" not in run.out.replace(str(suite.folder), "")
    assert not suite.registry.exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_tests_own_report_says_that_its_teardown_failed(suite: Suite, workers: int):
    suite.server.fail_always("DELETE", faults.status(403, "these words"))
    suite.write(
        LEAKS
        + "def test_fails_and_leaks(anchor_session):\n    anchor_session()\n    assert 0\n"
        + "def test_innocent(anchor_session): pass\n"
    )
    run = suite.run("-rA", SWEEP_ONCE, workers=workers)
    assert run.outcomes == {"passed": 2, "failed": 1}
    for test in ("test_leaks", "test_fails_and_leaks"):
        own = run.out.split(f"__ {test} __")[1].partition("\n____")[0]
        (leaked,) = (one for one in run.alive if f"session {one} was not ended: HTTP 403: “these words”" in own)
        assert f"LEAKED {leaked} of test_it.py::{test}" in run.section
    assert run.out.count("was not ended: ") == 2


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
    run = suite.run("-vv", "-l", "--tb=long", "-rA", "--junitxml=report.xml", SWEEP_ONCE, *dist, workers=workers)
    assert run.outcomes == {"failed": 5, "skipped": 1, "error": 1}
    assert "no such key: ***" in run.section
    assert "no such key: ***" in run.out.replace(run.section, "")
    assert "apiKey=***" in run.out
    assert "leaky" in run.out
    report = (suite.folder / "report.xml").read_text()
    assert "apiKey=***" in report


def test_the_key_is_in_no_traceback_of_a_server_that_is_not_there(suite: Suite):
    suite.write("def test_a(anchor_session):\n    anchor_session()\n")
    env = {"ANCHORBROWSER_BASE_URL": "http://127.0.0.1:9", "ANCHORBROWSER_API_KEY": KEY}
    for style in ("long", "native"):
        run = suite.run("-vv", "-l", f"--tb={style}", "--full-trace", env=environment(**env))
        assert run.status == 1
        assert "Connection refused" in run.out
        assert not run.recorded
