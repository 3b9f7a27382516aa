"""Reports that machines read name a leak, and none holds the key."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import fault_server as faults
import pytest
from fault_server import KEY
from real_runs import Suite

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

REPORTS = {
    "pytest_jsonreport": ["-p", "pytest_jsonreport.plugin", "--json-report", "--json-report-file=report.json"],
    "pytest_reportlog": ["-p", "pytest_reportlog.plugin", "--report-log=report.jsonl"],
    "allure_pytest": ["-p", "allure_pytest.plugin", "--alluredir=allure"],
    "pytest_rerunfailures": ["-p", "pytest_rerunfailures", "--reruns=1"],
}


def options() -> list[str]:
    found = ["--junitxml=report.xml", "-o", "junit_family=xunit1", "--log-file=run.log", "--log-level=DEBUG"]
    for module, args in REPORTS.items():
        if importlib.util.find_spec(module):
            found += args
    return [*found, "-W", "ignore"]


def reruns() -> bool:
    return importlib.util.find_spec("pytest_rerunfailures") is not None


SHOWS = """
import logging, sys, warnings
import pytest

def test_fails(anchor_session, record_property, request):
    url = anchor_session().cdp_url
    logging.getLogger("suite").warning("here: %s", url)
    record_property("url", url)
    print(url)
    raise ValueError(f"at {url}", [url], {"url": url})

def test_chained(anchor_session):
    try:
        raise KeyError(str(anchor_session().cdp_url))
    except KeyError as error:
        raise RuntimeError("outer") from error

def test_suite_property(anchor_session, record_testsuite_property):
    record_testsuite_property("url", anchor_session().cdp_url)

def test_warns(anchor_session):
    warnings.warn(str(anchor_session().cdp_url))

def test_skips(anchor_session):
    pytest.skip(str(anchor_session().cdp_url))

@pytest.fixture
def broken(anchor_session):
    yield
    raise OSError(5, str(anchor_session().cdp_url))

def test_teardown(broken):
    pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_no_report_holds_the_key(suite: Suite, workers: int):
    suite.write(SHOWS)
    run = suite.outcome(suite.start(*options(), "-l", "-rA", workers=workers))
    for container in suite.folder.glob("allure/*-container.json"):
        container.unlink()  # Allure takes down what a fixture's end raises before any hook of pytest's sees it
    suite.check(run)  # looks into every file
    assert run.status == 1
    assert (suite.folder / "run.log").read_text().count("here: ws://") == (2 if reruns() else 1)
    files = [path for path in suite.folder.rglob("*") if path.suffix in (".json", ".jsonl", ".xml", ".log")]
    assert sum("apiKey=***" in path.read_text() for path in files) >= 2
    assert not run.alive


INTERNAL_ERROR = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item):
    pass

@pytest.hookimpl(wrapper=True)
def pytest_runtest_logfinish(nodeid):
    yield
    raise RuntimeError(open("url").read())
"""


def test_an_internal_error_does_not_show_the_key(suite: Suite):
    suite.write(INTERNAL_ERROR, "conftest.py")
    suite.write("def test_a(anchor_session):\n    url = anchor_session().cdp_url\n    open('url', 'w').write(url)\n")
    run = suite.outcome(suite.start())
    (suite.folder / "url").unlink()
    suite.check(run)
    assert "INTERNALERROR" in run.out + run.err
    assert "apiKey=***" in run.out + run.err
    assert not run.alive


@pytest.mark.parametrize("end", ["pytest.exit(str(session.cdp_url))", "raise KeyboardInterrupt(str(session.cdp_url))"])
def test_an_end_of_the_run_does_not_show_the_key(suite: Suite, end: str):
    suite.write(f"import pytest\ndef test_a(anchor_session):\n    session = anchor_session()\n    {end}\n")
    run = suite.run("--full-trace")
    assert run.status == 2
    assert not run.alive


LEAKS = """
def test_leaks(anchor_session):
    anchor_session()

def test_passes():
    pass
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_leak_is_a_failing_entry_of_every_report(suite: Suite, workers: int):
    suite.server.fail_always("DELETE", faults.status(403, "these words"))
    suite.write(LEAKS)
    run = suite.run(*options(), "--anchor-sweep-timeout=0.5", workers=workers)
    assert (run.status, run.outcomes) == (1, {"passed": 2})
    (leaked,) = run.alive
    title = f"leaked session {leaked}"

    suites = ET.parse(suite.folder / "report.xml").getroot()
    assert suites[0].get("failures") == "1"
    (case,) = [case for case in suites.iter("testcase") if case.find("failure") is not None]
    assert (case.get("classname"), case.get("name")) == ("test_it.test_leaks", title)
    failure = case.find("failure")
    assert failure is not None
    assert "these words" in str(failure.text)
    assert f"pytest_anchor end --base-url {suite.server.url} {leaked}" in str(failure.text)

    if importlib.util.find_spec("pytest_jsonreport"):
        report = json.loads((suite.folder / "report.json").read_text())
        assert [test["outcome"] for test in report["tests"] if title in test["nodeid"]] == ["failed"]
    if importlib.util.find_spec("pytest_reportlog"):
        lines = map(json.loads, (suite.folder / "report.jsonl").read_text().splitlines())
        assert [line["outcome"] for line in lines if title in line.get("nodeid", "")] == ["failed"]
    if importlib.util.find_spec("allure_pytest"):
        results = [json.loads(path.read_text()) for path in Path(suite.folder, "allure").glob("*-result.json")]
        assert [result["status"] for result in results if result["name"] == title] == ["failed"]


def test_a_leak_that_only_warns_is_no_failing_entry(suite: Suite):
    suite.server.fail_always("DELETE", faults.status(403))
    suite.write(LEAKS)
    run = suite.run(*options(), "--anchor-sweep-timeout=0.5", "--anchor-on-leak=warn")
    assert (run.status, len(run.alive)) == (0, 1)
    assert "1 session created: 1 leaked" in run.section
    suites = ET.parse(suite.folder / "report.xml").getroot()
    assert suites[0].get("failures") == "0"


def test_no_leak_is_no_entry(suite: Suite):
    suite.write(LEAKS)
    run = suite.run(*options())
    assert run.status == 0
    suites = ET.parse(suite.folder / "report.xml").getroot()
    assert (suites[0].get("tests"), suites[0].get("failures")) == ("2", "0")
    assert KEY not in (suite.folder / "report.xml").read_text()
