"""A session's own browser, context and page: what the fixtures ``anchor_page`` and ``async_anchor_page`` give."""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest

from . import apis
from .connect import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..session import AnchorSession, AnchorSessionFactory

MISSING = "{} needs Playwright, which is not installed: pip install playwright (`playwright install` is not needed)"
IN_A_LOOP = (
    "anchor_page, anchor_context and anchor_browser are of Playwright's synchronous API, which does not work where an "
    "event loop runs: in asynchronous tests, use async_anchor_page, async_anchor_context and async_anchor_browser."
)
IN_USE = (
    "Playwright's synchronous API runs in this thread already, or an event loop does, and a thread can have one only. "
    "Where the suite starts it in a fixture, call that one playwright, and anchor_page uses it."
)


def check_installed(fixture: str) -> None:
    """Fail the test with the remedy where there is no Playwright."""
    if find_spec("playwright") is None:
        pytest.fail(MISSING.format(fixture), pytrace=False)


def open_browser(playwright: Any, factory: AnchorSessionFactory) -> Any:
    """A browser of a new session, whose first context has a page.

    :param playwright: a ``Playwright`` of the synchronous or the asynchronous API.
    :returns: a ``Browser``; with the asynchronous API, an awaitable of one.
    """
    __tracebackhide__ = True
    return apis.run(playwright, _open(playwright, factory))


async def _open(playwright: Any, factory: AnchorSessionFactory) -> Any:
    __tracebackhide__ = True
    session = await apis.without_blocking(playwright, factory, discard=_end_later)
    browser = await apis.settle(connect(playwright, session))
    context = browser.contexts[0]
    if not context.pages:
        await apis.settle(context.new_page())
    return browser


def _end_later(session: AnchorSession) -> None:
    session.end_later()


def disconnect(browser: Any) -> Any:
    """Disconnect Playwright; with the asynchronous API, return an awaitable of it."""
    return apis.run(browser, _disconnect(browser))


async def _disconnect(browser: Any) -> None:
    try:
        await apis.settle(browser.close())
    except Exception as error:
        if browser.is_connected() or not apis.is_error(error):  # what is gone cannot be closed
            raise


@contextmanager
def synchronous_browser(request: pytest.FixtureRequest, factory: AnchorSessionFactory) -> Iterator[Any]:
    """A browser for the requesting test, disconnected afterwards."""
    __tracebackhide__ = True
    browser = open_browser(_synchronous_playwright(request), factory)
    suite: _MixedSuite | None = request.config.pluginmanager.get_plugin(_MixedSuite.__name__)
    if suite is not None:
        suite.has_browser = True
    yield browser
    disconnect(browser)
    if suite is not None:
        suite.browser_is_closed()


def _synchronous_playwright(request: pytest.FixtureRequest) -> Any:
    """The ``Playwright`` that this thread's tests share: a thread can have one only.

    The suite's own fixture ``playwright``, which may be pytest-playwright's, comes first.
    """
    __tracebackhide__ = True
    if _is_asynchronous(request.node):
        pytest.fail(IN_A_LOOP, pytrace=False)
    try:
        playwright = request.getfixturevalue("playwright")
    except pytest.FixtureLookupError as error:
        if error.argname != "playwright":
            raise
    else:
        if hasattr(playwright, "chromium") and not apis.is_async(playwright):
            return playwright
    return request.getfixturevalue("_anchor_playwright")


@contextmanager
def start_playwright(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Start the synchronous Playwright for as long as its fixture lives."""
    from playwright.sync_api import Error, sync_playwright

    try:
        playwright = sync_playwright().start()
    except Error:
        pytest.fail(IN_USE, pytrace=False)
    manager = request.config.pluginmanager
    if any(map(_is_asynchronous, request.session.items)):
        manager.register(_MixedSuite(request), _MixedSuite.__name__)
    try:
        yield playwright
    finally:
        if manager.has_plugin(_MixedSuite.__name__):
            manager.unregister(name=_MixedSuite.__name__)
        playwright.stop()


class _MixedSuite:
    """Ends the synchronous Playwright wherever an event loop may be needed: as long as it lives, its own one runs.

    That is before an asynchronous test, and where loops of wider scopes may be closed.

    :param request: that of Playwright's fixture.
    :ivar has_browser: whether a browser is connected.
    """

    def __init__(self, request: Any) -> None:
        self._request = request
        self.has_browser = False
        self._is_due = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if _is_asynchronous(item):
            self._end()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        if nextitem is None or nextitem.parent is not item.parent:
            if self.has_browser:
                self._is_due = True
            else:
                self._end()

    def browser_is_closed(self) -> None:
        """Take in that no browser is connected any more."""
        self.has_browser = False
        if self._is_due:
            self._end()

    def _end(self) -> None:
        self._request._fixturedef.finish(self._request)  # noqa: SLF001 - as pytest does at the end of its scope


def _is_asynchronous(item: pytest.Item) -> bool:
    return iscoroutinefunction(getattr(item, "obj", None))
