"""A suite for pytest-playwright whose browsers are elsewhere, and whose server is on this machine's localhost."""

from __future__ import annotations

import pytest
from switched import ASYNC, Suite

pytestmark = pytest.mark.slow

SERVER = """
    import threading
    from base64 import b64encode
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    import pytest

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = "Basic " + b64encode(b"user:pass").decode()
            if self.path == "/secret" and self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic realm=x")
                self.end_headers()
                return
            body = f"<title>{self.path}</title>".encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    @pytest.fixture(scope="session")
    def base_url():
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://localhost:{server.server_port}"
            server.shutdown()
"""

SYNC_TESTS = """
    def test_pages(page):
        page.goto("/sync")
        assert page.title() == "/sync"

    def test_credentials(new_context, base_url):
        context = new_context(http_credentials={"username": "user", "password": "pass"})
        page = context.new_page()
        page.goto("/secret")
        assert page.title() == "/secret"
"""

ASYNC_TESTS = """
    async def test_pages(page):
        await page.goto("/async")
        assert await page.title() == "/async"

    async def test_credentials(new_context, base_url):
        context = await new_context(http_credentials={"username": "user", "password": "pass"})
        page = await context.new_page()
        await page.goto("/secret")
        assert await page.title() == "/secret"
"""

PAGE = """
    def test_own_page(anchor_page, base_url):
        anchor_page.goto(f"{base_url}/own")
        assert anchor_page.title() == "/own"
"""


@pytest.fixture
def suite(suite: Suite) -> Suite:
    suite.write(SERVER, "conftest.py")
    return suite


def test_a_suite_reaches_its_own_server(suite: Suite):
    suite.write(SYNC_TESTS)
    run = suite.run_process("test", "--anchor-forward", "on")
    assert run.outcomes == {"passed": 2}, run.out


def test_an_asynchronous_suite_and_a_page_of_ours_do(suite: Suite):
    suite.write(ASYNC_TESTS)
    run = suite.run_process("worker", "--anchor-forward", "on", plugins=ASYNC)
    assert run.outcomes == {"passed": 2}, run.out
    suite.write(PAGE)
    run = suite.run_process("off", "--anchor-forward", "on", plugins=())
    assert run.outcomes == {"passed": 1}, run.out


def test_without_forwarding_it_does_not(suite: Suite):
    suite.write(PAGE)
    run = suite.run_process("off", "--anchor-forward", "off", plugins=())
    assert run.outcomes == {"failed": 1}, run.out
    assert "ERR_CONNECTION_REFUSED" in run.out or "ERR_ADDRESS_INVALID" in run.out
