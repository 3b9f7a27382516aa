"""The process that forwards: it lives as long as the run's broker, which tells it by lines of JSON what to do.

It has a process of its own so that neither a test's patches reach it, nor a fault of it the sessions of the run.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from typing import TYPE_CHECKING, Any

from .guard import Hosts

if TYPE_CHECKING:
    from .browser import Browser

ATTEMPTS = 3  # to connect to a browser
PAUSE = 0.5  # seconds between them
ATTACH_TIMEOUT = 25.0  # seconds until a browser must have taken all that this needs of it
MISSING = (
    "this machine's localhost is not there for the browsers: aiohttp is missing. "
    "Install it with: pip install 'pytest-anchor[playwright]', or pass --anchor-forward off"
)


def main(hosts: list[str]) -> None:
    """Forward until standard input ends."""
    try:
        asyncio.run(_serve(hosts))
    finally:
        os._exit(0)  # the connections' ends are nothing to wait for


async def _serve(hosts: list[str]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    forwarder = Forwarder(Hosts(hosts))
    tasks = set()
    while line := await reader.readline():
        task = asyncio.create_task(_reply(forwarder, json.loads(line)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def _reply(forwarder: Forwarder, message: dict[str, Any]) -> None:
    verb = message["verb"]
    try:
        if verb == "attach":
            problem = await forwarder.attach(message["nonce"], message["url"])
        elif verb == "contexts":
            problem = await forwarder.contexts(message["nonce"], message["credentials"])
        else:
            problem = await forwarder.drop(message["nonces"])
    except Exception as error:  # noqa: BLE001 - the broker waits for an answer
        problem = _problem(error)
    print(json.dumps({"number": message["number"], "problem": problem}), flush=True)  # noqa: T201 - the broker reads it


class Forwarder:
    """The browsers of the run's sessions, by the nonces of these."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._name = secrets.token_hex(4)
        self._browsers: dict[str, Browser] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._refusal = ""  # what browsers of this kind do not do
        self._attaching: set[asyncio.Task[None]] = set()

    async def attach(self, nonce: str, url: str) -> str:
        """Attach to a session's browser.

        :returns: why that cannot be, or ``""``.
        """
        try:
            import aiohttp
        except ImportError:
            return MISSING
        async with self._locks.setdefault(nonce, asyncio.Lock()):
            for attempt in range(ATTEMPTS):
                if self._refusal or ((known := self._browsers.get(nonce)) is not None and known.is_attached):
                    break
                try:
                    await self._attach(nonce, url)
                except asyncio.TimeoutError as error:  # the next session's browser will hang as well, and tests wait
                    self._refusal = _problem(error)
                except (aiohttp.ClientError, OSError) as error:  # a new browser needs a moment
                    if attempt + 1 == ATTEMPTS:
                        return _problem(error)
                    await asyncio.sleep(PAUSE)
            return self._refusal

    async def _attach(self, nonce: str, url: str) -> None:
        from .browser import Browser
        from .cdp import CDPError, ClosedError

        browser = Browser(self._hosts, self._name)
        try:
            await asyncio.wait_for(browser.attach(url), ATTACH_TIMEOUT)
        except BaseException as error:
            await browser.close()
            if isinstance(error, ClosedError) or not isinstance(error, CDPError):
                raise
            self._refusal = _problem(error)  # the next session's browser will refuse it as well
            return
        if (known := self._browsers.pop(nonce, None)) is not None:
            await known.close()
        self._browsers[nonce] = browser
        assert browser.gone is not None
        browser.gone.add_done_callback(lambda _: self._attach_again(nonce, url, browser))

    def _attach_again(self, nonce: str, url: str, browser: Browser) -> None:
        """Make up for a connection that was lost, unless the session is over."""

        async def attach() -> None:
            if self._browsers.get(nonce) is browser and await self.attach(nonce, url):
                await self.drop([nonce])

        task = asyncio.create_task(attach())
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)

    async def contexts(self, nonce: str, credentials: list[str] | None) -> str:
        """Note a browser's contexts; those that are new since the last time get the credentials."""
        if (browser := self._browsers.get(nonce)) is not None:
            await browser.note_contexts(credentials)
        return ""

    async def drop(self, nonces: list[str]) -> str:
        """Leave browsers whose sessions are about to end."""
        for nonce in nonces:
            self._locks.pop(nonce, None)
            if (browser := self._browsers.pop(nonce, None)) is not None:
                await browser.close()
        return ""


def _problem(error: BaseException) -> str:
    """A sentence on why there is no connection; the error's own words may have the URL in them, and so the key."""
    from .cdp import CDPError

    reason = type(error).__name__
    if isinstance(error, CDPError):
        reason = str(error)
    elif status := getattr(error, "status", None):
        reason = f"HTTP {status}"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return (
        "this machine's localhost is not there for the browsers: a second connection to a session's browser, which "
        f"answers for it, was not possible ({reason}). The run goes on without; --anchor-forward off silences this"
    )
