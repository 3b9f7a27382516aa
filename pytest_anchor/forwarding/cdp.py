"""A connection to a browser by the Chrome DevTools Protocol."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _Socket: TypeAlias = "aiohttp.ClientWebSocketResponse[Any]"

CONNECT_TIMEOUT = 20.0  # seconds
LARGEST_BODY = 72_000_000  # bytes; as base64 and with its headers, a message of Chromium's may have 100 MiB


class CDPError(Exception):
    """The browser has refused a call."""


class ClosedError(CDPError, ConnectionError):
    """The connection is closed."""

    def __init__(self) -> None:
        super().__init__("the connection is closed")


class Connection:
    """One connection; events go to *on_event* in the order in which they come."""

    def __init__(self, socket: _Socket, on_event: Callable[[dict[str, Any]], object]) -> None:
        self._socket = socket
        self._on_event = on_event
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._sending = asyncio.Lock()
        self._closed = False

    @classmethod
    async def open(
        cls, http: aiohttp.ClientSession, url: str, on_event: Callable[[dict[str, Any]], object]
    ) -> Connection:
        """Connect to a browser.

        :raises aiohttp.ClientError: that failed; its message may contain the URL, and so the key.
        """
        connect = http.ws_connect(url, max_msg_size=0, compress=0, proxy=_proxy(url))
        socket = await asyncio.wait_for(connect, CONNECT_TIMEOUT)
        return cls(socket, on_event)

    async def run(self) -> None:
        """Take in messages until the connection is closed."""
        try:
            async for message in self._socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                if "id" not in event:
                    self._on_event(event)
                elif future := self._waiting.pop(event["id"], None):
                    _settle(future, event)
        finally:
            self._closed = True
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ClosedError())
            self._waiting.clear()

    async def call(self, method: str, session: str = "", /, **params: Any) -> dict[str, Any]:
        """Return what *method* answers.

        :param session: the target that is asked, ``""`` for the browser.
        :raises CDPError: it is refused, or the connection is closed.
        """
        number, message = self._message(method, session, params)
        return await self._send(number, json.dumps(message))

    async def call_with_body(self, method: str, body: bytes, **params: Any) -> dict[str, Any]:
        """The same of the browser, with a last parameter ``body``.

        It is put in by hand, since JSON's encoder would look at each byte of it.

        :param body: in base64.
        """
        number, message = self._message(method, "", {**params, "body": ""})
        head = json.dumps(message).removesuffix('"}}')
        return await self._send(number, f'{head}{body.decode("ascii")}"}}}}')

    def _message(self, method: str, session: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        number = next(self._numbers)
        target = {"sessionId": session} if session else {}
        return number, {"id": number, "method": method, **target, "params": params}

    async def _send(self, number: int, message: str) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        try:
            async with self._sending:  # messages leave in the order of their calls
                if self._closed:
                    raise ClosedError
                self._waiting[number] = future
                await self._socket.send_str(message)
        except (ConnectionError, RuntimeError, aiohttp.ClientError) as error:
            self._waiting.pop(number, None)
            raise ClosedError from error
        return await future

    async def close(self) -> None:
        """Close it."""
        await self._socket.close()


def _proxy(url: str) -> str | None:
    """The environment's proxy for a browser's URL; no variable is for WebSockets, so it is that for HTTPS."""
    parts = urlsplit(url)
    if parts.scheme != "wss" or proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get("https")


def _settle(future: asyncio.Future[dict[str, Any]], answer: dict[str, Any]) -> None:
    if future.done():
        return
    if "error" in answer:
        future.set_exception(CDPError(answer["error"].get("message", "refused")))
    else:
        future.set_result(answer.get("result", {}))
