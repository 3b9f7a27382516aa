"""Real Chromium behind the API, driven by Playwright and by the official SDK."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import pytest
from backend import Backend, in_thread, until
from playwright.sync_api import Browser, Playwright

PNG = b"\x89PNG\r\n\x1a\n"


def connect(playwright: Playwright, cdp_url: str) -> Browser:
    return playwright.chromium.connect_over_cdp(cdp_url)


def test_the_official_sdk(backends: Callable[..., Backend]):
    with ThreadPoolExecutor(1) as pool:  # it starts a Playwright of its own
        pool.submit(use_the_sdk, backends()).result()


def use_the_sdk(backend: Backend) -> None:
    from anchorbrowser import Anchorbrowser  # half a second
    from anchorbrowser._exceptions import AuthenticationError

    with Anchorbrowser(api_key=backend.key, base_url=backend.url) as client:
        made = client.sessions.create_session(
            session={"tags": ["sdk", "other"]}, browser={"headless": {"active": True}}
        ).data
        assert made
        assert made.id
        listed = client.sessions.get_all_sessions_status(tags="sdk").data
        assert listed
        assert [item.session_id for item in listed.items or []] == [made.id]
        paged = client.sessions.list_sessions(tags="sdk").data
        assert paged
        assert paged.total == 1
        found = client.sessions.get_session(made.id).data
        assert found
        assert found.status == "running"
        with client.browser.connect(made.id) as browser:
            page = browser.contexts[0].pages[0]
            page.set_content("<title>hello</title>")
            assert page.title() == "hello"
        assert client.sessions.get_session_screenshot(made.id).read().startswith(PNG)
        ended = client.sessions.delete_session(made.id).data
        assert ended
        assert ended.status == "success"
        with pytest.raises(AuthenticationError, match="browser session ID"):
            client.sessions.delete_session(made.id)
        used = client.sessions.get_sessions_history(metrics=["session_count", "credits_used"], granularity="month")
        assert used.data
        assert (used.data[0].session_count, used.data[0].credits_used) == (1, 0)
        recordings = client.recordings.list_recordings(made.id).data
        assert recordings
        assert recordings.items == []


def test_initial_url_and_viewport(chromium: Backend, playwright: Playwright):
    made = chromium.create(
        session={"initial_url": "data:text/html,<title>first</title>"},
        browser={"viewport": {"width": 811, "height": 603}},
    )
    pages = f"/v1/sessions/{made['id']}/pages"
    until(lambda: [page["url"] for page in chromium("GET", pages).json()] == ["data:text/html,<title>first</title>"])
    browser = connect(playwright, made["cdp_url"])
    assert len(browser.contexts) == 1
    (tab,) = browser.contexts[0].pages
    assert tab.title() == "first"
    until(lambda: tab.evaluate("[innerWidth, innerHeight]") == [811, 603], within=3)
    tab.goto("about:blank")
    assert tab.evaluate("[innerWidth, innerHeight]") == [811, 603]
    browser.close()
    assert chromium.status(made["id"]) == "running"
    chromium("DELETE", f"/v1/sessions/{made['id']}")


def test_sessions_share_nothing_and_their_cdp_ends_with_them(chromium: Backend, playwright: Playwright):
    first, second = chromium.create(), chromium.create(browser={"disable_web_security": {"active": True}})
    browsers = [connect(playwright, made["cdp_url"]) for made in (first, second)]
    contexts = [browser.contexts[0] for browser in browsers]
    contexts[0].add_cookies([{"name": "a", "value": "1", "url": "http://localhost"}])
    assert [len(context.cookies()) for context in contexts] == [1, 0]
    # A second client of the same session sees the same browser.
    again = connect(playwright, first["cdp_url"])
    assert len(again.contexts[0].cookies()) == 1
    # Both directions take what is larger than the WebSocket library's own limit of 4 MiB.
    assert contexts[0].pages[0].evaluate("text => text + text", "x" * (6 << 20)) == "x" * (12 << 20)

    assert chromium("DELETE", f"/v1/sessions/{first['id']}").status_code == 200
    assert len(chromium.profiles()) == 1
    for browser in (browsers[0], again):
        until(lambda browser=browser: pumped(playwright, browser))
    with pytest.raises(Exception, match="401"):
        connect(playwright, first["cdp_url"])
    with pytest.raises(Exception, match="401"):
        connect(playwright, second["cdp_url"].replace("apiKey=local", "apiKey=lokal"))
    assert contexts[1].pages[0].evaluate("1 + 1") == 2
    browsers[1].close()
    assert chromium("DELETE", "/v1/sessions/all").status_code == 200
    assert not chromium.profiles()
    until(lambda: not chromium.chromiums())


def pumped(playwright: Playwright, browser: Browser) -> bool:
    """Whether *browser* is disconnected; Playwright learns of it only while it is called."""
    context = playwright.request.new_context()
    context.dispose()
    return not browser.is_connected()


def test_idle_counts_from_the_last_connection(chromium: Backend):
    made = chromium.create(session={"timeout": {"idle_timeout": 0.01}})

    async def hold() -> None:
        async with aiohttp.ClientSession() as http, http.ws_connect(made["cdp_url"]) as socket:
            for number in range(1, 12):
                await socket.send_json({"id": number, "method": "Browser.getVersion"})
                assert (await socket.receive_json())["id"] == number
                await asyncio.sleep(0.1)
            await socket.send_bytes(b"{}")
        assert (await asyncio.to_thread(chromium.status, made["id"])) == "running"

    in_thread(hold())
    until(lambda: chromium.status(made["id"]) == "completed", within=3)
    until(lambda: not chromium.profiles(), within=2)


def test_a_page_with_the_key_gets_no_websocket(chromium: Backend):
    made = chromium.create()

    async def attempt(**how: Any) -> int:
        async with aiohttp.ClientSession() as http:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                await http.ws_connect(made["cdp_url"], **how)
            return refusal.value.status

    assert in_thread(attempt(origin="http://evil.example")) == 403
    assert in_thread(attempt(headers={"Host": "evil.example"})) == 403
    assert chromium("GET", "/?" + made["cdp_url"].partition("?")[2]).status_code == 400
    chromium("DELETE", f"/v1/sessions/{made['id']}")


def test_without_a_page_there_is_no_screenshot(chromium: Backend):
    made = chromium.create()
    pages = chromium("GET", f"/v1/sessions/{made['id']}/pages").json()

    async def close() -> None:
        async with aiohttp.ClientSession() as http, http.ws_connect(made["cdp_url"]) as socket:
            await socket.send_json({"id": 1, "method": "Target.closeTarget", "params": {"targetId": pages[0]["id"]}})
            await socket.receive()

    in_thread(close())
    until(lambda: chromium("GET", f"/v1/sessions/{made['id']}/pages").json() == [])
    answer = chromium("GET", f"/v1/sessions/{made['id']}/screenshot")
    assert answer.status_code == 500
    assert "no page" in answer.json()["error"]
    chromium("DELETE", f"/v1/sessions/{made['id']}")


def test_a_browser_that_dies_ends_its_session(chromium: Backend):
    made = chromium.create()
    for pid in chromium.chromiums():
        os.kill(pid, signal.SIGKILL)
    until(lambda: chromium.status(made["id"]) == "completed", within=2)
    until(lambda: not chromium.profiles(), within=2)
    assert chromium("DELETE", f"/v1/sessions/{made['id']}").status_code == 401


def test_a_browser_that_never_listens(backends: Callable[..., Backend]):
    # It answers after all once it is told to go: the creation under way does not hold up the end.
    backend = backends("--chromium", "/bin/cat")
    answer = backend("POST", "/v1/sessions")
    assert answer.status_code == 500
    assert "did not start" in answer.json()["error"]["message"]
    assert not backend.profiles()
