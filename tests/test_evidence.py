"""Evidence of tests that fail: in the folder, in the test's own section, in its properties."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fault_server as faults
import pytest
from fault_server import KEY, PNG, FaultServer
from real_runs import BROKEN, Run, Suite
from records import opened

from pytest_anchor.api import AnchorAPI
from pytest_anchor.api.endpoints import MAX_SCREENSHOT
from pytest_anchor.broker.evidence import Evidence
from pytest_anchor.client import Client
from pytest_anchor.plugin import evidence as plugin_evidence
from pytest_anchor.registry.journal import Run as Journal
from pytest_anchor.registry.records import Record
from pytest_anchor.settings import Settings


@pytest.fixture
def run_tests(suite: Suite) -> Callable[..., Run]:
    """Run the text of a test file."""

    def run_tests(text: str, *args: str) -> Run:
        suite.write(textwrap.dedent(text))
        return suite.run_here(*args)

    return run_tests


def kept(suite: Suite) -> list[str]:
    """What is in the folder, by the names of tests."""
    found = (suite.folder / "anchor-results").glob("*/*")
    return sorted(re.sub(r"test_it\.py-(\w+)-[0-9a-f]{8}/", r"\1/", f"{one.parent.name}/{one.name}") for one in found)


ENDS = (
    BROKEN
    + """
