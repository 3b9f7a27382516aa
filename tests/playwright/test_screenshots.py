"""A test that fails has a screenshot of the page that it looked at, not of what else its session shows."""

from __future__ import annotations

import struct

import pytest
from switched import ASYNC, SYNC, Suite

pytestmark = pytest.mark.slow

PAGES = """
    import pytest

    def test_page(page):
        page.set_viewport_size({"width": 123, "height": 77})
        page.goto("data:text/html,<title>here</title>")
        assert False

    def test_passes(page):
        page.goto("data:text/html,other")

    def test_blank(page):
        page.set_viewport_size({"width": 99, "height": 99})
        assert False

    def test_popup(page):
        page.set_viewport_size({"width": 123, "height": 78})
        page.goto("data:text/html,<a href='data:text/html,other' target=_blank>x</a>")
        other = page.context.new_page()
        other.set_viewport_size({"width": 124, "height": 79})
        other.goto("data:text/html,there")
        other.bring_to_front()
        page.on("dialog", lambda dialog: None)  # it is never answered: this page cannot be photographed
        page.evaluate("setTimeout(() => alert(1))")
        other.wait_for_timeout(300)
        assert False
"""
OWN = """
    def test_page(anchor_page):
        anchor_page.set_viewport_size({"width": 123, "height": 77})
        anchor_page.goto("data:text/html,<title>here</title>")
        assert False
"""
ASYNC_PAGES = """
    async def test_page(page):
        await page.set_viewport_size({"width": 123, "height": 77})
        await page.goto("data:text/html,<title>here</title>")
        assert False
"""


def sizes(suite: Suite) -> dict[str, list[tuple[int, ...]]]:
    """The sizes of the screenshots of each test."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for path in sorted(suite.folder.glob("anchor-results/*/*.png")):
        test = path.parent.name.removeprefix("test_it.py-test_").partition("-")[0]
        found.setdefault(test, []).append(struct.unpack(">2I", path.read_bytes()[16:24]))
    return found


def test_of_a_session_that_is_shared(suite: Suite):
    suite.write(PAGES)
    assert suite.run("worker").status == 1
    found = sizes(suite)
    assert found["page"] == [(123, 77)]
    assert found["popup"] == [(124, 79)]
    assert len(found["blank"]) == 1  # by the API
    assert "passes" not in found


def test_of_anchor_page(suite: Suite):
    suite.write(OWN)
    assert suite.run("off", plugins=()).status == 1
    assert sizes(suite) == {"page": [(123, 77)]}


def test_of_the_asynchronous_api(suite: Suite):
    suite.write(ASYNC_PAGES)
    assert suite.run("worker", plugins=ASYNC).status == 1
    assert sizes(suite) == {"page": [(123, 77)]}


def test_none_is_taken_of_a_browser_that_is_gone(suite: Suite):
    suite.write("def test_page(browser): browser.close(); assert False")
    run = suite.run("test", plugins=SYNC)
    assert run.outcomes == {"failed": 1}
    assert "no screenshot: the session had been ended by then" in run.out
