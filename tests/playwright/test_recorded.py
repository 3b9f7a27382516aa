"""--anchor-context recorded: a test's first context is the session's own."""

from __future__ import annotations

import pytest
from switched import ASYNC, Suite

pytestmark = pytest.mark.slow

TEST = """
import pytest

STATE = {
    "cookies": [{"name": "a", "value": "1", "url": "http://site.test"}],
    "origins": [{"origin": "http://site.test", "localStorage": [{"name": "n", "value": "v"}]}],
}
OPTIONS = {
    "user_agent": "me/1", "locale": "de-DE", "timezone_id": "Asia/Tokyo", "viewport": {"width": 700, "height": 500},
    "device_scale_factor": 2, "color_scheme": "dark", "reduced_motion": "reduce", "bypass_csp": True,
    "geolocation": {"latitude": 1, "longitude": 2}, "permissions": ["geolocation"],
    "extra_http_headers": {"x-mine": "yes"}, "base_url": "http://site.test/", "storage_state": STATE,
}
SEEN = '''async () => ({
    agent: navigator.userAgent, language: navigator.language, zone: Intl.DateTimeFormat().resolvedOptions().timeZone,
    number: (1.5).toLocaleString(), size: [innerWidth, innerHeight], scale: devicePixelRatio,
    dark: matchMedia("(prefers-color-scheme: dark)").matches, still: matchMedia("(prefers-reduced-motion)").matches,
    csp: (() => { try { return eval("1 + 1") } catch (e) { return 0 } })(), cookie: document.cookie,
    item: localStorage.n,
})'''
EXPECTED = {
    "agent": "me/1", "language": "de-DE", "zone": "Asia/Tokyo", "number": "1,5", "size": [700, 500], "scale": 2,
    "dark": True, "still": True, "csp": 2, "cookie": "a=1", "item": "v",
}


def answer(headers):
    def answer(route):
        headers.append(route.request.headers)
        body = "<meta http-equiv=content-security-policy content=\\"script-src 'none'\\">"
        return route.fulfill(body=body, content_type="text/html")
    return answer


@pytest.mark.browser_context_args(**OPTIONS)
def test_options(context, page, browser):
    headers = []
    context.route("**", answer(headers))
    page.goto("/x")
    assert page.url == "http://site.test/x"
    assert page.evaluate(SEEN) == EXPECTED
    assert headers[0]["x-mine"] == "yes"
    assert browser.contexts == [context] and context.pages == [page]
    with page.expect_popup() as popup:
        page.evaluate("open('/y')")
    assert popup.value.evaluate("1 + 1") == 2


def test_defaults_and_close(context, page, browser):
    assert page.evaluate("[innerWidth, innerHeight]") == [1280, 720]
    second = context.new_page()
    assert len(context.pages) == 2
    context.close()
    with pytest.raises(Exception, match="has been closed"):
        context.new_page()
    assert browser.is_connected()
    other = browser.new_context()
    assert other is not context
    assert other.new_page().evaluate("1 + 1") == 2


@pytest.mark.browser_context_args(has_touch=True, http_credentials={"username": "a", "password": "b"})
def test_refused(page):
    pass


@pytest.mark.browser_context_args(java_script_enabled=False)
def test_no_script(page):
    page.set_content("<noscript>none</noscript><script>document.body.append('some')</script>")
    assert page.inner_text("body") == "none"


def test_page_of_browser(browser):
    page = browser.new_page(user_agent="me/2")
    assert page.evaluate("navigator.userAgent") == "me/2"
    assert page.context is browser.contexts[0]
"""
ASYNC_TEST = """
import pytest

@pytest.mark.browser_context_args(user_agent="me/1", base_url="http://site.test/")
async def test_it(context, page, browser):
    await context.route("**", lambda route: route.fulfill(body="<title>hello</title>", content_type="text/html"))
    await page.goto("/x")
    assert page.url == "http://site.test/x"
    assert await page.evaluate("navigator.userAgent") == "me/1"
    async with page.expect_popup() as info:
        await page.evaluate("open('/y')")
    popup = await info.value
    assert browser.contexts == [context] and context.pages == [page, popup]
    await context.close()
    assert browser.is_connected()
"""


def test_the_sessions_own_context(suite: Suite):
    suite.write(TEST)
    run = suite.run("test", "--anchor-context", "recorded", "--tracing", "on")
    assert run.outcomes == {"passed": 4, "error": 1}, run.out
    assert "cannot be given has_touch, http_credentials any more" in run.out
    assert len(list(suite.folder.rglob("trace*.zip"))) == 3  # a page of browser.new_page() is not pytest-playwright's


def test_the_sessions_own_context_in_asyncio(suite: Suite):
    suite.write(ASYNC_TEST)
    run = suite.run("test", "--anchor-context", "recorded", plugins=ASYNC)
    assert run.outcomes == {"passed": 1}, run.out


def test_it_goes_with_a_session_per_test_only(suite: Suite):
    run = suite.run("worker", "--anchor-context", "recorded")
    assert run.status == pytest.ExitCode.USAGE_ERROR
    assert "--anchor-context recorded needs --anchor-playwright test" in run.err
