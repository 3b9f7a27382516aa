"""Abilities of Playwright, one test each: what passes with a browser launched here should pass with an Anchor session.

It is a suite for pytest-playwright, run by hand: `pytest -p pytest_playwright.pytest_playwright --anchor-local
--anchor-playwright worker tests/playwright/probes.py` (or `test`) shows what a session can do. Without the last two,
and with the browsers of `playwright install`, it shows what a launch can.
"""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Error, expect

HTML = "<!doctype html><title>probe</title><h1>Hello</h1><button onclick=\"this.textContent='done'\">press</button>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.partition("?")[0]
        more = {}
        status, kind, body = 200, "text/html", HTML.encode()
        if path == "/file":
            more, body, kind = {"Content-Disposition": "attachment; filename=some.txt"}, b"bytes", "text/plain"
        elif path == "/private" and not self.headers.get("Authorization"):
            status, more, body = 401, {"WWW-Authenticate": "Basic realm=x"}, b"no"
        elif path == "/cookie":
            more, body = {"Set-Cookie": "h=1; HttpOnly"}, b"set"
        elif path == "/redirect":
            status, more, body = 302, {"Location": "/"}, b""
        elif path == "/echo":
            body, kind = json.dumps(dict(self.headers)).encode(), "application/json"
        elif path == "/worker.js":
            body, kind = b"onmessage = event => postMessage(event.data * 2)", "text/javascript"
        elif path == "/sw.js":
            body, kind = b"onfetch = event => event.respondWith(new Response('from sw'))", "text/javascript"
            body += b"\nonactivate = event => event.waitUntil(clients.claim())"
        self._answer(status, kind, body, more)

    def do_POST(self):
        self._answer(200, "text/plain", self.rfile.read(int(self.headers["Content-Length"])), {})

    def _answer(self, status, kind, body, more):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


@pytest.fixture(scope="session")
def site():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def own(browser):
    """Contexts with options of the probe's own."""
    contexts = []

    def own(**options):
        contexts.append(browser.new_context(**options))
        return contexts[-1]

    yield own
    for context in contexts:
        context.close()


# the page


def test_goto_and_title(page, site):
    assert page.goto(site).status == 200
    assert page.title() == "probe"


def test_click(page, site):
    page.goto(site)
    page.get_by_role("button").click()
    expect(page.get_by_role("button")).to_have_text("done")


def test_fill_and_type(page):
    page.set_content("<input>")
    page.fill("input", "one")
    page.locator("input").press_sequentially(" two")
    assert page.input_value("input") == "one two"


def test_keyboard_shortcut(page):
    page.set_content("<input value=abc>")
    page.focus("input")
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.press("Delete")
    assert page.input_value("input") == ""


def test_mouse_and_wheel(page):
    page.set_content("<div style='height:5000px'>x</div>")
    page.mouse.move(50, 50)
    page.mouse.wheel(0, 500)
    page.wait_for_function("scrollY > 0")


def test_hover(page):
    page.set_content("<b onmouseover='this.id=1'>x</b>")
    page.hover("b")
    assert page.locator("b").get_attribute("id") == "1"


def test_drag_and_drop(page):
    page.set_content("""<i id=a draggable=true>a</i><p id=b style='width:99px;height:99px'
        ondragover='event.preventDefault()' ondrop='this.textContent="dropped"'>b</p>""")
    page.drag_and_drop("#a", "#b")
    expect(page.locator("#b")).to_have_text("dropped")


def test_select_and_check(page):
    page.set_content("<select><option>a<option>b</select><input type=checkbox>")
    page.select_option("select", "b")
    page.check("input")
    assert page.input_value("select") == "b"
    assert page.is_checked("input")


def test_evaluate_and_handle(page):
    assert page.evaluate("([a, b]) => a + b", [1, 2]) == 3
    assert page.evaluate_handle("({a: [1]})").get_property("a").json_value() == [1]


def test_init_script(page, site):
    page.add_init_script("window.early = 1")
    page.goto(site)
    assert page.evaluate("early") == 1


