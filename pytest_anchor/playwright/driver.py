"""The synchronous Playwright that a worker's tests share, for ``anchor_page``."""

from __future__ import annotations

from contextlib import contextmanager
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest

from . import apis

if TYPE_CHECKING:
    from collections.abc import Iterator

IN_A_LOOP = (
    "anchor_page, anchor_context and anchor_browser are of Playwright's synchronous API, which does not work where an "
    "event loop runs: in asynchronous tests, use async_anchor_page, async_anchor_context and async_anchor_browser."
)
IN_USE = (
    "Playwright's synchronous API runs in this thread already, or an event loop does, and a thread can have one only. "
    "Where the suite starts it in a fixture, call that one playwright, and anchor_page uses it."
)
MIXED_SUITE = "pytest_anchor_mixed_suite"  # the plugin's name


def synchronous_playwright(request: pytest.FixtureRequest) -> Any:
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
        manager.register(MixedSuite(request), MIXED_SUITE)
    try:
        yield playwright
    finally:
        if manager.has_plugin(MIXED_SUITE):
            manager.unregister(name=MIXED_SUITE)
        playwright.stop()


class MixedSuite:
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
        """Make room for an asynchronous test's own loop."""
        if _is_asynchronous(item):
            self._end()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Make room for the end of a wider loop, once the test's browser is closed."""
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
