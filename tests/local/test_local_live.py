"""The live view, as a person sees and uses it: one real Chromium looks at another one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from backend import Backend, in_thread, until
from playwright.sync_api import Browser, Page, Playwright, expect

SHOP = """
<title>Shop</title>
<style>body { margin: 0; height: 3000px; background: red } * { font: 24px sans-serif; display: block }</style>
<input id="search" style="margin: 100px 0 0 100px; width: 300px">
<button id="buy" style="margin: 100px 0 0 100px; width: 300px" onclick="this.textContent = 'Bought'">Buy</button>
"""
RED, GREEN = [255, 0, 0], [0, 128, 0]


class Session:
    """A session as its test has it, and its live view in front of a person."""

    def __init__(self, backend: Backend, playwright: Playwright, view: Page, **config: Any) -> None:
        self.backend = backend
        created = backend.create(**config)
        self.id, self.cdp_url = created["id"], created["cdp_url"]
        self.browser = playwright.chromium.connect_over_cdp(self.cdp_url)
        self.page = self.browser.contexts[0].pages[0]
        self.page.set_content(SHOP)
        self.view = view
        view.goto(created["live_view_url"])
        self.picture = view.get_by_role("img", name="The session's screen")
        expect(self.picture).to_be_visible()

    def at(self, selector: str) -> tuple[float, float]:
        """Where in the view the middle of an element of the session's page is."""
        inside, around = self.page.locator(selector).bounding_box(), self.picture.bounding_box()
        assert inside
        assert around
        scale = around["width"] / self.page.evaluate("innerWidth")
        return (
            around["x"] + (inside["x"] + inside["width"] / 2) * scale,
            around["y"] + (inside["y"] + inside["height"] / 2) * scale,
        )

    def sees(self, colour: list[int]) -> None:
        """Wait until that is seen near the lower right corner, to within what JPEG makes of it."""
        pixel = "c => [...c.getContext('2d').getImageData(c.width - 40, c.height - 20, 1, 1).data].slice(0, 3)"
        until(lambda: self.picture.evaluate(pixel) == pytest.approx(colour, abs=5), every=0.15)

    def end(self) -> None:
        self.browser.close()
        self.backend("DELETE", f"/v1/sessions/{self.id}")


@pytest.fixture(scope="module")
def person(chromium: Backend, playwright: Playwright) -> Iterator[Browser]:
    browser = playwright.chromium.connect_over_cdp(chromium.create()["cdp_url"])
    expect.set_options(timeout=20_000)  # where much else runs
    yield browser
    expect.set_options(timeout=5_000)
    browser.close()


@pytest.fixture
def view(person: Browser) -> Iterator[Page]:
    context = person.new_context(viewport={"width": 1280, "height": 800}, has_touch=True)
    yield context.new_page()
    context.close()


@pytest.fixture
def session(chromium: Backend, playwright: Playwright, view: Page) -> Iterator[Session]:
    started = Session(chromium, playwright, view, browser={"headless": {"active": True}})
    yield started
    started.end()


def test_a_person_sees_the_session_and_uses_it(session: Session, tmp_path: Path):
    """What is seen, mouse and keyboard, at the size of a desktop and of a phone."""
    view, page = session.view, session.page
    asked = []
    view.on("request", lambda request: asked.append(request.url))
    expect(view.get_by_role("status")).to_have_text("Live")
    expect(view.get_by_role("tab", name="Shop", selected=True)).to_be_visible()
    session.sees(RED)

    # More changes than Chromium sends pictures of without being told that they have come: the last one counts.
    page.evaluate(
        "() => { let n = 0; const timer = setInterval(() => { "
        "document.body.style.background = ++n < 30 ? `rgb(${n}, 0, ${n})` : (clearInterval(timer), 'green') }, 15) }"
    )
    session.sees(GREEN)

    view.mouse.click(*session.at("#search"))
    view.keyboard.type("Grüße 5x")
    view.keyboard.press("Backspace")
    view.keyboard.press("Home")
    view.keyboard.press("Shift+ArrowRight")
    view.keyboard.insert_text("日本")  # as an input method does
    until(lambda: page.input_value("#search") == "日本rüße 5")
    view.screenshot(path=tmp_path / "desktop.png")  # to be looked at
    view.set_viewport_size({"width": 400, "height": 700})
    view.touchscreen.tap(*session.at("#buy"))
    expect(page.locator("#buy")).to_have_text("Bought")
    view.screenshot(path=tmp_path / "phone.png")
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    view.mouse.move(*session.at("#buy"))
    view.mouse.wheel(0, 300)
    until(lambda: page.evaluate("scrollY") == 300)
    finger = view.context.new_cdp_session(view)
    for kind, *y in (("touchStart", 400), ("touchMove", 360), ("touchMove", 340), ("touchEnd",)):
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": 200, "y": each} for each in y]})
    until(lambda: page.evaluate("scrollY") > 450)  # 60 pixels of a picture that is shown at about a quarter of its size

    # The keyboard is given back; until then Tab goes to the session.
    expect(view.get_by_role("textbox", name="Keyboard of the session")).to_be_focused()
    view.keyboard.press("Tab")
    view.keyboard.press("Shift+Escape")
    expect(view.get_by_role("textbox", name="Keyboard of the session")).not_to_be_focused()
    assert asked == []