def test_passes(anchor_session): anchor_session()
def test_fails(anchor_session): anchor_session(); assert False
def test_skips(anchor_session): anchor_session(); pytest.skip()
@pytest.mark.xfail
def test_xfails(anchor_session): anchor_session(); assert False
def test_says_xfail(anchor_session): anchor_session(); pytest.xfail()
@pytest.mark.xfail(raises=KeyError)
def test_differs(anchor_session): anchor_session(); assert False
@pytest.mark.xfail(strict=True)
def test_is_strict(anchor_session): anchor_session()
def test_setup(broken_setup): pass
def test_teardown(broken_teardown): pass
def test_none(anchor_session): assert False
"""
)
FAILED = ["differs", "fails", "is_strict", "setup"]


def test_what_fails_has_a_screenshot(run_tests: Callable[..., Run], suite: Suite, server: FaultServer):
    ended = run_tests(ENDS, "-rA")
    assert ended.outcomes == {"failed": 4, "passed": 2, "error": 2, "skipped": 1, "xfailed": 2}
    assert kept(suite) == [f"test_{name}/screenshot-1.png" for name in FAILED]
    assert all(one.read_bytes() == PNG for one in suite.folder.glob("anchor-results/*/*.png"))
    assert len(server.asked_for("SCREENSHOT")) == len(FAILED)
    assert sorted(re.findall(r"^screenshot: anchor-results/test_it.py-test_(\w+)-", ended.out, re.MULTILINE)) == FAILED
    links = re.findall(
        r"^recording: (http.*)/v1/sessions/[0-9a-f-]+/recordings/primary/fetch$", ended.out, re.MULTILINE
    )
    assert links == [server.url] * (len(FAILED) + 1)
    assert "live view" not in ended.out  # they are dead by the time that a person reads of them
    # The teardown that failed has ended the session, too.
    assert ended.out.count("no screenshot: the session had been ended by then") == 1
    assert "screenshot" not in ended.section


def test_all_have_one_where_that_is_asked_for(run_tests: Callable[..., Run], suite: Suite):
    run_tests(ENDS, "--anchor-screenshot=on", "-k", "passes or fails or setup or skips")
    names = ["fails", "passes", "setup"]
    assert kept(suite) == [f"test_{name}/screenshot-1.png" for name in names]


def test_none_has_one_where_it_is_off(run_tests: Callable[..., Run], suite: Suite, server: FaultServer):
    ended = run_tests(ENDS, "-o", "anchor_screenshot=off", "-k", "fails and not xfails")
    assert kept(suite) == []
    assert not server.asked_for("SCREENSHOT")
    assert "\nrecording: http" in ended.out
    assert not (suite.folder / "anchor-results").exists()


def test_a_link_shows_no_key(
    run_tests: Callable[..., Run], suite: Suite, server: FaultServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "url", f"{server.url}/?apiKey={KEY}#")  # of which the fault server makes the link
    text = "def test_it(session_anchor_session): session_anchor_session(); assert False"
    ended = run_tests(text, f"--anchor-base-url={server.url.partition('/?')[0]}", "--junitxml=report.xml", "-vv", "-l")
    assert "/?apiKey=***#/live/" in ended.out
    assert "/?apiKey=***#/live/" in (suite.folder / "report.xml").read_text()  # and the key is in neither


def test_each_session_that_is_open_has_one(run_tests: Callable[..., Run], suite: Suite):
    ended = run_tests(
        """
        def test_a(anchor_session, session_anchor_session):
            anchor_session()
            anchor_session().end()
            session_anchor_session()
            assert False

        def test_b(session_anchor_session): pass
        def test_c(session_anchor_session): assert False
        """
    )
    assert kept(suite) == ["test_a/screenshot-1.png", "test_a/screenshot-2.png", "test_c/screenshot-1.png"]
    assert ended.out.count("session 3: no screenshot: the session had been ended by then") == 1
    assert "session 2: screenshot: anchor-results" in ended.out
    assert len(re.findall(r"^screenshot: anchor-results", ended.out, re.MULTILINE)) == 1
    assert re.findall("^(.*)live view: http", ended.out, re.MULTILINE) == ["session 1: ", ""]  # the shared one


def test_a_run_removes_what_the_last_one_made_and_nothing_else(run_tests: Callable[..., Run], suite: Suite):
    failing = "def test_it(anchor_session): anchor_session(); assert False"
    folder = suite.folder / "elsewhere"
    run_tests(failing, "--anchor-output", "elsewhere")
    (made,) = folder.glob("*/*.png")
    (folder / "mine").mkdir()
    (folder / "mine" / "screenshot-1.png").touch()
    made.with_name("mine.txt").touch()
    run_tests("def test_other(anchor_session): anchor_session()", "--anchor-output", "elsewhere")
    left = sorted(str(one.relative_to(folder)) for one in folder.glob("*/*") if one.is_file())
    assert left == ["mine/screenshot-1.png", f"{made.parent.name}/mine.txt"]


def test_each_run_of_a_test_that_is_repeated_has_its_own(run_tests: Callable[..., Run], suite: Suite):
    text = "def test_it(anchor_session): anchor_session(); assert False"
    ended = run_tests(text, "-p", "pytest_rerunfailures", "--reruns=1", "--junitxml=report.xml")
    assert kept(suite) == ["test_it/screenshot-1.png", "test_it/screenshot-2.png"]
    assert ended.out.count("screenshot-2.png") == 1
    report = (suite.folder / "report.xml").read_text()
    shown = re.findall(r'name="anchor_screenshot" value="[^"]*/([^/"]+)"', report)
    each_run = ["screenshot-1.png", "screenshot-2.png"]
    assert shown in (each_run, each_run[1:]), "pytest 8.0 reports the last run only"


# What the API may do when it is asked for a screenshot, and what is said of it.
BAD_WAYS = {
    "401": (faults.status(401), "HTTP 401"),
    "403": (faults.status(403, "these words"), "these words"),
    "404": (faults.status(404), "HTTP 404"),
    "429": (faults.status(429, Retry_After="30"), "429"),
    "500": (faults.status(500), "HTTP 500"),
    "redirect": (faults.body(b"", 302, Location="http://127.0.0.1:1/"), "a redirect, which is not followed"),
    "no PNG": (faults.body(b"<html>"), "an answer that is not a PNG"),
    "nothing": (faults.body(b""), "an answer that is not a PNG"),
    "too much": (faults.body(PNG + bytes(MAX_SCREENSHOT)), "an answer of more than 8388608 bytes"),
    "reset": (faults.reset, "Connection reset by peer"),
    "never": (faults.silent, ""),
    "slowly": (faults.trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + PNG), ""),
}


@pytest.fixture
def evidence(settings: Settings, run: Journal, tmp_path: Path) -> Evidence:
    settings = settings._replace(output=str(tmp_path / "results"))
    assert settings.api_key is not None
    api = AnchorAPI(settings.base_url, settings.api_key)
    return Evidence(settings, run, lambda: api)


@pytest.fixture
def record(server: FaultServer, run: Journal) -> Record:
    return opened(server, AnchorAPI(server.url, KEY), run, "inv-1") and run.known("inv-1")


@pytest.mark.parametrize("way", BAD_WAYS)
@pytest.mark.usefixtures("quick")
def test_a_bad_answer_is_a_line_and_takes_no_longer_than_it_may(
    evidence: Evidence, server: FaultServer, record: Record, tmp_path: Path, way: str
):
    fault, words = BAD_WAYS[way]
    server.fail_always("SCREENSHOT", fault)
    before = time.monotonic()
    ((found,),) = evidence.screenshots("t.py::x", [record], 0.5).values()
    assert time.monotonic() - before < 10
    assert (found.path, found.content) == ("", b"")
    assert words in found.problem
    assert found.problem
    assert list(evidence.lines()) == [(f"1 screenshot could not be taken: {found.problem}", True)]
    assert not (tmp_path / "results").exists()


def test_what_fails_thrice_in_a_row_is_not_tried_again(evidence: Evidence, server: FaultServer, record: Record):
    server.fail("SCREENSHOT", *[faults.status(404)] * 2)
    problems = [evidence.screenshots("t", [record], 5)[record.nonce][0].problem for _ in range(3)]
    assert [bool(problem) for problem in problems] == [True, True, False]
    server.fail_always("SCREENSHOT", faults.status(403))
    problems = [evidence.screenshots("t", [record], 5)[record.nonce][0].problem for _ in range(4)]
    assert problems[3] == "given up after 3 failures in a row"
    assert len(server.asked_for("SCREENSHOT")) == 6
    assert list(evidence.lines()) == [(f"6 screenshots could not be taken: {problems[2]}", True)]


def test_what_cannot_be_written_is_a_line(evidence: Evidence, record: Record, tmp_path: Path):
    (tmp_path / "results").touch()
    ((found,),) = evidence.screenshots("t", [record], 5).values()
    assert found.problem == f"Not a directory: {tmp_path / 'results'}"
    assert list(evidence.lines()) == [(f"1 screenshot could not be taken: {found.problem}", True)]


def test_it_is_on_record(evidence: Evidence, record: Record, run: Journal):
    ((found,),) = evidence.screenshots("t.py::x", [record], 5).values()
    assert Path(found.path).read_bytes() == PNG == found.content
    assert list(record.evidence.values()) == [("screenshot", found.path, "t.py::x")]
    assert list(evidence.lines()) == []


def test_tests_whose_long_ids_begin_alike_have_a_folder_each(run_tests: Callable[..., Run], suite: Suite):
    ended = run_tests("""
