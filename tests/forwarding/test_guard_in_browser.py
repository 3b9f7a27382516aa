"""A page from elsewhere attacks the test machine's servers, in the browser that forwards to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page
from servers import Servers

pytestmark = pytest.mark.slow

PUBLIC = "http://shop.example"

# Each attempt gives "reached" or what stopped it; `no-referrer` leaves the browser with nothing to say of the origin.
ATTEMPTS = {
    "fetch": "fetch(url).then(() => 'reached', e => e.message)",
    "fetch without cors": "fetch(url, {mode: 'no-cors'}).then(() => 'reached', e => e.message)",
    "fetch without a referrer": "fetch(url, {mode: 'no-cors', referrerPolicy: 'no-referrer'}).then(() => 'reached', e => e.message)",
    "post without cors": "fetch(url, {method: 'POST', mode: 'no-cors', referrerPolicy: 'no-referrer'}).then(() => 'reached', e => e.message)",
    "preflight": "fetch(url, {method: 'PUT', headers: {'x-mine': '1'}}).then(() => 'reached', e => e.message)",
    "beacon": "(navigator.sendBeacon(url, 'x'), new Promise(r => setTimeout(r, 500)))",
    "image": "element('img')",
    "image without a referrer": "element('img', {referrerPolicy: 'no-referrer'})",
    "script": "element('script')",
    "style": "element('link', {rel: 'stylesheet', href: url})",
    "frame": "element('iframe')",
    "frame without a referrer": "element('iframe', {referrerPolicy: 'no-referrer'})",
    "frame of its own text": "element('iframe', {srcdoc: `<img src=${url}>`})",
    "sandboxed frame": "element('iframe', {sandbox: 'allow-scripts', srcdoc: `<meta name=referrer content=no-referrer><img src=${url}>`})",
    "frame without an address": "(() => { const f = document.body.appendChild(document.createElement('iframe')); return f.contentWindow.fetch(url, {mode: 'no-cors', referrerPolicy: 'no-referrer'}).then(() => 'reached', e => e.message) })()",
    "object": "element('object', {data: url})",
    "worker": """new Promise(r => { const w = new Worker(URL.createObjectURL(new Blob([`fetch('${url}', {mode: 'no-cors'})
        .then(() => postMessage('reached'), e => postMessage(e.message))`]))); w.onmessage = e => r(e.data) })""",
    "redirect": "fetch('/redirect', {mode: 'no-cors'}).then(() => 'reached', e => e.message)",
    "event source": "new Promise(r => { const e = new EventSource(url); e.onopen = () => r('reached'); e.onerror = () => r('stopped') })",
    "web socket": "new Promise(r => { const s = new WebSocket(url.replace('http', 'ws')); s.onopen = () => r('reached'); s.onerror = () => r('stopped') })",
    "web socket of a worker": """new Promise(r => { const w = new Worker(URL.createObjectURL(new Blob([`const s = new WebSocket('${url.replace('http', 'ws')}');
        s.onopen = () => postMessage('reached'); s.onerror = () => postMessage('stopped')`]))); w.onmessage = e => r(e.data) })""",
    "our own binding": """(() => { for (const name of Object.getOwnPropertyNames(window).filter(n => n.startsWith('__anchor')))
        window[name](JSON.stringify([1, 'websocket', url.replace('http', 'ws'), 'agent', []])); return new Promise(r => setTimeout(r, 500)) })()""",
}
ELEMENT = """
    const element = (name, more) => new Promise(resolve => {
        const one = document.createElement(name);
        one.onload = () => resolve('loaded'); one.onerror = () => resolve('stopped');
        Object.assign(one, name === 'script' || name === 'img' || name === 'iframe' ? {src: url} : {}, more);
        if (more?.srcdoc) one.removeAttribute('src');
        document.body.append(one); setTimeout(resolve, 700, 'nothing');
    });
"""


@pytest.fixture(scope="module")
def attacker(far_browser: Browser, servers: Servers) -> Iterator[Page]:
    context = far_browser.new_context()
    page = context.new_page()
    redirect = {"status": 302, "headers": {"Location": f"{servers.url}/target", "Access-Control-Allow-Origin": "*"}}
    page.route(f"{PUBLIC}/**", lambda route: route.fulfill(body="<p>shop</p>", content_type="text/html"))
    page.route(f"{PUBLIC}/redirect", lambda route: route.fulfill(**redirect))
    page.goto(f"{PUBLIC}/")
    yield page
    context.close()


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_page_from_elsewhere_reaches_nothing(attacker: Page, servers: Servers, name: str):
    before = len(servers.requests)
    attempt = f"async url => {{ {ELEMENT} return {ATTEMPTS[name]} }}"
    outcome = attacker.evaluate(attempt, f"{servers.url}/target")
    assert [request.path for request in servers.requests[before:]] == []
    assert outcome != "reached"


def test_it_may_send_its_user_there(attacker: Page, servers: Servers):
    with attacker.expect_popup() as opened:
        attacker.evaluate(f"open('{servers.url}/popup')")
    assert opened.value.text_content("body") == "popup"
    opened.value.close()


def test_a_page_of_the_suite_shows_one_from_elsewhere(far_browser: Browser, servers: Servers):
    context = far_browser.new_context()
    script = f"<script>fetch('{servers.url}/target', {{mode: 'no-cors'}}).finally(() => parent.postMessage('tried', '*'))</script>"
    context.route(f"{PUBLIC}/**", lambda route: route.fulfill(body=script, content_type="text/html"))
    page = context.new_page()
    page.goto(f"{servers.url}/hello")
    before = servers.count("/target")
    attempt = "url => new Promise(r => { onmessage = e => r(e.data); const f = document.createElement('iframe'); f.src = url; document.body.append(f) })"
    assert page.evaluate(attempt, f"{PUBLIC}/frame") == "tried"
    assert servers.count("/target") == before
    context.close()
