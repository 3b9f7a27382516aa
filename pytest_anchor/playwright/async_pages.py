"""The fixtures behind ``async_anchor_browser``, made for the plugin and the event loop that run the test.

An asynchronous fixture is set up in the loop of its test only if it is declared so to the plugin that runs it. So there
is a pair of fixtures, the driver and the browser, for each scope of pytest-asyncio's loops, and one for anyio's plugin;
each is registered when the first test needs it.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from .pages import Pages, disconnect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from playwright.async_api import Browser, Playwright

    from ..session import AnchorSessionFactory

NO_PLUGIN = (
    "async_anchor_page, async_anchor_context and async_anchor_browser are for asynchronous tests that pytest-asyncio, "
    "or anyio's plugin with asyncio, runs. In others, use anchor_page, or async_anchor_session, which needs no plugin."
)
TRIO = "Playwright's asynchronous API needs asyncio: have anyio_backend return 'asyncio', or use async_anchor_session."
TOO_OLD = "async_anchor_page needs pytest-asyncio 1.1 or newer, and {} is installed: pip install -U pytest-asyncio"


def browser_of(request: pytest.FixtureRequest) -> Browser:
    """The browser of the requesting test, in its own event loop."""
    __tracebackhide__ = True
    if "anyio_backend" in request.fixturenames:
        backend = request.getfixturevalue("anyio_backend")
        if backend != "asyncio" and backend[0] != "asyncio":
            pytest.fail(TRIO, pytrace=False)
        declare: Callable[..., Any] = pytest.fixture
        kind, scope = "anyio", "function"
    elif (marker := request.node.get_closest_marker("asyncio")) is not None:
        from pytest_asyncio import __version__, fixture

        if tuple(map(int, __version__.split(".")[:2])) < (1, 1):
            pytest.fail(TOO_OLD.format(__version__), pytrace=False)
        scope = marker.kwargs.get("loop_scope") or _default_scope(request.config)
        kind, declare = scope, partial(fixture, loop_scope=scope)
    else:
        pytest.fail(NO_PLUGIN, pytrace=False)
    name = f"_async_anchor_browser_{kind}"
    manager = request.config.pluginmanager
    if not manager.has_plugin(name):
        manager.register(_fixtures(kind, declare, scope), name)
    request.getfixturevalue(f"_async_anchor_playwright_{kind}")  # here, where no loop runs
    browser: Browser = request.getfixturevalue(name)
    return browser


def _default_scope(config: pytest.Config) -> str:
    return str(config.getini("asyncio_default_test_loop_scope") or "function")


def _fixtures(kind: str, declare: Callable[..., Any], scope: str) -> ModuleType:
    """A plugin with the two fixtures.

    :param declare: the decorator that makes an asynchronous function a fixture, called with its scope and name.
    :param scope: how long the event loop lives.
    """
    driver_name, browser_name = f"_async_anchor_playwright_{kind}", f"_async_anchor_browser_{kind}"

    async def driver() -> AsyncIterator[Playwright]:
        from playwright.async_api import async_playwright

        async with async_playwright() as playwright:
            yield playwright

    async def browser(request: pytest.FixtureRequest, anchor_session: AnchorSessionFactory) -> AsyncIterator[Browser]:
        launched = await Pages.of(request.config).launch(request.getfixturevalue(driver_name), anchor_session)
        yield launched.browser
        await disconnect(launched)

    module = ModuleType(browser_name)
    vars(module)["driver"] = declare(scope=scope, name=driver_name)(driver)
    vars(module)["browser"] = declare(scope="function", name=browser_name)(browser)
    return module
