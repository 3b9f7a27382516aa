"""The fixtures that tests ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from .state import PLUGIN, TEARDOWN_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from playwright import async_api
    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

    from ..async_session import AsyncAnchorSessionFactory
    from ..session import AnchorSessionFactory

FIXTURES = frozenset(f"{scope}anchor_session" for scope in ("", "class_", "module_", "package_", "session_"))


@pytest.fixture(scope="session")
def anchor_session_defaults() -> dict[str, Any]:
    """Configuration of every Anchor session of the suite; override it in a conftest.py.

    Return a dict with any of the keys session, browser, integrations and identities. The anchor
    marker and the factory's own keywords win over it; mappings merge deeply, tags are joined.
    """
    return {}


def _anchor_session(
    request: pytest.FixtureRequest, anchor_session_defaults: Mapping[str, Any]
) -> Iterator[AnchorSessionFactory]:
    """Create Anchor Browser sessions: session = anchor_session(browser={...}).

    Each is ended at teardown at the latest. session.cdp_url is for Playwright's connect_over_cdp;
    session.id, .live_view_url, .created_at, .end(). Twins for wider scopes: class_, module_,
    package_ and session_anchor_session.
    """
    __tracebackhide__ = True
    from .upcoming import configuration

    plugin = request.config.stash.get(PLUGIN, None)
    if plugin is None:
        pytest.fail("anchor_session is switched off: -p no:pytest_anchor comes after -p pytest_anchor", pytrace=False)
    config = configuration(request.node, anchor_session_defaults)
    if plugin.upcoming is not None:
        plugin.upcoming.saw(request.node, anchor_session_defaults)
    factory = plugin.factory(request.node, config, fixture=request.fixturename or "")
    pid = plugin.client.pid
    yield factory
    if plugin.client.pid != pid:  # a child that the test forked, and that has gone on: they are its parent's
        return
    if plugin.client.settings.end_in_background and not plugin.is_child:  # a fork may be over any time
        factory.close_later()
        return
    failures = factory.close(TEARDOWN_TIMEOUT)
    if failures and plugin.item is not None:
        from ..reporting.summary import teardown_section

        text = teardown_section([(session.id, error) for session, error in failures.items()])
        plugin.item.add_report_section("teardown", "anchor", text)


anchor_session = pytest.fixture(scope="function")(_anchor_session)
class_anchor_session = pytest.fixture(scope="class")(_anchor_session)
module_anchor_session = pytest.fixture(scope="module")(_anchor_session)
package_anchor_session = pytest.fixture(scope="package")(_anchor_session)
session_anchor_session = pytest.fixture(scope="session")(_anchor_session)


@pytest.fixture
def async_anchor_session(anchor_session: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    """Create Anchor Browser sessions in asyncio or trio, whose event loop goes on meanwhile.

    session = await async_anchor_session(browser={...}); await session.aend(), or async with the
    session. All else is as with anchor_session; the fixture itself needs no plugin. Twins for wider
    scopes: async_class_, async_module_, async_package_ and async_session_anchor_session.
    """
    return _asynchronous(anchor_session)


@pytest.fixture(scope="class")
def async_class_anchor_session(class_anchor_session: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    """Create Anchor Browser sessions that a class shares: see async_anchor_session."""
    return _asynchronous(class_anchor_session)


@pytest.fixture(scope="module")
def async_module_anchor_session(module_anchor_session: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    """Create Anchor Browser sessions that a module shares: see async_anchor_session."""
    return _asynchronous(module_anchor_session)


@pytest.fixture(scope="package")
def async_package_anchor_session(package_anchor_session: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    """Create Anchor Browser sessions that a package shares: see async_anchor_session."""
    return _asynchronous(package_anchor_session)


@pytest.fixture(scope="session")
def async_session_anchor_session(session_anchor_session: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    """Create Anchor Browser sessions that the run shares: see async_anchor_session."""
    return _asynchronous(session_anchor_session)


def _asynchronous(factory: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    from ..async_session import AsyncAnchorSessionFactory

    return AsyncAnchorSessionFactory(factory)


@pytest.fixture
def anchor_page(anchor_context: BrowserContext) -> Page:
    """Playwright's page of an Anchor session of the test's own, for suites without pytest-playwright.

    The session's own first page, in its own first context: that is what Anchor records, and what
    holds the profile. anchor_context and anchor_browser are its context and its browser. For
    asyncio: async_anchor_page, async_anchor_context and async_anchor_browser.
    """
    return anchor_context.pages[0]


@pytest.fixture
def anchor_context(anchor_browser: Browser) -> BrowserContext:
    """Playwright's context of anchor_page."""
    return anchor_browser.contexts[0]


@pytest.fixture
def anchor_browser(request: pytest.FixtureRequest, anchor_session: AnchorSessionFactory) -> Iterator[Browser]:
    """Playwright's browser of anchor_page: a connection to a new Anchor session, which both end with the test."""
    __tracebackhide__ = True
    from ..playwright import pages

    pages.check_installed()
    with pages.synchronous_browser(request, anchor_session) as browser:
        yield browser


@pytest.fixture
def async_anchor_page(async_anchor_context: async_api.BrowserContext) -> async_api.Page:
    """As anchor_page, of Playwright's asynchronous API, for tests that pytest-asyncio or anyio's plugin runs."""
    return async_anchor_context.pages[0]


@pytest.fixture
def async_anchor_context(async_anchor_browser: async_api.Browser) -> async_api.BrowserContext:
    """Playwright's context of async_anchor_page."""
    return async_anchor_browser.contexts[0]


@pytest.fixture
def async_anchor_browser(
    request: pytest.FixtureRequest,
    anchor_session: AnchorSessionFactory,  # noqa: ARG001 - so it is known early that the test will create a session
) -> async_api.Browser:
    """Playwright's browser of async_anchor_page, in the test's own event loop."""
    __tracebackhide__ = True
    from ..playwright import async_pages, pages

    pages.check_installed()
    return async_pages.browser_of(request)


@pytest.fixture(scope="session")
def _anchor_playwright(request: pytest.FixtureRequest) -> Iterator[Playwright]:
    from ..playwright.driver import start_playwright

    with start_playwright(request) as playwright:
        yield playwright