def test_pages_that_come_and_go_and_change_their_size(session: Session):
    view = session.view
    second = session.browser.contexts[0].new_page()
    second.set_content("<title>Second</title><body style='background: green'>")
    expect(view.get_by_role("tab", name="Second", selected=True)).to_be_visible()
    session.sees(GREEN)
    second.set_viewport_size({"width": 600, "height": 800})
    until(lambda: session.picture.evaluate("c => [c.width, c.height]") == [600, 800])
    session.sees(GREEN)
    view.get_by_role("tab", name="Shop").click()
    session.sees(RED)
    # Each page has an address of its own.
    pages = session.backend("GET", f"/v1/sessions/{session.id}/pages").json()
    for title, colour in (("Second", GREEN), ("Shop", RED)):
        view.goto(next(page["frontend_url"] for page in pages if page["title"] == title))
        expect(view.get_by_role("tab", name=title, selected=True)).to_be_visible()
        session.sees(colour)
    # What is typed goes to the page that is seen.
    view.mouse.click(*session.at("#search"))
    view.keyboard.type("first")
    until(lambda: session.page.input_value("#search") == "first")
    # A page that is opened is shown, whatever was chosen before.
    third = session.browser.contexts[0].new_page()
    third.set_content("<title>Third</title>")
    expect(view.get_by_role("tab", name="Third", selected=True)).to_be_visible()
    expect(view.get_by_role("tab")).to_have_text(["Shop", "Second", "Third"])
    third.close()
    expect(view.get_by_role("tab")).to_have_text(["Shop", "Second"])
    # A click counts though a page is opened under it.
    view.get_by_role("tab", name="Second").hover()
    view.mouse.down()
    fourth = session.browser.contexts[0].new_page()
    fourth.set_content("<title>Fourth</title>")
    expect(view.get_by_role("tab", name="Fourth", selected=True)).to_be_visible()
    view.mouse.up()
    expect(view.get_by_role("tab", name="Second", selected=True)).to_be_visible()
    fourth.close()
    expect(view.get_by_role("tab")).to_have_text(["Shop", "Second"])
    # By keyboard, and back when a page is closed.
    view.get_by_role("tab", name="Shop").click()
    expect(view.get_by_role("tab", name="Shop", selected=True)).to_be_focused()
    view.keyboard.press("ArrowRight")
    expect(view.get_by_role("tab", name="Second", selected=True)).to_be_focused()
    second.close()
    expect(view.get_by_role("tab")).to_have_text(["Shop"])
    session.sees(RED)
    session.page.close()
    expect(view.get_by_role("alert")).to_have_text("The session has no page open.")


def test_a_person_goes_on_where_the_test_has_stopped(session: Session):
    """As with a kept session: nobody else answers its dialogs, and its end is told."""
    session.page.evaluate(
        "document.querySelector('#buy').onclick = () => { document.title = prompt('Which tea?', 'green') }"
    )
    place = session.at("#buy")
    session.browser.close()
    session.view.mouse.click(*place)
    dialog = session.view.get_by_role("dialog", name="The page asks:")
    expect(dialog).to_contain_text("Which tea?")
    expect(dialog.get_by_role("textbox", name="Answer")).to_have_value("green")
    dialog.get_by_role("textbox", name="Answer").fill("black")
    dialog.get_by_role("button", name="OK").click()
    expect(session.view.get_by_role("tab", name="black")).to_be_visible()
    expect(dialog).not_to_be_visible()

    # Nor does one stay in the way of what is shown next.
    session.view.mouse.click(*place)
    expect(dialog).to_be_visible()
    in_thread(_open_page(session.cdp_url))
    expect(dialog).not_to_be_visible()
    expect(session.view.get_by_role("tab", name="about:blank", selected=True)).to_be_visible()

    session.end()
    expect(session.view.get_by_role("alert")).to_contain_text("The session is over. It ran for")
    expect(session.view.get_by_role("status")).to_have_text("Over")
    # Also to who comes later.
    session.view.reload()
    expect(session.view.get_by_role("alert")).to_contain_text("The session is over.")


