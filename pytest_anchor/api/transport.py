"""HTTP by ``requests``, with what it lacks: a deadline for a whole answer, and knowing whether anything was sent."""

from __future__ import annotations

import io
import math
import time
from contextvars import ContextVar
from http.client import HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

if TYPE_CHECKING:
    import socket

KEY_HEADER = "anchor-api-key"

SHOWN = 64  # bytes of an answer that another file takes
MAX_IDLE = 5.0  # seconds for which a connection may have been idle that a creation uses
MAX_CONNECTIONS = 256  # kept alive, which is as many as --anchor-sweep-at-once allows


class CallContext:
    """What is to be known deep inside urllib3 of the call under way.

    :param deadline: ``time.monotonic()`` seconds by which the answer must have ended.
    :param needs_fresh_connection: whether it must not go over a connection that was idle for long.
    :ivar is_sent: whether the first byte of the request may have left this machine.
    """

    def __init__(self, deadline: float, *, needs_fresh_connection: bool = False) -> None:
        self.deadline = deadline
        self.needs_fresh_connection = needs_fresh_connection
        self.is_sent = False


current_call: ContextVar[CallContext] = ContextVar("current_call")


class TooLongError(Exception):
    """An answer has more bytes than are read."""


def open_session(base_url: str, key: str | None) -> requests.Session:
    """A session that sends the key, if there is one; it follows no redirect, and tries nothing again by itself."""
    session = _Session()
    session.auth = _KeyAuth(key)
    session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    # To loopback goes no proxy: over plain HTTP it would read the key.
    session.trust_env = urlsplit(base_url).scheme == "https"
    for prefix in ("https://", "http://"):
        session.mount(prefix, _Adapter(pool_maxsize=MAX_CONNECTIONS))
    return session


def read_body(response: requests.Response, limit: int, sink: BinaryIO | None = None) -> bytes:
    """The answer's body; where *sink* takes it, from its beginning, only the first bytes.

    :raises TooLongError: it has more than *limit* bytes.
    :raises OSError: *sink* cannot take it.
    """
    body, size = bytearray(), 0
    if sink is not None:
        sink.seek(0)
        sink.truncate()
    while chunk := response.raw.read1(65536):
        size += len(chunk)
        if size > limit:
            raise TooLongError(f"an answer of more than {limit} bytes")
        if sink is not None:
            sink.write(chunk)
        if sink is None or len(body) < SHOWN:
            body += chunk
    return bytes(body)


def describe_route(base_url: str) -> str:
    """Where a request was to go, and by which proxy, without the password that a proxy's URL may hold."""
    parts = urlsplit(base_url)
    proxy = requests.utils.select_proxy(base_url, requests.utils.get_environ_proxies(base_url) or {})
    if not proxy or parts.scheme != "https":
        return parts.netloc
    return f"{parts.netloc}, by the proxy {proxy.rpartition('@')[2]}"


class _KeyAuth(requests.auth.AuthBase):
    """Adds the key header last, so that no object with a telling ``repr`` carries it.

    An explicit auth also keeps requests from looking into a ``.netrc``.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers[KEY_HEADER] = self._key
        return request


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the call's deadline.

    A socket's own timeout starts anew with every byte: a server that trickles could hold a
    teardown, or a whole run, for hours.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = current_call.get().deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end in time")
        self._sock.settimeout(min(left, self._sock.gettimeout() or left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock))

    def begin(self) -> None:
        super().begin()
        del self.headers["Set-Cookie"]  # nothing here wants one, and http.cookiejar warns of what it cannot read


class _NotesSending:
    """A connection that notes when a request is sent over it, which asking a proxy for a tunnel is not."""

    is_connecting = False
    used_at = math.inf  # in ``time.monotonic()`` seconds

    def connect(self) -> None:
        self.is_connecting = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self.is_connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:  # type: ignore[attr-defined]
            self.connect()
        if not self.is_connecting:
            current_call.get().is_sent = True
        super().send(data)  # type: ignore[misc]


class _Connection(_NotesSending, HTTPConnection):
    response_class = _TimedResponse


class _SecureConnection(_NotesSending, HTTPSConnection):
    response_class = _TimedResponse


class _DropsIdle:
    """A pool that gives a creation no connection which a router on the way may have forgotten."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if current_call.get().needs_fresh_connection and time.monotonic() - connection.used_at > MAX_IDLE:
            connection.close()  # it is opened anew when it is used
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            connection.used_at = time.monotonic()
        super()._put_conn(connection)  # type: ignore[misc]


class _Pool(_DropsIdle, urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(_DropsIdle, urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """No redirect is followed; without this, requests would still parse its address and read all of its body."""


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager
