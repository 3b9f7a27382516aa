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


@pytest.mark.parametrize(
    ("mode", "plugins", "test"),
    [("worker", SYNC, BY_SYNC), ("test", SYNC, BY_SYNC), ("worker", ASYNC, BY_ASYNC)],
    ids=["worker-sync", "test-sync", "worker-asyncio"],
)
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


def test_what_has_no_meaning_is_said_once(suite: Suite):
    suite.write(
        """
        import pytest

        @pytest.fixture(scope="session")
        def connect_options():
            return {"ws_endpoint": "ws://127.0.0.1:9/"}
        """,
        "conftest.py",
    )
    suite.write("""
        import pytest

        @pytest.mark.anchor(session={"tags": ["one"]})
        @pytest.mark.parametrize("number", range(4))
        def test_it(page, number):
            assert page.title() == ""
    """)
    browsers = ("--browser", "chromium", "--browser", "firefox", "--browser-channel", "chrome")
    run = suite.run_process("worker", "-p", "xdist", "-n", "2", "-rs", *browsers)
    assert run.outcomes == {"passed": 4, "skipped": 4}, run.out
    assert "firefox was asked for, and Anchor's browsers are Chromium" in run.out
    for sentence in (
        "connect_options are not used",
        "the launch option channel='chrome' has no meaning for a session of Anchor",
        "the anchor marker of test_it.py::test_it[chromium-0] and others changes nothing",
    ):
        assert run.out.count(sentence) == 1


def test_a_wider_fixture_cannot_use_a_tests_own_browser(suite: Suite):
    suite.write("""
        import pytest

        @pytest.fixture(scope="session")
        def shared(browser):
            return browser.new_page()

        def test_it(shared):
            pass
    """)
    before = len(suite.listed)
    run = suite.run("test")
    assert run.outcomes == {"error": 1}, run.out
    assert "the fixture shared, of scope 'session', uses browser, of which each test has its own" in run.out
    assert "give it the scope 'function', or run with --anchor-playwright worker" in run.out
    assert len(suite.listed) == before


def test_a_run_of_other_browsers_only_is_refused(suite: Suite):
    run = suite.run("worker", "--browser", "webkit")
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert "--browser webkit: webkit was asked for, and Anchor's browsers are Chromium" in run.out + run.err


@pytest.fixture(scope="module")
def slow_backend(backends):
    return backends("--create-latency", "1")


def test_a_creation_does_not_stop_the_event_loop(suite: Suite, slow_backend):
    suite.backend = slow_backend
    suite.write("""
        import asyncio, time

        async def test_it(launch_browser):
            gaps, last, launching = [], time.monotonic(), asyncio.ensure_future(launch_browser())
            while not launching.done():
                await asyncio.sleep(0.01)
                now = time.monotonic()
                gaps.append(now - last)
                last = now
            browser = await launching
            assert sum(gaps) > 1
            assert max(gaps) < 0.5, max(gaps)
    """)
    run = suite.run("test", plugins=ASYNC)
    assert run.outcomes == {"passed": 1}, run.out
