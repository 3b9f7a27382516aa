"""A session's own browser, context and page: what the fixtures ``anchor_page`` and ``async_anchor_page`` give."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from ..plugin.sections import add_section
from ..plugin.state import PLUGIN
from . import apis
from .connect import connect
from .downloads import replace_downloads
from .driver import MIXED_SUITE, MixedSuite, synchronous_playwright
from .launch import Replacements
from .life import Browsers, LaunchedBrowser
from .sessions import Sessions, discard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..plugin.state import Plugin
    from ..session import AnchorSessionFactory

MISSING = (
    "anchor_page, async_anchor_page and their kin need Playwright, which is not installed: pip install playwright "
    "(`playwright install` is not needed)"
)


def check_installed() -> None:
    """Fail the test with the remedy where there is no Playwright."""
    if find_spec("playwright") is None:
        pytest.fail(MISSING, pytrace=False)


class Pages(Browsers):
    """The browsers of the tests that run, as a plugin that says what has become of those that are gone."""

    NAME = "pytest_anchor_pages"

    def __init__(self, plugin: Plugin) -> None:
        super().__init__()
        plugin.photographers.append(self.screenshots)
        self._sessions = Sessions(plugin, is_shared=False)
        self._replacements = Replacements()
        if plugin.client.settings.playwright == "off":  # else it is done already
            replace_downloads(self._replacements)

    @classmethod
    def of(cls, config: pytest.Config) -> Pages:
        """The run's own, registered where a test needs it first."""
        pages: Pages | None = config.pluginmanager.get_plugin(cls.NAME)
        if pages is None:
            pages = cls(config.stash[PLUGIN])
            config.pluginmanager.register(pages, cls.NAME)
        return pages

    def launch(self, playwright: Any, factory: AnchorSessionFactory) -> Any:
        """A browser on a new session, whose first context has a page.

        :param playwright: a ``Playwright`` of the synchronous or the asynchronous API.
        :returns: a :class:`LaunchedBrowser`; with the asynchronous API, an awaitable of one.
        """
        __tracebackhide__ = True
        return apis.run(playwright, self._launch(playwright, factory))

    async def _launch(self, playwright: Any, factory: AnchorSessionFactory) -> LaunchedBrowser:
        __tracebackhide__ = True
        take = partial(self._sessions.take, factory, {})
        lease = await apis.without_blocking(playwright, take, discard(self._sessions))
        browser = await apis.settle(connect(playwright, lease.session))
        context = browser.contexts[0]
        if not context.pages:
            await apis.settle(context.new_page())
        launched = LaunchedBrowser(browser, lease, None, self._sessions)
        self.add(launched)
        return launched

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Any:
        """Say in a failed test's report which sessions were over."""
        report = yield
        if report.failed and call.excinfo is not None:
            for text in self.explain(call.excinfo.value):
                add_section(report, text)
        return report

    def pytest_unconfigure(self) -> None:
        """Leave Playwright as it was."""
        self._replacements.undo()


def disconnect(launched: LaunchedBrowser) -> Any:
    """Disconnect Playwright; with the asynchronous API, return an awaitable of it."""
    return apis.run(launched.browser, _disconnect(launched))


async def _disconnect(launched: LaunchedBrowser) -> None:
    try:
        await launched.disconnect()
    except Exception as error:
        if launched.browser.is_connected() or not apis.is_error(error):  # what is gone cannot be closed
            raise


@contextmanager
def synchronous_browser(request: pytest.FixtureRequest, factory: AnchorSessionFactory) -> Iterator[Any]:
    """A browser for the requesting test, disconnected afterwards."""
    __tracebackhide__ = True
    launched = Pages.of(request.config).launch(synchronous_playwright(request), factory)
    suite: MixedSuite | None = request.config.pluginmanager.get_plugin(MIXED_SUITE)
    if suite is not None:
        suite.has_browser = True
    yield launched.browser
    disconnect(launched)
    if suite is not None:
        suite.browser_is_closed()