def test_add_script_and_style(page):
    page.add_script_tag(content="window.added = 1")
    page.add_style_tag(content="body { color: rgb(1, 2, 3) }")
    assert page.evaluate("[added, getComputedStyle(document.body).color]") == [1, "rgb(1, 2, 3)"]


def test_expose_function(page):
    page.expose_function("twice", lambda number: 2 * number)
    assert page.evaluate("twice(21)") == 42


def test_expose_binding(page):
    page.expose_binding("where", lambda source: source["frame"].url)
    assert page.evaluate("where()") == "about:blank"


def test_dialogs(page):
    seen = []
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.accept("yes")))
    assert page.evaluate("prompt('well?')") == "yes"
    assert seen == ["well?"]


def test_console_and_errors(page):
    messages, errors = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: errors.append(error.message))
    page.evaluate("console.log('said'); setTimeout(() => { throw new Error('raised') })")
    page.wait_for_timeout(100)
    assert (messages, errors) == (["said"], ["raised"])


def test_popup(page):
    with page.expect_popup() as popup:
        page.evaluate("open('about:blank')")
    assert popup.value.opener() == page


def test_frames(page, site):
    page.goto(site)
    page.evaluate("document.body.append(Object.assign(document.createElement('iframe'), {src: '/'}))")
    page.frame_locator("iframe").get_by_role("button").click()
    assert len(page.frames) == 2


def test_history(page, site):
    page.goto(site)
    page.goto(site + "/?2")
    page.go_back()
    assert page.url == site + "/"
    page.go_forward()
    page.reload()
    assert page.url == site + "/?2"


def test_wait_for_events(page, site):
    with page.expect_response("**/?x") as response, page.expect_request("**/?x"):
        page.goto(site + "/?x")
    assert response.value.ok


def test_locator_assertions(page, site):
    page.goto(site)
    expect(page.locator("h1")).to_be_visible()
    expect(page).to_have_title("probe")
    expect(page).to_have_url(re.compile("localhost"))


def test_aria_snapshot(page, site):
    page.goto(site)
    assert 'heading "Hello"' in page.locator("body").aria_snapshot()


def test_screenshots(page, site, tmp_path):
    page.goto(site)
    assert page.screenshot(path=tmp_path / "page.png").startswith(b"\x89PNG")
    assert page.locator("h1").screenshot(type="jpeg")[:2] == b"\xff\xd8"
    assert page.screenshot(full_page=True, mask=[page.locator("h1")])


def test_pdf(page, tmp_path):
    page.set_content(HTML)
    assert page.pdf(path=tmp_path / "page.pdf").startswith(b"%PDF")


def test_clock(page):
    page.clock.install(time=0)
    page.set_content("x")
    page.clock.fast_forward("01:00")
    assert page.evaluate("Date.now()") >= 60_000


def test_request_gc(page):
    page.request_gc()


def test_coverage_by_protocol(page, site):
    session = page.context.new_cdp_session(page)
    session.send("Profiler.enable")
    session.send("Profiler.startPreciseCoverage")
    page.goto(site)
    assert "result" in session.send("Profiler.takePreciseCoverage")


def test_workers(page, site):
    page.goto(site)
    with page.expect_worker() as worker:
        page.evaluate("window.w = new Worker('/worker.js')")
    assert worker.value.evaluate("1 + 1") == 2
    assert page.evaluate("new Promise(r => { w.onmessage = e => r(e.data); w.postMessage(21) })") == 42


def test_service_worker(page, site):
    page.goto(site)
    page.evaluate("navigator.serviceWorker.register('/sw.js').then(() => navigator.serviceWorker.ready)")
    page.wait_for_function("navigator.serviceWorker.controller")
    assert page.evaluate("fetch('/any').then(answer => answer.text())") == "from sw"
    assert page.context.service_workers


def test_file_chooser(page, tmp_path):
    (tmp_path / "a.txt").write_text("content")
    page.set_content("<input type=file>")
    with page.expect_file_chooser() as chooser:
        page.click("input")
    chooser.value.set_files(tmp_path / "a.txt")
    assert page.evaluate("document.querySelector('input').files[0].text()") == "content"


