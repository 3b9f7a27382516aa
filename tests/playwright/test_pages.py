"""The pages of a test's own session, without pytest-playwright."""

from __future__ import annotations

import os
from collections.abc import Callable
from unittest.mock import patch

import pytest
from backend import Backend
from fault_server import FaultServer
from real_runs import environment

pytestmark = pytest.mark.slow

Execute = Callable[..., pytest.RunResult]
ASYNCIO = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")


@pytest.fixture
def execute(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Run tests in this process; a server says where the API is."""

    def execute(server: Backend | FaultServer, *args: str, **files: str) -> pytest.RunResult:
        pytester.makepyfile(**files)
        key = server.key if isinstance(server, Backend) else "sk-0123456789"
        api = {"ANCHORBROWSER_BASE_URL": server.url, "ANCHORBROWSER_API_KEY": key}
        strict = ["-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
        with patch.dict(os.environ, environment(**api), clear=True):
            return pytester.runpytest_inprocess("-p", "pytest_anchor", *strict, *args)

    return execute


# A browser that is still connected when its session is ended would be a test's to see.
CONFTEST = """
import pytest
from pytest_anchor.session import AnchorSessionFactory

browsers, connected = [], []

@pytest.fixture(autouse=True, scope="session")
def _watch():
    close = AnchorSessionFactory.close
    def watch(factory, timeout):
        connected.extend(browser.is_connected() for browser in browsers)
        return close(factory, timeout)
    AnchorSessionFactory.close = watch
    yield
    AnchorSessionFactory.close = close
    assert connected and not any(connected)
"""
BOTH_APIS = """
import asyncio
import pytest
from conftest import browsers

def test_page(anchor_page, anchor_context, anchor_browser, request):
    browsers.append(anchor_browser)
    assert anchor_page.context is anchor_context and anchor_context.browser is anchor_browser
    assert anchor_browser.contexts == [anchor_context] and anchor_context.pages == [anchor_page]
    anchor_page.set_content("<title>Hello</title>")
    assert anchor_page.title() == "Hello"
    assert "anchor_session" in request.fixturenames  # so a session can be created ahead

def test_dies(anchor_page, anchor_browser):
    anchor_browser.new_browser_cdp_session().send("Browser.crash")
    anchor_page.title()

@pytest.mark.asyncio
async def test_asynchronous_page(async_anchor_page, async_anchor_context, async_anchor_browser, request):
    browsers.append(async_anchor_browser)
    assert async_anchor_context.pages == [async_anchor_page]
    await async_anchor_page.set_content("<title>Hello</title>")
    assert await async_anchor_page.title() == "Hello"
    assert "anchor_session" in request.fixturenames

@pytest.mark.asyncio(loop_scope="module")
async def test_in_the_modules_loop(async_anchor_page):
    assert await async_anchor_page.title() == ""

def test_synchronous_again(anchor_page):
    assert anchor_page.title() == ""
"""


def test_pages_of_both_apis(execute: Execute, chromium: Backend):
    result = execute(chromium, *ASYNCIO, conftest=CONFTEST, test_it=BOTH_APIS)
    result.assert_outcomes(passed=4, failed=1)
    assert "5 sessions created: " in result.stdout.str()
    # The API may not have noticed the crash by the time that it is asked.
    result.stdout.re_match_lines(["Session .* was over: .*|The connection to session .* was lost while it ran; .*"])


ANYIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_it(async_anchor_page):
    assert await async_anchor_page.title() == ""
"""


def test_pages_under_anyio(execute: Execute, chromium: Backend):
    execute(chromium, "-p", "anyio", test_it=ANYIO).assert_outcomes(passed=1)


OWN = """
import pytest
from playwright.sync_api import sync_playwright

@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as playwright:
        yield playwright

def test_it(playwright, anchor_browser):
    assert anchor_browser.browser_type is playwright.chromium
"""


def test_the_suites_own_playwright_is_used(execute: Execute, chromium: Backend):
    execute(chromium, test_it=OWN).assert_outcomes(passed=1)


IN_VAIN = """
import pytest

@pytest.fixture
def anyio_backend():
    return "trio"

@pytest.fixture
def another():
    from playwright.sync_api import sync_playwright
    with sync_playwright():
        yield

@pytest.mark.asyncio
async def test_asynchronous(anchor_page): pass

def test_synchronous(async_anchor_page): pass

@pytest.mark.anyio
async def test_trio(async_anchor_page): pass

def test_another(another, anchor_page): pass
"""
REMEDIES = (
    "use async_anchor_page",
    "use anchor_page",
    "have anyio_backend return 'asyncio'",
    "call that one playwright",
)


def test_what_cannot_be_is_said_with_the_remedy(execute: Execute, server: FaultServer):
    result = execute(server, *ASYNCIO, "-p", "anyio", test_it=IN_VAIN)
    result.assert_outcomes(errors=4)
    for remedy in REMEDIES:
        assert remedy in result.stdout.str()
    assert not server.sessions


def test_without_playwright_it_is_said_what_to_install(execute: Execute, server: FaultServer):
    result = execute(
        server,
        conftest="import sys\nsys.modules['playwright'] = None",
        test_it="def test_it(anchor_page): pass\ndef test_that(async_anchor_page): pass",
    )
    result.assert_outcomes(errors=2)
    assert result.stdout.str().count("pip install playwright") == 2
    assert not server.sessions


def test_pytest_asyncio_may_be_too_old(execute: Execute, server: FaultServer, monkeypatch):
    monkeypatch.setattr("pytest_asyncio.__version__", "1.0.0")
    test = "import pytest\n@pytest.mark.asyncio\nasync def test_it(async_anchor_page): pass"
    result = execute(server, *ASYNCIO, test_it=test)
    result.assert_outcomes(errors=1)
    assert "pip install -U pytest-asyncio" in result.stdout.str()
