"""Suites for pytest-playwright and pytest-playwright-asyncio on Anchor's sessions, with no line changed."""

from __future__ import annotations

import pytest
from switched import ASYNC, SYNC, Suite

pytestmark = pytest.mark.slow

BY_SYNC = """
import pytest

@pytest.fixture(scope="session")
def browser_context_args(browser_context_args):
    return {**browser_context_args, "locale": "de-DE"}

def test_page(page):
    page.set_content("<title>one</title>")
    assert page.title() == "one"
    assert page.evaluate("navigator.language") == "de-DE"

def test_contexts(new_context, context, page, browser):
    other = new_context(user_agent="me").new_page()
    assert other.evaluate("navigator.userAgent") == "me"
    assert page in context.pages and context in browser.contexts

def test_launch_browser(launch_browser, is_chromium):
    browser = launch_browser()
    assert browser.new_page().evaluate("innerWidth") == 1280
    browser.close()

def test_without_a_browser():
    pass
"""
BY_ASYNC = (
    BY_SYNC.replace("def test", "async def test")
    .replace("page.set_content", "await page.set_content")
    .replace("page.title()", "await page.title()")
    .replace("assert page.evaluate", "assert await page.evaluate")
    .replace('new_context(user_agent="me").new_page()', '(await new_context(user_agent="me")).new_page()')
    .replace("other = ", "other = await ")
    .replace("assert other.", "assert await other.")
    .replace("= launch_browser()", "= await launch_browser()")
    .replace("browser.new_page().evaluate", "await (await browser.new_page()).evaluate")
    .replace("browser.close()", "await browser.close()")
)
APIS = pytest.mark.parametrize(("plugins", "test"), [(SYNC, BY_SYNC), (ASYNC, BY_ASYNC)], ids=["sync", "asyncio"])
MODES = pytest.mark.parametrize("mode", ["worker", "test"])


@APIS
@MODES
def test_a_suite_runs_unchanged(suite: Suite, mode: str, plugins: tuple[str, ...], test: str):
    suite.write(test)
    before = len(suite.listed)
    run = suite.run(mode, "--tracing", "on", "--screenshot", "on", plugins=plugins)
    assert run.outcomes == {"passed": 4}, run.out
    assert len(suite.listed) - before == {"worker": 2, "test": 3}[mode]
    results = suite.folder / "test-results"
    assert len(list(results.rglob("trace.zip"))) == 1
    assert len(list(results.rglob("trace-*.zip"))) == 2
    assert len(list(results.rglob("*.png"))) == 3