import pytest

@pytest.mark.parametrize("x", [pytest.param(1, id="a" * 9999 + "1"), pytest.param(2, id="a" * 9999 + "2")])
def test_it(anchor_session, x): anchor_session(); assert False
""")
    assert (ended.status, ended.alive) == (1, [])
    folders = filter(Path.is_dir, (suite.folder / "anchor-results").iterdir())
    assert [len(list(one.iterdir())) for one in folders] == [1, 1]


def test_what_pages_take_is_taken_from_the_time_for_the_api(
    run_tests: Callable[..., Run], server: FaultServer, monkeypatch: pytest.MonkeyPatch
):
    timeouts, ask = [], Client.request

    def request(client: Client, verb: str, **arguments: Any) -> Any:
        timeouts.extend([arguments["timeout"]] if verb == "screenshots" else [])
        return ask(client, verb, **arguments)

    monkeypatch.setattr(Client, "request", request)
    run_tests("""
    import time
    from pytest_anchor.plugin.state import PLUGIN

    def test_it(request, anchor_session):
        anchor_session()
        request.config.stash[PLUGIN].photographers.append(lambda: time.sleep(0.3) or {})
        assert False
    """)
    assert timeouts == [pytest.approx(plugin_evidence.TIMEOUT - 0.3, abs=0.25)]
    assert len(server.asked_for("SCREENSHOT")) == 1


def test_nothing_of_it_changes_a_run(
    run_tests: Callable[..., Run], server: FaultServer, suite: Suite, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plugin_evidence, "TIMEOUT", 0.3)
    server.fail("SCREENSHOT", faults.silent)
    server.fail_always("SCREENSHOT", faults.status(429, Retry_After="30"))
    before = time.monotonic()
    ended = run_tests(ENDS)
    assert time.monotonic() - before < 10
    assert (ended.status, ended.alive) == (1, [])
    assert ended.outcomes == {"failed": 4, "passed": 2, "error": 2, "skipped": 1, "xfailed": 2}
    assert "9 sessions created: 9 at teardown" in ended.section
    assert len(ended.section.splitlines()) == 2
    assert "4 screenshots could not be taken: " in ended.section
    assert kept(suite) == []
