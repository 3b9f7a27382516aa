"""WebSockets and EventSources that pages have handed over, joined to the servers of the test machine."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from .cdp import CDPError
from .events import EventReader
from .guard import origin
from .upstream import client_session, patiently

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from http.cookies import Morsel
    from typing import TypeAlias

    from .guard import Hosts

    _Server: TypeAlias = "aiohttp.ClientWebSocketResponse[Any]"

RETRY = 3.0  # seconds until an EventSource connects again, as in Chromium
BATCH = 1_000_000  # characters that go to a page at once
MAX_REDIRECTS = 20  # as in Chromium
ABNORMAL, NO_CODE, GOING_AWAY = 1006, 1005, 1001
_FAILURES = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError)


@dataclass(frozen=True)
class Context:
    """Where scripts run: a document or a worker.

    :param session: the debugging session of its target.
    :param number: within that session.
    :param origin: as the browser has it; of a worker, its URL.
    :param frame: the id of the frame, ``""`` for a worker.
    :param browser_context: the id of the browser context, which its cookies are in.
    """

    session: str
    number: int
    origin: str
    frame: str
    browser_context: str


class Outlet:
    """Hands messages to one context: several at once, and the next once the page has taken those."""

    def __init__(self, deliver: Callable[[list[Any]], Awaitable[object]]) -> None:
        self._deliver = deliver
        self._messages: list[Any] = []
        self._size = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._pump: asyncio.Task[None] | None = None

    async def put(self, *message: Any) -> None:
        """Hand over a message; waits while there is much to hand over."""
        self._messages.append(message)
        self._size += sum(len(value) for value in message if isinstance(value, str))
        if self._size > BATCH:
            self._has_room.clear()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        await self._has_room.wait()

    async def _run(self) -> None:
        try:
            while self._messages:
                messages, self._messages, self._size = self._messages, [], 0
                self._has_room.set()
                await self._deliver(messages)
        except CDPError:  # the page is gone
            self._messages.clear()
            self._has_room.set()


class _Socket:
    """What is common to both: a task that reads, a queue of what the page sends."""

    def __init__(self, sockets: Sockets, context: Context, number: int, request: list[Any]) -> None:
        self.url: str = request[0]
        self.headers = {"User-Agent": str(request[1])}
        self.given = request[2]
        self.http = sockets.http
        self.sockets = sockets
        self.context = context
        self.number = number
        self.queue: asyncio.Queue[list[Any]] = asyncio.Queue()
        self.task = asyncio.create_task(self.run())

    async def run(self) -> None:
        raise NotImplementedError

    async def put(self, *message: Any) -> None:
        await self.sockets.outlet(self.context).put(self.number, *message)

    def send(self, *message: Any) -> None:
        """Take in what the page sends."""
        self.queue.put_nowait(list(message))

    async def cookies(self, url: str) -> dict[str, str]:
        """The header with the browser's cookies for a URL, if there are any."""
        cookies = await self.sockets.cookies(_as_http(url), self.context)
        return {"Cookie": cookies} if cookies else {}

    async def store(self, response: aiohttp.ClientResponse) -> None:
        """Have the browser store the cookies that a response sets."""
        url = _as_http(str(response.url))
        await self.sockets.store(url, self.context, list(response.cookies.values()))


class _WebSocket(_Socket):
    is_closing = False

    async def run(self) -> None:
        _SOCKET.set(self)
        ending: tuple[bool, int, str] = (False, ABNORMAL, "")
        try:
            if self.sockets.allow(self.context, self.url):
                ending = await self._join()
        except _FAILURES:
            pass
        finally:
            self.sockets.remove(self)
        await self.put("closed", *ending)

    async def _join(self) -> tuple[bool, int, str]:
        self.headers |= {"Origin": origin(self.context.origin), **await self.cookies(self.url)}
        socket = await patiently(
            lambda: self.http.ws_connect(
                URL(self.url, encoded=True),
                protocols=self.given,
                headers=self.headers,
                max_msg_size=0,
            )
        )
        writer = asyncio.create_task(self._write(socket))
        try:
            if self.given and not socket.protocol:  # a browser refuses a server that accepts none
                return False, ABNORMAL, ""
            await self.put("open", socket.protocol or "")
            reason = await self._read(socket)
            if self.is_closing:
                await writer  # which waits for the server's answer
            code = socket.close_code or ABNORMAL
            return code != ABNORMAL, code, reason
        finally:
            writer.cancel()
            await socket.close(code=GOING_AWAY)

    async def _read(self, socket: _Server) -> str:
        while True:
            message = await socket.receive()
            if message.type is WSMsgType.TEXT:
                await self.put("text", message.data)
            elif message.type is WSMsgType.BINARY:
                await self.put("binary", base64.b64encode(message.data).decode("ascii"))
            elif message.type is WSMsgType.CLOSE:
                return message.extra or ""
            else:
                return ""

    async def _write(self, socket: _Server) -> None:
        while True:
            kind, *values = await self.queue.get()
            if kind == "close":
                code, reason = values
                self.is_closing = True
                await socket.close(code=1000 if code == NO_CODE else code, message=reason.encode())
                return
            data, size = values
            if kind == "text":
                await socket.send_str(data)
            else:
                await socket.send_bytes(base64.b64decode(data))
            await self.put("sent", size)


