"""A browser that cannot reach this machine's localhost, as one in a cloud: its local backend has a network of its own.

As a program: makes that network, and runs the rest of the command line in it.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path

import requests
from ports import unused_port

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
# Where there are no such networks: a Chromium to which this machine's names lead nowhere.
RULES = "MAP localhost 0.0.0.1, MAP *.localhost 0.0.0.1, MAP 127.0.0.1 0.0.0.1, MAP [::1] 0.0.0.1"


def enter_network() -> None:
    """Move this process into a network that has only a loopback interface, of its own."""
    flags, user, group = CLONE_NEWNET, os.geteuid(), os.getegid()
    if user:
        flags |= CLONE_NEWUSER
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "no network of its own")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


def has_networks() -> bool:
    """Whether this machine lets this user make networks."""
    return (
        subprocess.run([sys.executable, __file__, "true"], capture_output=True, timeout=20, check=False).returncode == 0
    )


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
    """Pass on what is read, each piece *delay* seconds after it came."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](64)

    async def write() -> None:
        while True:
            due, data = await pieces.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not data:
                break
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()

    writing = asyncio.ensure_future(write())
    with suppress(OSError):
        while data := await reader.read(1 << 18):
            await pieces.put((loop.time() + delay, data))
    await pieces.put((loop.time() + delay, b""))
    with suppress(OSError):
        await writing


class Relay:
    """Passes on TCP connections from a port of this machine to a Unix socket, or to another port of this machine.

    :param delay: seconds that everything takes longer, each way.
    """

    def __init__(self, target: str | int, port: int = 0, delay: float = 0.0) -> None:
        self._target = target
        self.delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        start = asyncio.start_server(self._join, "127.0.0.1", port)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._target, str):
                there = await asyncio.open_unix_connection(self._target)
            else:
                there = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(_relay(reader, there[1], self.delay), _relay(there[0], writer, self.delay))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in (writer, there[1]):
                one.transport.abort()

    def close(self) -> None:
        async def stop() -> None:
            await asyncio.sleep(0.01)  # what is accepted becomes a connection, as it cannot once its server is closed
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Elsewhere:
    """A local backend whose browsers cannot reach this machine's localhost; ``url`` and ``key`` are as of any other.

    :param delay: seconds that everything takes to it, and as long back.
    :param isolated: whether that is so; for comparison, not.
    """

    def __init__(self, delay: float = 0.0, *, isolated: bool = True) -> None:
        self.temp = Path(tempfile.mkdtemp(prefix="pae-", dir="/tmp"))  # short, for Chromium's socket
        self.relay: Relay | None = None
        command = [sys.executable, "-m", "pytest_anchor", "local"]
        if is_apart := isolated and has_networks():
            there, port = str(self.temp / "there"), unused_port()
            command = [sys.executable, __file__, "--socket", there, str(port), *command, "--port", str(port)]
        elif isolated:
            assert not delay, "only what has a network of its own can be far away"
            command += ["--chromium", str(self._blind_chromium())]
        self.process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "TMPDIR": str(self.temp)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.url, self.key = (self.process.stdout.readline().strip().partition("=")[2] for _ in range(2))
        assert self.key, "the backend did not start"
        if is_apart:  # the same port here as there, as the backend checks the Host header
            self.relay = Relay(there, port, delay)

    def _blind_chromium(self) -> Path:
        from pytest_anchor.local.chromium import find

        program = self.temp / "chromium"
        program.write_text(f'#!/bin/sh\nexec "{find(None)}" "--host-resolver-rules={RULES}" "$@"\n')
        program.chmod(0o700)
        return program

    def create(self) -> str:
        """Create a session, and return the URL of its CDP."""
        request = urllib.request.Request(f"{self.url}/v1/sessions", b"{}", {"anchor-api-key": self.key})
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["data"]["cdp_url"])

    def __call__(self, method: str, path: str) -> requests.Response:
        """The answer of its API."""
        return requests.request(method, self.url + path, headers={"anchor-api-key": self.key}, timeout=60)

    @property
    def alive(self) -> list[str]:
        """The sessions that run."""
        items = self("GET", "/v1/sessions/all/status").json()["data"]["items"]
        return [one["session_id"] for one in items if one["status"] == "running"]

    def close(self) -> None:
        if self.relay is not None:
            self.relay.close()
        self.process.terminate()
        self.process.communicate(timeout=20)
        shutil.rmtree(self.temp, ignore_errors=True)


def main() -> None:
    enter_network()
    arguments = sys.argv[1:]
    if arguments[0] == "--socket":
        _, path, port, *arguments = arguments
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(128)
        parent = os.getpid()
        if not os.fork():
            asyncio.run(_serve_unix(listener, int(port), parent))
            os._exit(0)
    os.execvp(arguments[0], arguments)


async def _serve_unix(listener: socket.socket, port: int, parent: int) -> None:
    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_relay(reader, there[1], 0.0), _relay(there[0], writer, 0.0))
        there[1].close()
        writer.close()

    await asyncio.start_unix_server(join, sock=listener)
    while os.getppid() == parent:
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    main()
