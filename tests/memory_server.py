"""A server for shared limits in this process, which fails as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pytest_anchor.budget.redis_server import HEADER, Reading, ServerError


class MemoryServer:
    """What :class:`RedisServer` speaks with, for all stores of a test.

    :ivar fault: called before each question; it may raise ServerError, or wait.
    :ivar ahead: seconds that its clock is ahead of this machine's.
    """

    def __init__(self, ahead: float = 0.0) -> None:
        self.value = b""
        self.ahead = ahead
        self.fault: Callable[[], object] = lambda: None
        self.reads = self.writes = 0
        self.after_replace: Callable[[], object] = lambda: None
        self._lock = threading.Lock()

    def read(self) -> Reading:
        self.fault()
        self.reads += 1
        return Reading(self.value, time.time() + self.ahead)

    def replace(self, before: bytes, value: bytes) -> bool:
        self.fault()
        with self._lock:
            if self.value[:HEADER] != before[:HEADER]:
                return False
            self.value = value
            self.writes += 1
        self.after_replace()
        return True

    def go_down(self, why: str = "ConnectionError: refused") -> None:
        def fail() -> None:
            raise ServerError(why)

        self.fault = fail

    def come_back(self) -> None:
        self.fault = lambda: None


class Route:
    """One machine's way to a server, which can be cut."""

    def __init__(self, server: MemoryServer) -> None:
        self.is_cut = False
        self._server = server

    def read(self) -> Reading:
        self._check()
        return self._server.read()

    def replace(self, before: bytes, value: bytes) -> bool:
        self._check()
        return self._server.replace(before, value)

    def _check(self) -> None:
        if self.is_cut:
            raise ServerError("unreachable")
