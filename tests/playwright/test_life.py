"""Sessions that are over before their test is: which test fails, what it says, and what the next one gets."""

from __future__ import annotations

import pytest
from switched import ASYNC, SYNC, Suite

pytestmark = pytest.mark.slow

CONFTEST = """
import json, os, time
from urllib.request import Request, urlopen

import pytest


def call(method, path):
    headers = {"anchor-api-key": os.environ["ANCHORBROWSER_API_KEY"]}
    with urlopen(Request(os.environ["ANCHORBROWSER_BASE_URL"] + path, method=method, headers=headers)) as answer:
        return json.load(answer)


@pytest.fixture(scope="session")
def end_sessions():
    return end_all


def end_all():
    for one in call("GET", "/v1/sessions/all/status")["data"]["items"]:
        if one["status"] == "running":
            call("DELETE", "/v1/sessions/" + one["session_id"])


def pytest_runtest_logstart(nodeid):
    if "after_a_death" in nodeid:
        end_all()
        time.sleep(0.6)
"""
BY_SYNC = """
import pytest

@pytest.fixture(scope="session")
def shared(browser):
    page = browser.new_page()
    page.set_content("<title>shared</title>")
    yield page
    page.close()

def test_before(page, shared):
    assert shared.title() == "shared"

def test_that_sees_it(page, shared, end_sessions):
    end_sessions()
    page.set_content("never")

def test_next(page, shared):
    page.set_content("<title>own</title>")
    assert (page.title(), shared.title()) == ("own", "shared")

def test_after_a_death(page, shared):
    page.set_content("<title>own</title>")
    assert (page.title(), shared.title()) == ("own", "shared")
"""
BY_ASYNC = """
import pytest

@pytest.fixture(scope="session")
async def shared(browser):
    page = await browser.new_page()
    await page.set_content("<title>shared</title>")
    yield page
    await page.close()

async def test_before(page, shared):
    assert await shared.title() == "shared"

async def test_that_sees_it(page, shared, end_sessions):
    end_sessions()
    await page.set_content("never")

async def test_next(page, shared):
    await page.set_content("<title>own</title>")
    assert (await page.title(), await shared.title()) == ("own", "shared")

async def test_after_a_death(page, shared):
    await page.set_content("<title>own</title>")
    assert (await page.title(), await shared.title()) == ("own", "shared")
"""
APIS = pytest.mark.parametrize(("plugins", "test"), [(SYNC, BY_SYNC), (ASYNC, BY_ASYNC)], ids=["sync", "asyncio"])


@APIS
def test_a_workers_session_dies(suite: Suite, plugins: tuple[str, ...], test: str):
    suite.write(CONFTEST, "conftest.py")
    suite.write(test)
    run = suite.run("worker", plugins=plugins)
    assert run.outcomes == {"passed": 3, "failed": 1}, run.out
    over = [one["session_id"] for one in suite.listed][-3]
    assert f"Session {over} was over: a timeout of Anchor's has ended it, or its browser has crashed." in run.out
    assert run.out.count("was over") == 1


def test_a_tests_session_dies(suite: Suite):
    suite.write(CONFTEST, "conftest.py")
    suite.write(BY_SYNC.replace('(scope="session")', ""))
    run = suite.run("test")
    assert run.outcomes == {"passed": 3, "failed": 1}, run.out
    assert run.out.count("was over: a timeout of Anchor's") == 1


def test_a_workers_session_is_renewed_before_its_time_is_up(suite: Suite):
    suite.write("""
        import pytest
        from pytest_anchor.playwright import sessions

        sessions.USABLE = 0.0

        @pytest.fixture(scope="session")
        def shared(browser):
            yield browser.new_page()

        @pytest.mark.parametrize("number", range(3))
        def test_it(page, shared, number):
            assert page.title() == shared.title() == ""
    """)
    before = len(suite.listed)
    run = suite.run("worker")
    assert run.outcomes == {"passed": 3}, run.out
    assert len(suite.listed) - before == 3


def test_a_creation_that_fails_fails_one_test(suite: Suite):
    suite.write("""
        import pytest
        from pytest_anchor import AnchorAPIError, AnchorSessionFactory

        create = AnchorSessionFactory.__call__

        @pytest.fixture(autouse=True, scope="session")
        def failure():
            with pytest.MonkeyPatch.context() as patch:
                def fail(*args, **options):
                    patch.undo()
                    raise AnchorAPIError("create a session", status=500)

                patch.setattr(AnchorSessionFactory, "__call__", fail)
                yield

        @pytest.mark.parametrize("number", range(2))
        def test_it(page, number):
            assert page.title() == ""
    """)
    run = suite.run_process("worker")  # by which the class is patched that the plugin uses
    assert run.outcomes == {"error": 1, "passed": 1}, run.out
