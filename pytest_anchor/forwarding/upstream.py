"""The test machine's side: a request of the browser is sent to the server that it is meant for."""

from __future__ import annotations

import asyncio
import errno
import socket
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from .guard import origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from aiohttp.abc import ResolveResult

T = TypeVar("T")

START_PATIENCE = 2.0  # seconds in which a server that refuses connections may still come up
POLL_INTERVAL = 0.05  # seconds between attempts
CONNECT_TIMEOUT = 5.0  # seconds
READ_TIMEOUT = 300.0  # seconds that a server may be silent, as in Chromium
STREAM_LIMIT = 30.0  # seconds until a response whose end is not announced counts as one without
ENDLESS_LIMIT = 2.0  # seconds until one of a type of which no end is to be expected is cut off
AT_ONCE = 6  # requests to one server, as in Chromium
KEPT = 1.0  # seconds that a connection waits for another request
_WITHOUT_EFFECT = ("GET", "HEAD")  # methods of requests that may be sent again
IN_MEMORY = 2_000_000  # bytes of a body; what is beyond is kept in a file
_CHUNK = 1 << 16
_ENDLESS_TYPES = ("text/event-stream", "multipart/x-mixed-replace")
# Those of one connection, which is not the browser's; the length is that of the body which is sent.
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "trailer", "upgrade"})
_ADDED_BY_AIOHTTP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class UpstreamError(Exception):
    """The server gave no response; *reason* is what the browser is to report, as a ``Network.ErrorReason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class Response:
    """What a server has answered, its body decoded."""

    status: int
    phrase: str
    headers: list[tuple[bytes, bytes]]
    body: BinaryIO
    size: int  # bytes of the body

    def challenges(self, scheme: str) -> bool:
        """Whether it asks for credentials of a kind."""
        return self.status == 401 and any(
            name.lower() == b"www-authenticate" and value.lower().startswith(scheme.lower().encode())
            for name, value in self.headers
        )


class _Resolver(AbstractResolver):
    """Resolves ``localhost`` and all below it to this machine without asking anything, as browsers do.

    So it does ``localhost.localdomain``, the name of pytest-flask's servers, which not every machine knows.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host in ("localhost", "localhost.localdomain") or host.endswith(".localhost"):
            # Chromium begins with ::1, where few servers of a test listen.
            found = [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
        else:
            loop = asyncio.get_running_loop()
            infos = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
            found = [(str(address[0]), kind) for kind, _, _, _, address in infos]
        return [
            {"hostname": host, "host": address, "port": port, "family": kind, "proto": 0, "flags": 0}
            for address, kind in found
        ]

    async def close(self) -> None:
        pass


def client_session(
    *, kept: float = 0.0, on_response: Callable[..., Awaitable[None]] | None = None
) -> aiohttp.ClientSession:
    """A client for the test machine's servers, without proxies, and with no strictness about certificates.

    :param kept: seconds that a connection waits for another request; 0 for a connection for each.
    :param on_response: is called with each response, as aiohttp's tracing has it.
    """
    keeping: dict[str, Any] = {"keepalive_timeout": kept} if kept else {"force_close": True}
    tracing = aiohttp.TraceConfig()
    tracing.on_request_redirect.append(_refuse_redirect)
    if on_response is not None:
        tracing.on_request_end.append(on_response)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=False, resolver=_Resolver(), use_dns_cache=False, **keeping),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT),
        trust_env=False,
        skip_auto_headers=_ADDED_BY_AIOHTTP,
        trace_configs=[tracing],
        max_line_size=1 << 16,
        max_field_size=1 << 18,
        read_bufsize=1 << 20,
    )


async def _refuse_redirect(*_: object) -> None:
    """Follow none: a response decides of where a browser goes, not of where we go with its cookies."""
    raise aiohttp.ClientError("a redirect")


def is_refused(error: BaseException) -> bool:
    """Whether no server listens."""
    return isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try again for a moment while no server listens: it may be about to start, or to restart."""
    deadline = time.monotonic() + START_PATIENCE
    while True:
        try:
            return await attempt()
        except aiohttp.ClientConnectorError as error:
            if not is_refused(error) or time.monotonic() >= deadline:
                raise
        await asyncio.sleep(POLL_INTERVAL)


class Upstream:
    """Sends requests to servers of the test machine.

    A connection is kept for requests that aiohttp sends once more where the server has just closed it. It is kept for a
    moment only: a server may serve one at a time, or wait for their ends when it is shut down.
    """

    def __init__(self) -> None:
        self._kept = client_session(kept=KEPT)
        self._once = client_session()
        self._places: dict[str, asyncio.Semaphore] = {}  # by origin

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, *, is_urgent: bool = False
    ) -> Response:
        """Send a request, and return the response once it is whole, redirect or not.

        :param url: an ``http`` or ``https`` URL.
        :param is_urgent: whether not to wait for others: a page is only left, and what it waits for given up, once
            there is another.
        :raises UpstreamError: there is none.
        """
        http = self._kept if method in _WITHOUT_EFFECT else self._once
        places = self._places.setdefault(origin(url), asyncio.Semaphore(AT_ONCE))
        try:
            async with nullcontext() if is_urgent else places:
                return await patiently(lambda: self._send(http, method, url, headers, body))
        except aiohttp.ClientConnectorError as error:
            raise UpstreamError("ConnectionRefused" if is_refused(error) else "ConnectionFailed") from error
        except asyncio.TimeoutError as error:
            raise UpstreamError("TimedOut") from error
        except ConnectionResetError as error:
            raise UpstreamError("ConnectionReset") from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
            raise UpstreamError("ConnectionClosed") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UpstreamError("Failed") from error

    async def _send(
        self, http: aiohttp.ClientSession, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> Response:
        request = http.request(method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False)
        async with request as answer:
            content, size = await _read(answer)
            return Response(
                answer.status,
                answer.reason or "",
                [
                    (name, value)
                    for name, value in answer.raw_headers
                    if name.lower().decode("latin-1") not in _HOP_BY_HOP
                ],
                content,
                size,
            )

    async def close(self) -> None:
        """Let go of the connections."""
        await self._kept.close()
        await self._once.close()


async def _read(answer: aiohttp.ClientResponse) -> tuple[BinaryIO, int]:
    """The body, and its size in bytes.

    :raises asyncio.TimeoutError: it seems to have no end.
    """
    body: Any = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed by its reader
    try:
        if answer.content_length is not None:
            await _copy(answer, body)
        elif answer.content_type in _ENDLESS_TYPES:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_copy(answer, body), ENDLESS_LIMIT)
        else:
            await asyncio.wait_for(_copy(answer, body), STREAM_LIMIT)
        size = body.tell()
        body.seek(0)
    except BaseException:
        body.close()
        raise
    return body, size


async def _copy(answer: aiohttp.ClientResponse, body: BinaryIO) -> None:
    async for chunk in answer.content.iter_chunked(_CHUNK):
        body.write(chunk)
