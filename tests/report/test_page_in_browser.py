"""A real browser opens the page: what a person sees, points at, and types."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_server import PNG
from pictures import BEGAN, RecordedRun, busy
from playwright.sync_api import Page, expect, sync_playwright

from pytest_anchor.local.chromium import find
from pytest_anchor.report.write import write_report

pytestmark = pytest.mark.slow

HOSTILE = "</script><img src=x onerror=alert(1)>.py::test[<b>bold</b>]"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(None), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Open the page of a run; anything that goes wrong in it, and anything that it asks for, fails the test."""
    problems: list[str] = []
    contexts = []

    def open_page(run: RecordedRun, width: int = 1280, **options: object) -> Page:
        write_report(tmp_path / "run.html", run.state, "finished", BEGAN)
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on(
            "request",
            lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.goto((tmp_path / "run.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def run() -> RecordedRun:
    """Three tests on two workers, one of which fails."""
    run = RecordedRun(cap=4)
    for number, (owner, began, outcome) in enumerate(
        (("gw0", 0, "passed"), ("gw0", 10, "failed"), ("gw1", 0, "passed"))
    ):
        name = f"tests/test_shop.py::test_{number}"
        run.tested(
            name,
            began,
            began + 9,
            run.session(name, began, began + 2, began + 8, began + 9, owner=owner),
            outcome=outcome,
        )
    return run


def test_what_a_person_reads(open_page, run):
    page = open_page(run)
    expect(page).to_have_title("3 tests in 3 sessions, 1 failed · nightly-7 · pytest-anchor")
    expect(page.get_by_role("heading", level=1)).to_have_text("3 tests in 3 sessions, 1 failed")
    expect(
        page.get_by_role("img", name="Sessions open over time: at most 2 at once, of 4 that the plan allows")
    ).to_be_visible()
    expect(
        page.get_by_role("img", name="their own work: 18 s, waiting for the API to create sessions: 6.0 s")
    ).to_be_visible()
    faster = page.get_by_role("region", name="What would have been faster")
    expect(faster.get_by_role("rowheader").first).to_contain_text("--anchor-prefetch 1 --anchor-end background")
    failures = page.get_by_role("region", name="Failures")
    expect(failures.get_by_role("heading", level=3)).to_have_text("tests/test_shop.py::test_1")
    expect(page.get_by_role("table").last.get_by_role("row")).to_have_count(4)


def test_the_timeline_by_keyboard(open_page, run):
    page = open_page(run)
    timeline, detail = page.get_by_role("application", name="3 sessions of 2 workers"), page.locator("#detail")
    timeline.focus()
    for key, name in (
        ("ArrowRight", "test_0 [gw0]"),
        ("ArrowRight", "test_1 [gw0]"),
        ("ArrowRight", "test_1 [gw0]"),
        ("ArrowDown", "test_2 [gw1]"),
        ("ArrowUp", "test_0 [gw0]"),
        ("End", "test_1 [gw0]"),
        ("Home", "test_0 [gw0]"),
        ("f", "test_1 [gw0]"),
        ("+", "test_1 [gw0]"),
        ("0", "test_1 [gw0]"),
    ):
        page.keyboard.press(key)
        expect(detail.get_by_role("heading")).to_have_text(f"tests/test_shop.py::{name}")
    expect(detail).to_contain_text("failed")
    expect(detail).to_contain_text("at 0:12, in 2.0 s")


def test_the_timeline_by_pointer(open_page, run):
    page = open_page(run)
    box = page.locator("#lanes").bounding_box()
    scale = (box["width"] - 64) / 19
    page.mouse.move(box["x"] + 64 + 5 * scale, box["y"] + 14)
    expect(page.locator("#tip")).to_contain_text("tests/test_shop.py::test_0")
    page.mouse.click(box["x"] + 64 + 15 * scale, box["y"] + 14)
    expect(page.locator("#detail")).to_contain_text("tests/test_shop.py::test_1 [gw0]")
    page.mouse.move(0, 0)
    expect(page.locator("#tip")).to_be_hidden()


def test_a_failure_is_shown_in_the_timeline(open_page, run):
    page = open_page(run)
    page.get_by_role("region", name="Failures").get_by_role("button", name="Show in the timeline").click()
    expect(page.locator("#detail")).to_contain_text("tests/test_shop.py::test_1 [gw0]")
    expect(page.locator("#lanes")).to_be_focused()


def test_a_screenshot_is_enlarged(open_page, run, tmp_path):
    (tmp_path / "1.png").write_bytes(PNG)
    run.note(
        "evidence", "run-2", 15, kind="screenshot", path=str(tmp_path / "1.png"), test="tests/test_shop.py::test_1"
    )
    page = open_page(run)
    image = page.get_by_role("img", name="Screenshot of tests/test_shop.py::test_1")
    assert image.evaluate("image => image.complete && image.naturalWidth") == 1
    button = page.get_by_role("button", name="Enlarge the screenshot of tests/test_shop.py::test_1")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_class("shot large")


def test_the_table_is_sorted_and_searched(open_page, run):
    page = open_page(run)
    table = page.get_by_role("table").last
    names = table.locator("tbody td:first-child")
    table.get_by_role("button", name="began").click()
    expect(table.get_by_role("columnheader", name="began")).to_have_attribute("aria-sort", "ascending")
    expect(names).to_have_text([f"tests/test_shop.py::test_{number}" for number in (0, 2, 1)])
    page.get_by_label("Outcome").select_option("failed")
    expect(names).to_have_text(["tests/test_shop.py::test_1"])
    page.get_by_label("Outcome").select_option("")
    page.get_by_label("Find").fill("TEST_2")
    expect(names).to_have_text(["tests/test_shop.py::test_2"])
    expect(page.get_by_role("region", name="Tests").get_by_role("status")).to_have_text("1 test")


def test_hostile_names_are_shown_as_they_are(open_page):
    run = RecordedRun()
    run.tested(HOSTILE, 0, 9, run.session(HOSTILE, 0, 2, 8, 9), outcome="failed")
    page = open_page(run)
    expect(page.get_by_role("heading", level=3)).to_have_text(HOSTILE)
    expect(page.get_by_role("table").last.locator("tbody td").first).to_have_text(HOSTILE)
    page.locator("#lanes").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#detail").get_by_role("heading")).to_have_text(f"{HOSTILE} [main]")
    expect(page.locator("b, img")).to_have_count(0)


@pytest.mark.parametrize(("tests", "workers"), [(12, 3), (10_000, 16)])
def test_it_is_drawn_and_fits(open_page, tmp_path, tests, workers):
    page = open_page(busy(tests, workers, cap=40))
    expect(page.get_by_role("table").last.locator("tbody tr")).to_have_count(min(tests, 100))
    for width, scheme in ((1280, "light"), (400, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function("width => document.getElementById('lanes').clientWidth < width", arg=width)
        # Nothing but a wide table is scrolled sideways.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert _colors(page) > 5
        page.screenshot(path=tmp_path / f"{tests}-{width}-{scheme}.png")


def _colors(page: Page) -> int:
    """How many colours the lanes have."""
    colors: int = page.evaluate(
        """() => { const canvas = document.getElementById("lanes");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, Math.min(canvas.height, 300));
        return new Set(new Uint32Array(data.buffer)).size }"""
    )
    return colors


def test_a_dense_lane_is_looked_at_closer(open_page):
    page = open_page(busy(2000, 1))
    box = page.locator("#lanes").bounding_box()
    page.mouse.move(box["x"] + 600, box["y"] + 10)
    expect(page.locator("#tip")).to_contain_text("Click to look closer")
    for _ in range(3):
        page.mouse.click(box["x"] + 600, box["y"] + 10)
    page.mouse.move(box["x"] + 601, box["y"] + 14)
    expect(page.locator("#tip")).not_to_contain_text("closer")


def test_paper_is_white(open_page, run):
    page = open_page(run, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) != "rgb(255, 255, 255)"
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
