"""Each report that machines and people read shows the evidence of the right test, once, by the real plugins."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from fault_server import PNG
from real_runs import Suite

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured")]

OPTIONS = [
    *("--junitxml=report.xml", "-W", "ignore", "-rA"),
    *("-p", "pytest_jsonreport.plugin", "--json-report", "--json-report-file=report.json"),
    *("-p", "pytest_reportlog.plugin", "--report-log=report.jsonl"),
    *("-p", "allure_pytest.plugin", "--alluredir=allure"),
    *("-p", "pytest_rerunfailures", "--reruns=1", "--only-rerun=AssertionError"),
    *("-p", "pytest_metadata.plugin", "-p", "pytest_html.plugin", "--html=report.html", "--self-contained-html"),
]

TESTS = """
import pytest

@pytest.fixture
def broken_setup(anchor_session):
    anchor_session()
    raise ValueError

@pytest.fixture
def broken_teardown(anchor_session, session_anchor_session):
    anchor_session()
    yield session_anchor_session()
    raise ValueError

def test_teardown(broken_teardown): pass  # others follow, so that the shared session lives on
def test_passes(anchor_session): anchor_session()
def test_fails(anchor_session): anchor_session(); raise ValueError
def test_again(anchor_session): anchor_session(); assert False
def test_skips(anchor_session): anchor_session(); pytest.skip()
@pytest.mark.xfail
def test_xfails(anchor_session): anchor_session(); raise ValueError
def test_setup(broken_setup): pass
"""
# By test, the screenshots: the first run of a test that is repeated has one of its own.
EXPECTED = {"fails": 1, "again": 2, "setup": 1, "teardown": 1}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_report_shows_the_evidence_of_each_test(suite: Suite, workers: int):
    suite.write(TESTS)
    run = suite.run(*OPTIONS, workers=workers)
    assert (run.status, run.alive) == (1, [])
    folder = suite.folder / "anchor-results"
    paths = {name: sorted(folder.glob(f"test_it.py-test_{name}-*/*.png")) for name in EXPECTED}
    assert {name: len(found) for name, found in paths.items()} == EXPECTED
    assert len(list(folder.glob("*/*"))) == sum(EXPECTED.values())
    last = {f"test_{name}": str(found[-1].relative_to(suite.folder)) for name, found in paths.items()}

    assert sorted(re.findall(r"screenshot: (anchor-results/.*png)", run.out)) == sorted(last.values())
    assert dict(in_junit(suite.folder / "report.xml")) == last
    report = json.loads((suite.folder / "report.json").read_text())
    assert dict(screenshots(report["tests"])) == last
    lines = list(map(json.loads, (suite.folder / "report.jsonl").read_text().splitlines()))
    assert dict(screenshots(one for one in lines if one.get("when") == "teardown")) == last
    images = {f"test_{name}": number for name, number in EXPECTED.items()}
    assert in_allure(suite.folder / "allure") == images
    assert in_html(suite.folder / "report.html") == images


def in_junit(path: Path) -> Iterator[tuple[str, str]]:
    seen = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        for one in case.iter("property"):
            if one.get("name") == "anchor_screenshot":
                seen[case.get("name")] = one.get("value")  # a test that is repeated has an entry for each time
    yield from seen.items()


def screenshots(reports: Iterator[dict[str, object]]) -> Iterator[tuple[str, str]]:
    for report in reports:
        properties = report.get("user_properties") or []
        for one in properties:
            name, value = one if isinstance(one, list) else next(iter(one.items()))
            if name == "anchor_screenshot":
                yield report["nodeid"].rpartition("::")[2], value


def in_allure(folder: Path) -> dict[str, int]:
    """How many images each test has, by its name."""
    found = {}
    for path in folder.glob("*-result.json"):
        result = json.loads(path.read_text())
        if images := [one for one in result.get("attachments", ()) if one["type"] == "image/png"]:
            assert all((folder / one["source"]).read_bytes() == PNG for one in images)
            found[result["name"]] = found.get(result["name"], 0) + len(images)
    return found


def in_html(path: Path) -> dict[str, int]:
    text = re.search(r'data-jsonblob="([^"]*)"', path.read_text())
    assert text is not None
    tests = json.loads(text[1].replace("&#34;", '"').replace("&amp;", "&"))["tests"]
    content = base64.b64encode(PNG).decode()
    found = {}
    for test, results in tests.items():
        for result in results:
            if images := [one for one in result["extras"] if content in str(one["content"])]:
                found[test.rpartition("::")[2].partition(":")[0]] = len(images)  # those of earlier runs come along
    return found
