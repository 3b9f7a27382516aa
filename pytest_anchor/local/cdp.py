"""The Chrome DevTools Protocol: passed on for clients, and the few calls that the API itself needs."""

from __future__ import annotations

import asyncio
import base64
import itertools
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import WSCloseCode, WSMsgType, web

from .errors import ChromiumError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import TypeAlias

    _Socket: TypeAlias = "web.WebSocketResponse[Any] | aiohttp.ClientWebSocketResponse[Any]"

_MAX_MESSAGE = 0  # no limit: a screenshot or a trace is one message


class Page:
    """A page of a Chromium, driven for a moment."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url
        self._numbers = itertools.count(1)

    async def __aenter__(self) -> Page:  # noqa: PYI034 - Python 3.10 has no Self
        self._socket = await self._http.ws_connect(self._url, max_msg_size=_MAX_MESSAGE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._socket.close()

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """Return what *method* answers.

        :raises ChromiumError: it is refused, or the page is gone.
        """
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async for message in self._socket:
            answer = message.json()
            if answer.get("id") == number:
                if "error" in answer:
                    raise ChromiumError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result
        raise ChromiumError(f"{method}: the page is gone.")

    async def resize(self, width: int, height: int) -> None:
        """Make the viewport that size, which is the window's less what its frame takes."""
        seen = await self.call("Runtime.evaluate", expression="[innerWidth, innerHeight]", returnByValue=True)
        inner = seen["result"]["value"]
        if inner != [width, height]:
            window = await self.call("Browser.getWindowForTarget")
            bounds = window["bounds"]
            await self.call(
                "Browser.setWindowBounds",
                windowId=window["windowId"],
                bounds={
                    "width": bounds["width"] + width - inner[0],
                    "height": bounds["height"] + height - inner[1],
                },
            )

    async def screenshot(self) -> bytes:
        """Return the viewport as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])


async def proxy(request: web.Request, http: aiohttp.ClientSession, url: str) -> web.WebSocketResponse:
    """Join the client of *request* to Chromium's own WebSocket at *url* until either goes."""
    # Compression costs more than it saves on loopback.
    client = web.WebSocketResponse(max_msg_size=_MAX_MESSAGE, compress=False)
    # Chromium first: if it is gone, the client gets an HTTP answer that says so.
    async with http.ws_connect(url, max_msg_size=_MAX_MESSAGE, compress=0) as browser:
        await client.prepare(request)
        pumps = [asyncio.ensure_future(_pump(client, browser)), asyncio.ensure_future(_pump(browser, client))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            await client.close(code=WSCloseCode.GOING_AWAY, message=b"The session is over.")
    return client


async def _pump(source: _Socket, sink: _Socket) -> None:
    async for message in source:
        if message.type is WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is WSMsgType.BINARY:
            await sink.send_bytes(message.data)