def test_upload_buffers(page):
    page.set_content("<input type=file multiple>")
    files = [{"name": f"{n}.csv", "mimeType": "text/csv", "buffer": b"a,b"} for n in range(2)]
    page.set_input_files("input", files)
    assert page.evaluate("[...document.querySelector('input').files].map(f => f.type)") == ["text/csv"] * 2


def test_upload_of_60_mb(page, tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 60_000_000)
    page.set_content("<input type=file>")
    page.set_input_files("input", tmp_path / "big")
    assert page.evaluate("document.querySelector('input').files[0].size") == 60_000_000


def test_upload_of_a_directory(page, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("a")
    page.set_content("<input type=file webkitdirectory>")
    page.set_input_files("input", tmp_path / "sub")
    assert page.evaluate("document.querySelector('input').files[0].webkitRelativePath") == "sub/a.txt"


def test_crash(page):
    with pytest.raises(Error), page.expect_event("crash", timeout=5000):
        page.goto("chrome://crash")
    # it is the page that is gone, not the browser
    assert page.context.browser.is_connected()


def test_close_with_unload_handler(context):
    page = context.new_page()
    page.set_content("<script>onbeforeunload = e => e.preventDefault()</script>")
    page.close()
    assert page.is_closed()


# downloads


def test_download(page, site, tmp_path):
    page.set_content(f"<a href={site}/file>get</a>")
    with page.expect_download() as download:
        page.click("a")
    download.value.save_as(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == b"bytes"
    assert Path(download.value.path()).read_bytes() == b"bytes"
    assert download.value.suggested_filename == "some.txt"


def test_download_failure(page, site):
    page.set_content(f"<a href={site}/file>get</a>")
    with page.expect_download() as download:
        page.click("a")
    assert download.value.failure() is None
    download.value.delete()


# the network


def test_route_fulfill(page):
    page.route("**", lambda route: route.fulfill(json={"a": 1}))
    assert page.goto("http://nowhere.test/").json() == {"a": 1}


def test_route_abort(page):
    page.route("**", lambda route: route.abort())
    with pytest.raises(Error, match="ERR_FAILED"):
        page.goto("http://nowhere.test/")


def test_route_continue(page, site):
    page.route("**", lambda route: route.continue_(headers={**route.request.headers, "x-mine": "1"}))
    page.goto(site + "/echo")
    assert '"x-mine": "1"' in page.inner_text("body")


def test_route_fetch(page, site):
    page.route("**", lambda route: route.fulfill(response=route.fetch(), body="changed"))
    page.goto(site)
    assert page.inner_text("body") == "changed"


def test_route_of_context(context, page):
    context.route(re.compile("nowhere"), lambda route: route.fulfill(body="context"))
    page.goto("http://nowhere.test/")
    assert page.inner_text("body") == "context"


def test_websocket_route(page):
    page.route_web_socket("ws://nowhere.test/", lambda socket: socket.on_message(lambda text: socket.send(text * 2)))
    page.goto("about:blank")
    script = (
        "new Promise(r => { const s = new WebSocket('ws://nowhere.test/'); s.onopen = () => s.send('a');"
        " s.onmessage = e => r(e.data) })"
    )
    assert page.evaluate(script) == "aa"


def test_response_bodies(page, site):
    response = page.goto(site)
    assert "Hello" in response.text()
    assert response.all_headers()["content-type"] == "text/html"
    assert response.request.timing["responseEnd"] >= 0
    assert response.request.sizes()["responseBodySize"] == len(HTML)
    assert response.server_addr()["port"]


def test_redirects(page, site):
    response = page.goto(site + "/redirect")
    assert response.request.redirected_from.url == site + "/redirect"


def test_post_data(page, site):
    page.goto(site)
    with page.expect_request("**/") as request:
        assert page.evaluate("fetch('/', {method: 'POST', body: 'sent'}).then(r => r.text())") == "sent"
    assert request.value.post_data == "sent"


def test_har(own, site, tmp_path):
    context = own(record_har_path=tmp_path / "a.har")
    context.new_page().goto(site)
    context.close()
    assert len(json.loads((tmp_path / "a.har").read_text())["log"]["entries"]) == 1


def test_route_from_har(own, site, tmp_path):
    context = own(record_har_path=tmp_path / "a.har")
    context.new_page().goto(site)
    context.close()
    context = own()
    context.route_from_har(tmp_path / "a.har", not_found="abort")
    page = context.new_page()
    page.goto(site)
    assert page.title() == "probe"


def test_api_request(page, site):
    assert page.request.get(site + "/echo").json()["Host"]


def test_api_request_shares_cookies(context, site):
    context.request.get(site + "/cookie")
    assert [one["name"] for one in context.cookies()] == ["h"]


def test_offline(context, page, site):
    context.set_offline(True)
    with pytest.raises(Error, match="ERR_INTERNET_DISCONNECTED"):
        page.goto(site)


def test_extra_headers(context, page, site):
    context.set_extra_http_headers({"x-mine": "1"})
    page.goto(site + "/echo")
    assert '"x-mine": "1"' in page.inner_text("body")


def test_http_credentials(own, site):
    page = own(http_credentials={"username": "a", "password": "b"}).new_page()
    assert page.goto(site + "/private").status == 200


def test_block_service_workers(own, site):
    page = own(service_workers="block").new_page()
    page.goto(site)
    assert page.evaluate("navigator.serviceWorker.register('/sw.js').then(r => !r || !r.active)")


# contexts


def test_contexts_are_apart(own, site):
    first, second = own(), own()
    first.add_cookies([{"name": "a", "value": "1", "url": site}])
    assert len(first.cookies()) == 1
    assert not second.cookies()


def test_storage_state(own, site, tmp_path):
    context = own()
    page = context.new_page()
    page.goto(site)
    page.evaluate("localStorage.a = 1; document.cookie = 'b=2'")
    context.storage_state(path=tmp_path / "state.json")
    page = own(storage_state=tmp_path / "state.json").new_page()
    page.goto(site)
    assert page.evaluate("[localStorage.a, document.cookie]") == ["1", "b=2"]


def test_indexed_db_in_storage_state(own, site):
    context = own()
    page = context.new_page()
    page.goto(site)
    page.evaluate(
        "new Promise(r => { const q = indexedDB.open('d'); q.onupgradeneeded = () =>"
        " q.result.createObjectStore('s').put(1, 'k'); q.onsuccess = () => { q.result.close(); r() } })"
    )
    state = context.storage_state(indexed_db=True)
    assert state["origins"][0]["indexedDB"]
    assert own(storage_state=state).storage_state(indexed_db=True)["origins"] == state["origins"]


def test_clear_cookies(context, page, site):
    page.goto(site + "/cookie")
    context.clear_cookies()
    assert not context.cookies()


def test_base_url(own, site):
    page = own(base_url=site).new_page()
    page.goto("/")
    assert page.title() == "probe"


def test_viewport(own):
    page = own(viewport={"width": 500, "height": 400}).new_page()
    assert page.evaluate("[innerWidth, innerHeight]") == [500, 400]
    page.set_viewport_size({"width": 600, "height": 300})
    assert page.evaluate("innerWidth") == 600


def test_default_viewport(page):
    assert page.evaluate("[innerWidth, innerHeight]") == [1280, 720]


def test_no_viewport(own):
    assert own(no_viewport=True).new_page().viewport_size is None


def test_device(own, playwright):
    page = own(**playwright.devices["iPhone 13"]).new_page()
    assert "iPhone" in page.evaluate("navigator.userAgent")
    assert page.evaluate("[devicePixelRatio, navigator.maxTouchPoints > 0]") == [3, True]


def test_touch(own):
    page = own(has_touch=True).new_page()
    page.set_content("<b ontouchstart='this.id=1'>x</b>")
    page.tap("b")
    assert page.locator("b").get_attribute("id") == "1"


def test_locale_and_time_zone(own):
    page = own(locale="de-DE", timezone_id="Asia/Tokyo").new_page()
    assert page.evaluate("[(1.5).toLocaleString(), new Date(0).getHours()]") == ["1,5", 9]


def test_geolocation(own, site):
    context = own(geolocation={"latitude": 1, "longitude": 2}, permissions=["geolocation"])
    page = context.new_page()
    page.goto(site)
    script = "new Promise(r => navigator.geolocation.getCurrentPosition(p => r(p.coords.longitude)))"
    assert page.evaluate(script) == 2


def test_permissions(context, page, site):
    page.goto(site)
    context.grant_permissions(["notifications"], origin=site)
    assert page.evaluate("Notification.permission") == "granted"
    context.clear_permissions()


def test_clipboard(own, site):
    page = own(permissions=["clipboard-read", "clipboard-write"]).new_page()
    page.goto(site)
    page.bring_to_front()
    assert page.evaluate("navigator.clipboard.writeText('x').then(() => navigator.clipboard.readText())") == "x"


def test_media(page):
    page.emulate_media(media="print", color_scheme="dark", reduced_motion="reduce", forced_colors="active")
    assert (
        page.evaluate(
            "['print', '(prefers-color-scheme: dark)', '(forced-colors: active)'].map(q => matchMedia(q).matches)"
        )
        == [True] * 3
    )


def test_user_agent(own, site):
    page = own(user_agent="me/1").new_page()
    page.goto(site + "/echo")
    assert '"User-Agent": "me/1"' in page.inner_text("body")


def test_javascript_disabled(own):
    page = own(java_script_enabled=False).new_page()
    page.set_content("<noscript>none</noscript>")
    assert page.inner_text("body") == "none"


def test_bypass_csp(own):
    context = own(bypass_csp=True)
    context.route(
        "**",
        lambda route: route.fulfill(
            body="x", headers={"content-security-policy": "script-src 'none'", "content-type": "text/html"}
        ),
    )
    page = context.new_page()
    page.goto("http://nowhere.test/")
    page.add_script_tag(content="window.added = 1")
    assert page.evaluate("added") == 1


def test_strict_selectors(own):
    page = own(strict_selectors=True).new_page()
    page.set_content("<b>1</b><b>2</b>")
    with pytest.raises(Error, match="strict mode"):
        page.text_content("b")


def test_context_init_script_and_binding(own):
    context = own()
    context.add_init_script("window.early = 1")
    context.expose_function("ours", lambda: "ours")
    assert context.new_page().goto("about:blank") is None
    assert context.pages[0].evaluate("ours()") == "ours"


def test_tracing(context, page, site, tmp_path):
    try:
        context.tracing.start(screenshots=True, snapshots=True, sources=True)
    except Error:  # pytest-playwright's own is under way
        context.tracing.start_chunk()
    page.goto(site)
    context.tracing.stop(path=tmp_path / "trace.zip")
    assert (tmp_path / "trace.zip").stat().st_size > 1000


def test_browser_tracing(browser, page):
    browser.start_tracing(page=page)
    page.set_content("x")
    assert b"traceEvents" in browser.stop_tracing()


def test_browser_protocol(browser):
    assert browser.new_browser_cdp_session().send("Browser.getVersion")["product"]


def test_version_and_type(browser):
    assert browser.version[0].isdigit()
    assert browser.browser_type.name == "chromium"


def test_close_events(browser):
    context = browser.new_context()
    page, seen = context.new_page(), []
    page.on("close", lambda _page: seen.append("page"))
    context.on("close", lambda _context: seen.append("context"))
    context.close()
    assert seen == ["page", "context"]


def test_contexts_of_a_new_browser(launch_browser):
    browser = launch_browser()
    assert browser.contexts == []  # a session has its own context, see docs/playwright.md
    browser.close()


def test_new_page_of_browser(browser):
    page = browser.new_page(locale="fr-FR")
    assert page.evaluate("navigator.language") == "fr-FR"
    page.close()
    assert page.context not in browser.contexts


def test_event_on_context(context, site):
    seen = []
    context.on("page", lambda _page: seen.append("page"))
    context.on("request", lambda _request: seen.append("request"))
    context.on("console", lambda message: seen.append(message.text))
    page = context.new_page()
    page.goto(site)
    page.evaluate("console.log('said')")
    time.sleep(0.05)
    page.wait_for_timeout(50)
    assert seen == ["page", "request", "said"]