class _EventSource(_Socket):
    async def store(self, response: aiohttp.ClientResponse) -> None:
        if self.given or not self._is_foreign(str(response.url)):
            await super().store(response)

    async def run(self) -> None:
        _SOCKET.set(self)
        try:
            if self.sockets.allow(self.context, self.url):
                await self._read_again_and_again()
        finally:
            self.sockets.remove(self)
        await self.put("failed", True)  # noqa: FBT003 - a message of ours

    def send(self, *_message: Any) -> None:
        """Take in that the page has closed it."""
        self.task.cancel()

    async def _read_again_and_again(self) -> None:
        self.headers |= {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Accept-Encoding": "identity"}
        last_id, retry = "", RETRY
        while True:
            if last_id:
                self.headers["Last-Event-ID"] = last_id
            reader = EventReader(last_id)
            with suppress(*_FAILURES):
                answer = await patiently(self._request)
                async with answer:
                    if not self._is_accepted(answer):
                        return
                    await self.put("open")
                    async for received in answer.content.iter_any():
                        for event in reader.read(received):
                            await self.put("event", *event, origin(str(answer.url)))
            last_id = reader.last_id
            retry = retry if reader.retry is None else reader.retry
            await self.put("failed", False)  # noqa: FBT003
            await asyncio.sleep(retry)

    async def _request(self) -> aiohttp.ClientResponse:
        """The response, of whatever forwarded host redirects lead to."""
        url = self.url
        for _ in range(MAX_REDIRECTS):
            headers = dict(self.headers)
            if self._is_foreign(url):
                headers["Origin"] = origin(self.context.origin)
            if not self._is_foreign(url) or self.given:
                headers |= await self.cookies(url)
            answer = await self.http.get(URL(url, encoded=True), headers=headers, allow_redirects=False)
            location = answer.headers.get("Location", "") if answer.status in (301, 302, 303, 307, 308) else ""
            if not location:
                return answer
            answer.close()
            url = urljoin(url, location)
            if not self.sockets.allow(self.context, url):
                break
        raise aiohttp.ClientError("a redirect that leads nowhere")

    def _is_foreign(self, url: str) -> bool:
        return origin(self.context.origin) != origin(url)

    def _is_accepted(self, answer: aiohttp.ClientResponse) -> bool:
        """Whether the response is a stream of events, which the page's origin may read."""
        if answer.status != 200 or answer.content_type != "text/event-stream":
            return False
        if not self._is_foreign(str(answer.url)):
            return True
        own, allowed = origin(self.context.origin), answer.headers.get("Access-Control-Allow-Origin", "")
        if self.given:
            return allowed == own and answer.headers.get("Access-Control-Allow-Credentials") == "true"
        return allowed in ("*", own)


_SOCKET: ContextVar[_Socket] = ContextVar("socket")  # the socket whose task is running


async def _store_cookies(_session: object, _context: object, ended: aiohttp.TraceRequestEndParams) -> None:
    """Take in a response of which aiohttp does not hand over the headers, as it is a WebSocket's."""
    if ended.response.cookies:
        await _SOCKET.get().store(ended.response)


def _as_http(url: str) -> str:
    """A socket's URL with the scheme by which cookies know it."""
    return url.replace("ws", "http", 1) if url.startswith("ws") else url


class Sockets:
    """All sockets of one browser.

    :param cookies: the value of the header for a URL and a context.
    :param store: stores the cookies that a response from a URL has set for a context.
    :param deliver: hands messages to a context's script.
    """

    def __init__(
        self,
        hosts: Hosts,
        cookies: Callable[[str, Context], Awaitable[str]],
        store: Callable[[str, Context, list[Morsel[str]]], Awaitable[None]],
        deliver: Callable[[Context, list[Any]], Awaitable[object]],
    ) -> None:
        self.http = client_session(on_response=_store_cookies)
        self.cookies = cookies
        self.store = store
        self._hosts = hosts
        self._deliver = deliver
        self._sockets: dict[tuple[Context, int], _Socket] = {}
        self._outlets: dict[Context, Outlet] = {}

    def allow(self, context: Context, url: str) -> bool:
        """Whether a script may reach a server of the test machine."""
        return self._hosts.include(context.origin) and self._hosts.include(url)

    def outlet(self, context: Context) -> Outlet:
        """The way to a context's script."""
        if (outlet := self._outlets.get(context)) is None:
            outlet = self._outlets[context] = Outlet(lambda messages: self._deliver(context, messages))
        return outlet

    def take(self, context: Context, payload: str) -> None:
        """Take in what a script has sent by its binding: any script of the context may send anything."""
        try:
            number, kind, *values = json.loads(payload)
            socket = self._sockets.get((context, number))
            if kind in ("websocket", "eventsource"):
                made = _WebSocket if kind == "websocket" else _EventSource
                self._sockets[context, number] = made(self, context, int(number), values)
            elif socket is not None:
                socket.send(kind, *values)
        except (ValueError, TypeError, IndexError):
            return

    def remove(self, socket: _Socket) -> None:
        """Take in that a socket is closed."""
        self._sockets.pop((socket.context, socket.number), None)

    def forget(self, context: Context) -> None:
        """Close what a context has left that is gone."""
        for (owner, _), socket in list(self._sockets.items()):
            if owner == context:
                socket.task.cancel()
        self._outlets.pop(context, None)

    async def close(self) -> None:
        """Close all."""
        for socket in list(self._sockets.values()):
            socket.task.cancel()
        await self.http.close()
