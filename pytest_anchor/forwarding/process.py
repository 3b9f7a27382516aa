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

ATTEMPTS = 3  # to connect again where a connection was lost
PAUSE = 1.0  # seconds between them
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
    if verb == "attach":
        problem = await forwarder.attach(message["nonce"], message["url"])
    elif verb == "contexts":
        problem = await forwarder.contexts(message["nonce"], message["credentials"])
    else:
        problem = await forwarder.drop(message["nonces"])
    print(json.dumps({"number": message["number"], "problem": problem}), flush=True)  # noqa: T201 - the broker reads it


class Forwarder:
    """The browsers of the run's sessions, by the nonces of these."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._name = secrets.token_hex(4)
        self._browsers: dict[str, Browser] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._attaching: set[asyncio.Task[None]] = set()

    async def attach(self, nonce: str, url: str) -> str:
        """Attach to a session's browser.

        :returns: why that cannot be, or ``""``.
        """
        try:
            import aiohttp

            from .browser import Browser
            from .cdp import CDPError
        except ImportError:
            return MISSING
        async with self._locks.setdefault(nonce, asyncio.Lock()):
            if (known := self._browsers.get(nonce)) is not None:
                if known.is_attached:
                    return ""
                await known.close()
            browser = Browser(self._hosts, self._name)
            try:
                await browser.attach(url)
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError, CDPError) as error:
                await browser.close()
                return _problem(error)
            self._browsers[nonce] = browser
            assert browser.gone is not None
            browser.gone.add_done_callback(lambda _: self._attach_again(nonce, url, browser))
            return ""

    def _attach_again(self, nonce: str, url: str, browser: Browser) -> None:
        """Make up for a connection that was lost, unless the session is over."""

        async def attach() -> None:
            for _ in range(ATTEMPTS):
                if self._browsers.get(nonce) is not browser or not await self.attach(nonce, url):
                    return
                await asyncio.sleep(PAUSE)

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
