"""The process that forwards, started as the broker does, and what the run hears where it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from aiohttp import web
from processes import environment, stop
from real_runs import processes_in

from pytest_anchor.broker import forwarding as forwarding_module
from pytest_anchor.broker.forwarding import Forwarding
from pytest_anchor.forwarding import process
from pytest_anchor.forwarding.guard import Hosts

pytestmark = pytest.mark.slow

KEY = "sk-forwarding-0123456789"
HOSTS = ("localhost",)


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Callable[..., str]]:
    """Start a browser that refuses some calls, or closes the connection over them; gives the URL of its CDP."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runners: list[web.AppRunner] = []

    def start(refused: dict[str, str], connections: list[str] | None = None) -> str:
        async def serve(request: web.Request) -> web.WebSocketResponse:
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            if connections is not None:
                connections.append(request.path)
            async for message in socket:
                call = json.loads(message.data)
                if (text := refused.get(call["method"])) == "close":
                    await socket.close()
                    break
                answer = {"error": {"message": text}} if text else {"result": {}}
                with suppress(ConnectionError):  # the process was killed meanwhile
                    await socket.send_json({"id": call["id"], **answer})
            return socket

        async def listen() -> int:
            app = web.Application()
            app.router.add_get("/cdp", serve)
            runners.append(web.AppRunner(app, shutdown_timeout=0.1))
            await runners[-1].setup()
            await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
            port: int = runners[-1].addresses[0][1]
            return port

        port = asyncio.run_coroutine_threadsafe(listen(), loop).result(10)
        return f"ws://127.0.0.1:{port}/cdp?apiKey={KEY}"

    yield start
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.3), loop).result(10)  # connections are closed one step later
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def forwarding(tmp_path: Path, browser, until) -> Iterator[Forwarding]:
    forwarding = Forwarding(HOSTS, tmp_path)
    yield forwarding
    forwarding.close()
    until(lambda: not processes_in(tmp_path))


def test_a_browser_that_takes_it(forwarding: Forwarding, browser, tmp_path: Path):
    url = browser({})
    assert forwarding.attach("n", url, 30) == ""
    assert forwarding.attach("n", url, 30) == ""
    (pid,) = processes_in(tmp_path)
    for name in ("cmdline", "environ"):
        assert KEY.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    forwarding.drop(["n", "unknown"])
    assert forwarding.attach("n", url, 30) == ""


def test_no_hosts(tmp_path: Path):
    assert Forwarding([], tmp_path).attach("n", "ws://127.0.0.1:9/", 30) == ""
    assert not processes_in(tmp_path)


def test_a_browser_that_refuses_is_reported_once(forwarding: Forwarding, browser):
    problem = forwarding.attach("n", browser({"Fetch.enable": "'Fetch.enable' wasn't found"}), 30)
    assert "not possible ('Fetch.enable' wasn't found)" in problem
    assert "--anchor-forward off" in problem
    assert forwarding.attach("m", browser({"Fetch.enable": "'Fetch.enable' wasn't found"}), 30) == ""


def test_a_failed_connection_shows_no_key(forwarding: Forwarding, tmp_path: Path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        refused = forwarding.attach("n", f"ws://127.0.0.1:{server.server_port}/cdp?apiKey={KEY}", 30)
        server.shutdown()
        thread.join()
    nowhere = forwarding.attach("m", f"ws://127.0.0.1:{server.server_port}/cdp?apiKey={KEY}", 30)
    assert "not possible (HTTP 403)" in refused
    assert "not possible (C" in nowhere  # "Connect call failed", or "Connection refused"
    assert KEY not in refused + nowhere + (tmp_path / "forwarding.log").read_text()


def test_without_aiohttp(forwarding: Forwarding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "aiohttp.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    assert "pip install 'pytest-anchor[playwright]'" in forwarding.attach("n", "ws://127.0.0.1:9/", 30)


def test_it_is_killed(forwarding: Forwarding, browser, tmp_path: Path, until):
    connections: list[str] = []
    assert forwarding.attach("n", browser({}, connections), 30) == ""
    (pid,) = processes_in(tmp_path)
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(connections) == 2)  # another has attached to the same browser
    assert pid not in processes_in(tmp_path)


def test_what_was_asked_as_it_was_killed_is_asked_again(forwarding: Forwarding, browser, tmp_path: Path, until):
    connections: list[str] = []
    assert forwarding.attach("n", browser({}, connections), 30) == ""
    (pid,) = processes_in(tmp_path)
    stop(pid)
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    assert forwarding.attach("m", browser({}, connections), 30) == ""
    killer.join()
    until(lambda: len(connections) == 3)  # the first browser's, again, and the second's


def test_a_process_that_dies_as_it_is_started_is_told(forwarding: Forwarding, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(forwarding_module, "_write", fail)
    assert "did not do so (Broken pipe)" in forwarding.attach("n", "ws://127.0.0.1:1/", 30)


def test_a_process_that_is_stopped_holds_no_end(forwarding: Forwarding, browser, tmp_path: Path, until):
    assert forwarding.attach("n", browser({}), 30) == ""
    (pid,) = processes_in(tmp_path)
    stop(pid)
    for number in range(5000):  # more than a pipe takes
        forwarding.drop([f"some-other-session-{number}"])
    until(lambda: pid not in processes_in(tmp_path))


def test_a_process_that_hangs_is_waited_for_once(forwarding: Forwarding, browser, tmp_path: Path, until):
    assert forwarding.attach("n", browser({}), 30) == ""
    (pid,) = processes_in(tmp_path)
    stop(pid)
    assert "it has not answered in 0.5 s" in forwarding.attach("m", browser({}), 0.5)
    until(lambda: pid not in processes_in(tmp_path))
    assert forwarding.attach("o", browser({}), 30) == ""


def test_a_browser_that_does_not_answer_is_waited_for_once_in_a_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process, "ATTACH_TIMEOUT", 0.2)

    async def attach(port: int) -> list[str]:
        forwarder = process.Forwarder(Hosts(HOSTS))
        return [await forwarder.attach(nonce, f"ws://127.0.0.1:{port}/") for nonce in "nm"]

    with socket.create_server(("127.0.0.1", 0)) as silent:
        first, second = asyncio.run(attach(silent.getsockname()[1]))
    assert "was not possible (TimeoutError)" in first
    assert second == first


def test_after_its_end_nothing_is_asked_of_it(forwarding: Forwarding, browser):
    assert forwarding.attach("n", browser({}), 30) == ""
    forwarding.close()
    forwarding.drop(["n"])
    assert forwarding.attach("m", browser({}), 30) == ""


def test_a_connection_that_is_lost_is_made_again(forwarding: Forwarding, browser, until):
    connections: list[str] = []
    assert forwarding.attach("n", browser({"Target.getBrowserContexts": "close"}, connections), 30) == ""
    forwarding.note_contexts("n", None, 30)
    until(lambda: len(connections) == 2)


def test_it_goes_with_the_broker(browser, tmp_path: Path, until):
    script = (
        "import os, pathlib, signal, sys; from pytest_anchor.broker.forwarding import Forwarding\n"
        "print(repr(Forwarding(['localhost'], pathlib.Path(sys.argv[1])).attach('n', sys.argv[2], 30)), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", script, str(tmp_path), browser({})]
    broker = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert broker.stdout == "''\n", broker.stderr
    until(lambda: not processes_in(tmp_path))
