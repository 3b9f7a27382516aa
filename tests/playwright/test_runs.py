"""Runs that are interrupted, repeated, spread or cut short: no session outlives them, and none of them hangs."""

from __future__ import annotations

import os
import signal
import time

import pytest
from backend import until
from switched import ASYNC, DEADLINE, SYNC, Suite

pytestmark = pytest.mark.slow

WAITS = {
    SYNC: """
        def test_waits(page):
            page.set_content("waits")
            open("waits", "w").close()
            page.wait_for_selector("#never", timeout=60_000)
    """,
    ASYNC: """
        async def test_waits(page):
            await page.set_content("waits")
            open("waits", "w").close()
            await page.wait_for_selector("#never", timeout=60_000)
    """,
}


@pytest.mark.parametrize(("mode", "plugins"), [("test", SYNC), ("worker", ASYNC)], ids=["sync", "asyncio"])
def test_ctrl_c(suite: Suite, mode: str, plugins: tuple[str, ...]):
    suite.write(WAITS[plugins])
    process = suite.start(mode, plugins=plugins)
    until((suite.folder / "waits").exists, DEADLINE)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Playwright's driver gets it, too
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, out + err
    assert time.monotonic() - began < 30
    assert not suite.alive
    assert suite.backend.key not in out


ERROR_OF_AN_EVENT = """
from playwright.sync_api import Error

def fail(message):
    raise {error}("event of {error}")

def test_waits(browser):
    page = browser.new_page()
    page.on("console", fail)
    page.evaluate("setTimeout(() => console.log(1), 100)")
    page.wait_for_timeout(600)
    {end}
"""


@pytest.mark.parametrize("mode", ["test", "worker"])
def test_ctrl_c_after_an_error_that_playwright_raises_at_its_next_call(suite: Suite, mode: str):
    suite.write(ERROR_OF_AN_EVENT.format(error="Error", end="raise KeyboardInterrupt"))
    run = suite.run(mode)
    assert run.status == pytest.ExitCode.INTERRUPTED, run.out + run.err
    assert "event of" not in run.err


@pytest.mark.parametrize(("mode", "errors"), [("test", ("Error", "ValueError")), ("worker", ("Error",))])
def test_an_error_of_an_event_is_shown(suite: Suite, mode: str, errors: tuple[str, ...]):
    for error in errors:
        suite.write(ERROR_OF_AN_EVENT.format(error=error, end=""), f"test_{error}.py")
    run = suite.run(mode)
    assert run.outcomes == {"passed": len(errors), "error": len(errors)}, run.out
    for error in errors:
        assert f"event of {error}" in run.out


def test_reruns_repeats_and_the_end_by_a_failure(suite: Suite):
    suite.write("""
        import pytest

        tries = []

        @pytest.mark.flaky(reruns=1)
        @pytest.mark.repeat(2)
        def test_flaky(page):
            tries.append(page.title())
            assert len(tries) != 1

        def test_fails(page):
            assert page.title() == "no"

        def test_never(page):
            pass
    """)
    run = suite.run("test", "-x", "-p", "pytest_rerunfailures", "-p", "pytest_repeat")
    assert run.outcomes == {"passed": 2, "failed": 1, "rerun": 1}, run.out


@pytest.mark.parametrize(("mode", "sessions", "taken"), [("worker", 1, 0), ("test", 3, 2)])
def test_sessions_ahead_and_ends_behind(suite: Suite, mode: str, sessions: int, taken: int):
    suite.write("""
        import time
        from pathlib import Path
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_it(page, number):
            assert page.title() == ""
            time.sleep(0.5)

        def test_journal():
            (journal,) = Path(".pytest_anchor").glob("*/journal.jsonl")
            print("taken:", journal.read_text().count('"taken"'))
    """)
    before = len(suite.listed)
    run = suite.run(mode, "--anchor-prefetch", "2", "--anchor-end", "background", "--headed", "-rP")
    assert run.outcomes == {"passed": 4}, run.out
    assert len(suite.listed) - before == sessions
    assert f"taken: {taken}\n" in run.out
