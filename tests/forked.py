"""Real Python processes, forked from one that has imported what they need: a fraction of the CPU of starting one.

Such a process has a pid, descriptors, an environment and arguments of its own, and does what its command line says.
Only what an interpreter does at its start is not done anew, such as reading ``PYTHON…`` variables, the locale and
site customizations: tests of that start their processes.
"""

from __future__ import annotations

import array
import json
import os
import posix
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from subprocess import TimeoutExpired
from typing import IO, Any
from weakref import finalize

from processes import CHECKOUT, PATIENCE, environment

LONGEST = 4096  # bytes of a command line, as /proc shows it
NUMBER = struct.Struct("=i")

# Bound before a test may have replaced them in the process that asks.
_Socket, _UNIX, _RIGHTS = socket.socket.__base__, socket.AF_UNIX, (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_encode, _array, _open, _close = json.JSONEncoder().encode, array.array, posix.open, posix.close
_spawn, _waitpid, _read, _set_blocking = posix.posix_spawn, posix.waitpid, posix.read, posix.set_blocking
# Where all processes of a run of these tests meet, and the pid of the one that began it.
_PLACE = "FORK_SERVERS"


@contextmanager
def fork_servers() -> Iterator[None]:
    """Have a place for fork servers, which they share that this process starts."""
    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        os.environ[_PLACE] = f"{folder}:{os.getpid()}"
        yield
        del os.environ[_PLACE]


@cache
def _fork_server(name: str, *modules: str, flags: tuple[str, ...] = ()) -> str:
    """The address of a process that forks others, as long as this run of tests goes on.

    :param modules: what they have imported.
    :param flags: what its interpreter is started with.
    """
    from filelock import FileLock  # no run under test imports it

    folder, _, pid = os.environ[_PLACE].partition(":")
    address = f"{folder}/{name}"
    with FileLock(f"{address}.lock"):
        if not Path(address).exists():
            program = str(Path(__file__).with_name("fork_server.py"))
            command = [sys.executable, *flags, program, address, pid, *modules, "x" * LONGEST]
            subprocess.run(command, env=environment(), cwd="/", timeout=PATIENCE, check=True)
    return address


def pytest_server() -> str:
    """The address of a process that forks runs of pytest."""
    return _fork_server("pytest", "pytest", "execnet", "pytest_anchor.plugin")


def playwright_server() -> str:
    """The address of a process that forks runs of pytest that use Playwright."""
    playwright = ("playwright.sync_api", "playwright.async_api")
    return _fork_server("playwright", "pytest", "execnet", "pytest_anchor.plugin", *playwright)


def local_server() -> str:
    """The address of a process that forks local backends."""
    return _fork_server("local", "pytest_anchor.local.serve")


def broker_server() -> str:
    """The address of a process that forks brokers."""
    modules = ("pytest_anchor.broker.__main__", "pytest_anchor.broker.server")
    return _fork_server("broker", *modules, flags=("-W", "ignore"))


def send(connection: Any, fds: list[int], **request: Any) -> None:
    """Send what a process is to do, and what become its descriptors 0, 1, 2 and so on."""
    message = _encode(request).encode() + b"\n"
    assert connection.sendmsg([message], [(*_RIGHTS, _array("i", fds))]) == len(message)


def receive_pid(connection: Any) -> int:
    return NUMBER.unpack(connection.recv(NUMBER.size))[0]


def fork(address: str, fds: list[int], **request: Any) -> tuple[int, int]:
    """Have a process forked: the descriptor from which its exit code will come, and its pid."""
    connection = _Socket(_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(address)
    send(connection, fds, **request)
    pid = receive_pid(connection)
    return connection.detach(), pid


class Forking:
    """A ``posix_spawn`` that has brokers forked, and starts everything else, and a ``waitpid`` that knows of those.

    :param address: gives the address of the process that forks them.
    """

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._executable = sys.executable
        self._ends: dict[int, int] = {}  # by pid, from which the exit code will come

    def spawn(self, path: str, command: list[str], env: dict[str, str], **more: Any) -> int:
        if path != self._executable or "pytest_anchor.broker" not in command[-2]:
            return _spawn(path, command, env, **more)
        (_, stdin, _), (_, _, *log), _, (_, listener, _) = more["file_actions"]
        output = _open(*log)
        try:
            end, pid = fork(self._address(), [stdin, output, output, listener], arguments=command, env=env)
        finally:
            _close(output)
        _set_blocking(end, True)
        self._ends[pid] = end
        return pid

    def waitpid(self, pid: int, options: int) -> tuple[int, int]:
        """What was forked is not a child of this process: without this, it might still be there beside the broker."""
        end = self._ends.pop(pid, None)
        if end is None:
            return _waitpid(pid, options)
        _read(end, NUMBER.size)
        _close(end)
        return pid, 0

    def install(self, system: Any, change: Callable[[Any, str, Any], object] = setattr) -> None:
        """Have the launcher's *system* use it."""
        change(system, "spawn", self.spawn)
        change(system, "waitpid", self.waitpid)


class ForkedProcess:
    """A Python process with the part of :class:`subprocess.Popen` that tests use.

    :param args: a command line of Python's.
    :param server: has the address of the process that forks it.
    :param stdin: what it reads; where it is ``None``, what is written to the attribute of that name.
    """

    def __init__(
        self,
        args: list[str],
        cwd: Path,
        env: dict[str, str],
        server: Callable[[], str],
        stdin: str | None = "",
        **more: Any,
    ) -> None:
        self.args = args
        given, out, err = (os.pipe() for _ in range(3))
        self.stdin = os.fdopen(given[1], "w", encoding="utf-8")
        if stdin is not None:
            with self.stdin:
                self.stdin.write(stdin)
        fds = [given[0], out[1], err[1]]
        try:
            self._end, self.pid = fork(server(), fds, arguments=args, env=env, cwd=str(cwd), **more)
        finally:
            for fd in fds:
                os.close(fd)
        finalize(self, os.close, self._end)
        self.stdout, self.stderr = (os.fdopen(end[0], encoding="utf-8", errors="replace") for end in (out, err))
        self._code: int | None = None
        self._texts = ["", ""]
        self._lock = threading.Lock()  # the exit code comes once
        self._readers: list[threading.Thread] = []

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with suppress(TimeoutExpired):
            self.wait(0.0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            select.select([self._end], [], [], timeout)
        with self._lock:
            if self._code is None:
                if not select.select([self._end], [], [], 0.0)[0]:
                    raise TimeoutExpired(self.args, timeout or 0.0)
                (self._code,) = NUMBER.unpack(os.read(self._end, NUMBER.size))
        return self._code

    def communicate(self, timeout: float) -> tuple[str, str]:
        """All that is written until nothing holds the output any more."""
        deadline = time.monotonic() + timeout
        if not self._readers:
            streams = enumerate((self.stdout, self.stderr))
            self._readers = [threading.Thread(target=self._read, args=one, daemon=True) for one in streams]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))
            if reader.is_alive():
                raise TimeoutExpired(self.args, timeout)
        self.wait(max(0.0, deadline - time.monotonic()))
        return self._texts[0], self._texts[1]

    def _read(self, number: int, stream: IO[str]) -> None:
        with suppress(ValueError), stream:  # a test has closed it
            self._texts[number] = stream.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


@contextmanager
def forked_script(code: str, *arguments: object) -> Iterator[ForkedProcess]:
    """As :func:`processes.script`, forked, and so are the brokers that it starts."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    process = ForkedProcess(command, Path.cwd(), env, pytest_server, stdin=None, brokers=broker_server())
    with process.stdin, process.stdout, process.stderr:
        try:
            yield process
        finally:
            process.kill()
            process.wait(PATIENCE)


class ForkedPytest(ForkedProcess):
    """A pytest process, the first of a session."""

    def __init__(
        self, args: list[str], cwd: Path, env: dict[str, str], server: Callable[[], str] = pytest_server
    ) -> None:
        command = [sys.executable, "-m", "pytest", *args]
        super().__init__(command, cwd, env, server, brokers=broker_server())