async def _open_page(cdp_url: str) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(cdp_url) as socket:
        await socket.send_json({"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}})
        await socket.receive(10)


def test_read_only_and_a_backend_that_dies(backends: Callable[..., Backend], playwright: Playwright, view: Page):
    session = Session(backends(), playwright, view, session={"live_view": {"read_only": True}})
    expect(view.get_by_role("status")).to_have_text("Live, read only")
    expect(view.get_by_text("Click into the picture")).not_to_be_visible()
    view.mouse.click(*session.at("#buy"))
    # Nor does it help to leave the page aside.
    view.evaluate("() => { readOnly = false; send({do: 'text', text: 'x'}) }")
    session.page.locator("#search").focus()
    view.evaluate("send({do: 'text', text: 'x'})")
    session.page.evaluate("document.body.style.background = 'green'")
    session.sees(GREEN)
    assert (session.page.inner_text("#buy"), session.page.input_value("#search")) == ("Buy", "")
    session.backend.stop(signal.SIGKILL)
    expect(view.get_by_role("alert")).to_have_text("The local backend is gone, and this session with it.")


async def _messages(url: str, count: int, *sent: object, then: Callable[[], None] | None = None) -> list[Any]:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{url}/socket") as socket:
        for each in sent:
            await socket.send_json(each)
        received = [await socket.receive(10) for _ in range(count)]
        if then:
            await asyncio.to_thread(then)
        return [message.json() if message.type is aiohttp.WSMsgType.TEXT else message.data for message in received]


def test_a_viewer_can_do_no_harm_and_keeps_the_session_alive(chromium: Backend):
    made = chromium.create(session={"timeout": {"idle_timeout": 0.04}})  # minutes
    held = dict.fromkeys(("altKey", "ctrlKey", "metaKey", "shiftKey"), False)
    mouse = {"do": "mouse", "x": 1e300, "y": -1, "modifiers": held}
    mouse |= {"type": {}, "button": 7, "buttons": "", "clickCount": 0, "deltaX": 0, "deltaY": 0}
    sent = [
        1,
        [],
        {},
        {"do": "mouse"},
        mouse,
        {**mouse, "x": "a" * 1000},
        {**mouse, "x": 10**400},
        {"do": "show", "page": "?"},
        {"do": "Page.close"},
    ]

    def stay() -> None:
        time.sleep(3)
        assert chromium.status(made["id"]) == "running"
        assert len(chromium("GET", f"/v1/sessions/{made['id']}/pages").json()) == 1

    hello, *rest = in_thread(_messages(made["live_view_url"], 4, *sent, then=stay))
    assert hello == {"readOnly": False}  # and no id, by which more can be had than is seen here
    assert any(isinstance(each, bytes) and each.startswith(b"\xff\xd8") for each in rest)
    until(lambda: chromium.status(made["id"]) == "completed")


def test_an_address_for_one_viewer(records: Backend):
    url = records.create(session={"live_view": {"one_time_url": True}})["live_view_url"]
    assert "--browserless" in in_thread(_messages(url, 1))[0]["over"]
    assert "one viewer" in in_thread(_messages(url, 1))[0]["over"]
    url = records.create()["live_view_url"]
    assert [in_thread(_messages(url, 1))[0]["over"][:7] for _ in range(2)] == ["There i"] * 2


def test_who_may_look(records: Backend):
    """Who has the address, on this machine; no page of another origin, and no name that was made to point here."""
    created = records.create()
    path = urlsplit(created["live_view_url"]).path
    assert created["id"] not in path
    assert records.key not in path
    without_key = {"anchor-api-key": None}

    def status(path: str, **headers: Any) -> int:
        return records("GET", path, headers={**without_key, **headers}).status_code

    page = records("GET", path, headers=without_key)
    assert page.status_code == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert created["id"] not in page.text
    assert status(path[:-1]) == status(f"/live/{created['id']}") == status(f"/live/{created['id']}/socket") == 401
    assert status(path, Host="evil.example") == status(f"{path}/socket", Host="evil.example") == 403
    assert status(path, Origin=records.url) == 403
    not_a_websocket = 400
    assert status(f"{path}/socket") == not_a_websocket
    assert status(f"{path}/socket", Origin=records.url) == not_a_websocket
    port = urlsplit(records.url).port
    assert status(f"{path}/socket", Origin=f"http://localhost:{port}", Host=f"localhost:{port}") == not_a_websocket
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1",
        f"https://127.0.0.1:{port}",
        f"http://localhost:{port}",
    ):
        assert status(f"{path}/socket", Origin=origin) == 403
