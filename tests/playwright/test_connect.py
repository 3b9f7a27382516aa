"""Connections to sessions: made, tried again, refused; by both of Playwright's APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest
from backend import Backend
from playwright.async_api import async_playwright
from playwright.sync_api import sync_playwright

from pytest_anchor import AnchorConnectionError
from pytest_anchor.playwright import connect as connect_module
from pytest_anchor.playwright.connect import connect

pytestmark = pytest.mark.slow

TitleOf = Callable[[SimpleNamespace], str]


def session_of(created: dict[str, str], **more: str) -> SimpleNamespace:
    return SimpleNamespace(**{"label": f"session {created['id']}", "cdp_url": created["cdp_url"], **more})


@contextmanager
def by_sync() -> Iterator[TitleOf]:
    with sync_playwright() as playwright:

        def title_of(session: SimpleNamespace) -> str:
            browser = connect(playwright, session)
            page = browser.contexts[0].pages[0]
            page.set_content("<title>hello</title>")
            title = page.title()
            browser.close()
            return title

        yield title_of


@contextmanager
def by_async() -> Iterator[TitleOf]:
    with closing(asyncio.new_event_loop()) as loop:
        playwright = loop.run_until_complete(async_playwright().start())

        async def title_of(session: SimpleNamespace) -> str:
            browser = await connect(playwright.chromium, session)
            page = browser.contexts[0].pages[0]
            await page.set_content("<title>hello</title>")
            title = await page.title()
            await browser.close()
            return title

        yield lambda session: loop.run_until_complete(title_of(session))
        loop.run_until_complete(playwright.stop())


@pytest.fixture(params=[by_sync, by_async], ids=["sync", "async"], scope="module")
def title_of(request: pytest.FixtureRequest) -> Iterator[TitleOf]:
    with ThreadPoolExecutor(1) as pool:  # where no other event loop is
        api = request.param()
        title_of = pool.submit(api.__enter__).result(60)
        yield lambda session: pool.submit(title_of, session).result(60)
        pool.submit(api.__exit__, None, None, None).result(60)


@pytest.fixture(scope="module")
def created(chromium: Backend):
    created = chromium.create()
    yield created
    chromium("DELETE", f"/v1/sessions/{created['id']}")


def test_a_session_is_connected_to(title_of, created):
    assert title_of(session_of(created)) == "hello"


def assert_no_key(error: BaseException, key: str) -> None:
    assert key not in repr(error)
    assert error.__context__ is None
    assert error.__cause__ is None


def test_a_session_that_is_over_is_refused_at_once_and_named(title_of, chromium: Backend, monkeypatch):
    created = chromium.create()
    chromium("DELETE", f"/v1/sessions/{created['id']}")
    monkeypatch.setattr(connect_module, "PAUSES", (1000.0,))
    with pytest.raises(AnchorConnectionError, match=f"session {created['id']}.*401.*over by now") as raised:
        title_of(session_of(created))
    assert_no_key(raised.value, chromium.key)


def test_a_browser_that_never_answers_is_tried_a_few_times(title_of, chromium: Backend, monkeypatch):
    monkeypatch.setattr(connect_module, "PAUSES", (0.01, 0.01))
    url = f"ws://127.0.0.1:9/?apiKey={chromium.key}&sessionId=one"
    with pytest.raises(AnchorConnectionError, match=r"session one: .*127\.0\.0\.1") as raised:
        title_of(SimpleNamespace(label="session one", cdp_url=url))
    assert_no_key(raised.value, chromium.key)


def test_a_browser_that_needs_a_moment_is_tried_again(title_of, created, monkeypatch):
    pauses: list[float] = []
    session = session_of(created)
    session.cdp_url, url = "ws://127.0.0.1:9/?apiKey=none", session.cdp_url

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            session.cdp_url = url

    monkeypatch.setattr(connect_module, "_sleep", pause)
    assert title_of(session) == "hello"
    assert pauses == [0.1, 0.2]
