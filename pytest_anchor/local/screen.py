"""What a session shows: the page that was used last, followed, as pictures of its changes."""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from ..forwarding.cdp import CDPError, ClosedError, Connection

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .chromium import Chromium

_PATIENCE = (1.0, 5.0)  # seconds that a screencast's two pictures are waited for, before it is begun anew
_BREATH = 0.05  # seconds; a page may change its title all the time
_LOOK_AGAIN = 0.5  # seconds; Chromium reports new and closed pages at once, but not which one is in front


@dataclass(frozen=True)
class Frame:
    """A picture of a page: a JPEG, and the size of the viewport in CSS pixels."""

    jpeg: bytes
    width: int
    height: int


class Screen:
    """Watches one Chromium; subclasses say what becomes of what is seen.

    A page that does not change is drawn every five seconds, and what shows nothing new is not passed on.

    :param interval: seconds between two pictures.
    :param quality: that of the JPEGs, from 0 to 100.
    :param interactive: whether somebody is there to answer the dialogs of pages.
    """

    def __init__(
        self, chromium: Chromium, *, interval: float, quality: int, interactive: bool = False, **size: int
    ) -> None:
        self._chromium = chromium
        self._interval = interval
        self._interactive = interactive
        self._format = {"format": "jpeg", "quality": quality, **size}
        self._look = asyncio.Event()
        self._drawn = asyncio.Event()
        self._left = asyncio.Event()
        self._newest: dict[str, Any] = {}
        self._count = 0  # of pictures since the screencast was begun
        self._tasks: set[asyncio.Task[Any]] = set()
        self._casting: asyncio.Task[Any] | None = None
        self._connection: Connection | None = None
        self._session = ""  # of CDP, with the page that is shown
        self._wanted = ""  # the page that was asked for

    async def on_frame(self, frame: Frame) -> None:
        """Take a picture; the next one waits for this."""

    async def on_pages(self, pages: list[dict[str, Any]], shown: str) -> None:
        """Take the open pages as Chromium describes them, and the id of the one that is shown."""

    async def on_dialog(self, dialog: dict[str, Any] | None) -> None:
        """Take a dialog that a page has opened, or ``None`` when it is closed."""

    async def run(self) -> None:
        """Watch until Chromium is gone, or until :meth:`leave`."""
        with suppress(aiohttp.ClientError, CDPError, asyncio.TimeoutError):
            self._connection = await Connection.open(self._chromium.http, self._chromium.url, self._on_event)
            reading = asyncio.ensure_future(self._connection.run())
            following = asyncio.ensure_future(self._follow())
            leaving = asyncio.ensure_future(self._left.wait())
            try:
                await asyncio.wait([reading, following, leaving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self._close(reading, following, leaving)

    def leave(self) -> None:
        """Watch no longer."""
        self._left.set()

    async def _close(self, *tasks: asyncio.Task[Any]) -> None:
        every = [*tasks, *self._tasks, *([self._casting] if self._casting else [])]
        for task in every:
            task.cancel()
        await asyncio.gather(*every, return_exceptions=True)
        if self._connection:
            await self._connection.close()

    def show(self, page: str) -> None:
        """Bring the page of that id to the front, and show it until it is closed or another one is opened."""
        self._wanted = page
        self._look.set()

    def send(self, method: str, **params: Any) -> None:
        """Call *method* on the page that is shown; nobody waits for the answer."""
        self._spawn(self._call(method, **params))

    async def take(self) -> None:
        """Take a picture now, whether anything has changed or not.

        :raises CDPError: there is no page, or it gives none.
        """
        if self._newest:
            shot = await self._call("Page.captureScreenshot", format="jpeg", quality=self._format["quality"])
            await self.on_frame(_frame({**self._newest, "data": shot["data"]}))

    async def _call(self, method: str, **params: Any) -> dict[str, Any]:
        if self._connection is None or not self._session:
            raise ClosedError
        return await self._connection.call(method, self._session, **params)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        async def quietly() -> None:
            with suppress(CDPError, aiohttp.ClientError, ConnectionError):
                await work

        task = asyncio.ensure_future(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_event(self, event: dict[str, Any]) -> None:
        method, params = event["method"], event["params"]
        if method.startswith("Target."):
            self._look.set()
        elif event.get("sessionId") != self._session:
            return
        elif method == "Page.screencastFrame":
            self._newest = params
            self._count += 1
            self._drawn.set()
        elif method == "Page.screencastVisibilityChanged":
            self._look.set()
        elif method == "Page.javascriptDialogOpening":
            self._spawn(self.on_dialog(params))
        elif method == "Page.javascriptDialogClosed":
            self._spawn(self.on_dialog(None))

    async def _follow(self) -> None:
        assert self._connection
        await self._connection.call("Target.setDiscoverTargets", discover=True)
        seen: tuple[list[dict[str, Any]], str] = ([], "")
        known: set[str] = set()
        while True:
            self._look.clear()
            pages = await self._chromium.pages()
            ids = [page["id"] for page in pages]
            if self._wanted not in ids or (known and not known.issuperset(ids)):
                self._wanted = ""  # it is closed, or a page is opened that nobody has seen yet
            known = set(ids)
            shown = self._wanted or next(iter(ids), "")
            if shown != seen[1]:
                await self._switch(shown)
            if (pages, shown) != seen:
                seen = pages, shown
                await self.on_pages(pages, shown)
            await asyncio.sleep(_BREATH)
            await set_within(self._look, _LOOK_AGAIN)

    async def _switch(self, page: str) -> None:
        assert self._connection
        if self._casting:
            self._casting.cancel()
            self._casting = None
        if old := self._session:
            self._session = ""
            with suppress(CDPError):  # the page is closed
                await self._connection.call("Target.detachFromTarget", sessionId=old)
            await self.on_dialog(None)  # Chromium dismisses what nobody is left to answer
        with suppress(CDPError):  # it is closed meanwhile, which is seen next time
            if page:
                if page == self._wanted:
                    await self._connection.call("Target.activateTarget", targetId=page)
                attached = await self._connection.call("Target.attachToTarget", targetId=page, flatten=True)
                self._session = attached["sessionId"]
                if self._interactive:
                    # From here on Chromium waits for the answer to a dialog; without a listener it may dismiss it.
                    await self._call("Page.enable")
                self._casting = asyncio.ensure_future(self._cast())

    async def _cast(self) -> None:
        # Chromium sends three pictures and then waits to be told that they have arrived, and what it
        # skips meanwhile it never sends: the last change could stay unseen. To begin anew gives the
        # page as it is, and pictures of its next changes. Before a second one, none can be skipped.
        # A page that was just opened may give none at all, and one that changes its size not the last one.
        # So silence is no proof that nothing has changed.
        last = ""
        while True:
            try:
                self._drawn.clear()
                self._count = seen = 0
                await self._call("Page.stopScreencast")
                await self._call("Page.startScreencast", **self._format)
                while seen < len(_PATIENCE):
                    await set_within(self._drawn, _PATIENCE[seen])
                    self._drawn.clear()
                    if self._count == seen:
                        break
                    seen = self._count
                    newest = self._newest
                    if newest["data"] != last:
                        last = newest["data"]
                        await self.on_frame(_frame(newest))
                    await asyncio.sleep(self._interval)
            except ClosedError:
                return
            except CDPError:  # it changes its process, or has crashed
                await asyncio.sleep(_LOOK_AGAIN)


async def set_within(event: asyncio.Event, seconds: float) -> None:
    """Wait until *event* is set, and set it after *seconds*.

    A task that waits here can always be cancelled; before Python 3.12, one that waits in
    :func:`asyncio.wait_for` goes on if that has just got what it waited for.
    """
    timer = asyncio.get_running_loop().call_later(seconds, event.set)
    try:
        await event.wait()
    finally:
        timer.cancel()


def _frame(params: dict[str, Any]) -> Frame:
    seen = params["metadata"]
    return Frame(base64.b64decode(params["data"]), int(seen["deviceWidth"]), int(seen["deviceHeight"]))
