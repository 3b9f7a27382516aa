"""Playwright on Anchor sessions, and a small site to drive: copy what you need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Playwright, Route, sync_playwright

from pytest_anchor import AnchorSession, AnchorSessionFactory

OpenPage = Callable[[AnchorSession], Page]


@pytest.fixture(scope="session")
def anchor_session_defaults() -> dict[str, Any]:
    """What every session of this suite starts with; a marker and the call itself can change it."""
    return {
        "session": {"tags": ["tea-shop"], "timeout": {"idle_timeout": 2, "max_duration": 10}},
        "browser": {"headless": {"active": True}, "viewport": {"width": 1280, "height": 800}},
    }


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright needs no browser of its own here: `playwright install` can be left out."""
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture
def site() -> Site:
    """The site, fresh for each test."""
    return Site()


@pytest.fixture
def open_page(playwright: Playwright, site: Site) -> Iterator[OpenPage]:
    """Give the page of a session, on the site: `page = open_page(anchor_session())`."""
    with ExitStack() as connections:

        def open_page(session: AnchorSession) -> Page:
            browser = connections.enter_context(playwright.chromium.connect_over_cdp(session.cdp_url))
            # The context and the page that the session started with: only these are recorded, and hold the profile.
            context = browser.contexts[0]
            context.route("https://tea.example/**", site.answer)
            page = context.pages[0]
            page.goto("https://tea.example/shop.html")
            return page

        yield open_page


@pytest.fixture
def page(anchor_session: AnchorSessionFactory, open_page: OpenPage) -> Page:
    """Give the page of a session of its own: what most tests need."""
    return open_page(anchor_session())


HERE = Path(__file__).parent
FOLDERS = (HERE / "site", HERE.parent / "tea_shop" / "site")  # both shops have the same chat


class Site:
    """The pages of the site, and the chat's messages.

    A browser in the cloud reaches a server on this machine where `--anchor-playwright` or `anchor_page` has connected
    it, and this suite connects by itself. So Playwright answers for the site: it sends each request for it back here
    through the CDP connection, which works wherever the browser runs.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    def answer(self, route: Route) -> None:
        path = urlsplit(route.request.url).path
        if path != "/messages":
            found = [file for folder in FOLDERS if (file := folder / Path(path).name).is_file()]
            route.fulfill(path=found[0]) if found else route.fulfill(status=404)
        elif route.request.method == "POST":
            self.messages.append(route.request.post_data or "")
            route.fulfill(status=204)
        else:
            route.fulfill(json=self.messages)
