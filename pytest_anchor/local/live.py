"""The live view: a page that shows a session's screen, and takes mouse and keyboard."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import suppress
from hashlib import sha256
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web

from .errors import Refused
from .screen import Screen
from .sessions import RUNNING

if TYPE_CHECKING:
    from .chromium import Chromium
    from .screen import Frame
    from .sessions import Session, Sessions

_INTERVAL = 0.06  # seconds between two pictures
_HEARTBEAT = 20.0  # seconds; a viewer that is gone without a word keeps no session alive for longer
_LARGEST_MESSAGE = 1 << 20  # bytes; what somebody pastes
_MODIFIERS = ("altKey", "ctrlKey", "metaKey", "shiftKey")  # 1, 2, 4, 8


class LiveViews:
    """The live views of *sessions*. Anyone who knows the address of one may look: no key is asked for."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._page, self._headers = _load()

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Serve the page."""
        self._session(request)
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=self._headers)

    async def socket(self, request: web.Request) -> web.StreamResponse:
        """Serve what the page shows, and take what is done there."""
        session = self._session(request)
        viewer = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=_LARGEST_MESSAGE, compress=False)
        await viewer.prepare(request)
        used = session.viewed and session.config.one_time_url
        session.viewed = True
        if used:
            await viewer.send_json({"over": "This address was good for one viewer, who has been here."})
        elif session.status == RUNNING and session.chromium:
            await self._watch(session, session.chromium, viewer, request.query.get("page", ""))
        else:
            await viewer.send_json({"over": _over(session)})
        await viewer.close()
        return viewer

    def _session(self, request: web.Request) -> Session:
        session = self._sessions.viewed_at(request.match_info["view"])
        if session is None:
            raise Refused(401, "No session has this live view: its address is live_view_url of POST /v1/sessions.")
        return session

    async def _watch(self, session: Session, chromium: Chromium, viewer: web.WebSocketResponse, page: str) -> None:
        screen = _Viewed(chromium, viewer)
        self._sessions.connected(session, 1)
        try:
            await viewer.send_json({"readOnly": session.config.read_only})
            if page:
                screen.show(page)
            await screen.serve(takes_input=not session.config.read_only)
            if not viewer.closed:
                await viewer.send_json({"over": _over(session)})
        except ConnectionError:
            pass  # the viewer has left
        finally:
            self._sessions.connected(session, -1)


class _Viewed(Screen):
    """A screen on the other end of a WebSocket."""

    def __init__(self, chromium: Chromium, viewer: web.WebSocketResponse) -> None:
        super().__init__(chromium, interval=_INTERVAL, quality=80, interactive=True)
        self._viewer = viewer
        self._size = (0, 0)

    async def serve(self, *, takes_input: bool) -> None:
        """Show and obey, until the viewer has left or Chromium is gone."""
        self._spawn(self._obey(takes_input=takes_input))
        await self.run()

    async def on_frame(self, frame: Frame) -> None:
        if self._size != (frame.width, frame.height):
            self._size = frame.width, frame.height
            await self._viewer.send_json({"size": self._size})
        await self._viewer.send_bytes(frame.jpeg)

    async def on_pages(self, pages: list[dict[str, Any]], shown: str) -> None:
        named = [{name: page[name] for name in ("id", "title", "url")} for page in pages]
        await self._viewer.send_json({"pages": named, "shown": shown})

    async def on_dialog(self, dialog: dict[str, Any] | None) -> None:
        await self._viewer.send_json({"dialog": dialog})

    async def _obey(self, *, takes_input: bool) -> None:
        async for message in self._viewer:
            if message.type is WSMsgType.TEXT and takes_input:
                # It may be anything: whoever has the address can send it.
                with suppress(ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                    self._do(json.loads(message.data))
        self.leave()

    def _do(self, what: dict[str, Any]) -> None:
        kind = what["do"]
        if kind == "show":
            self.show(str(what["page"]))
        elif kind == "answer":
            self.send("Page.handleJavaScriptDialog", accept=bool(what["accept"]), promptText=str(what["text"]))
        elif kind == "text":
            self.send("Input.insertText", text=str(what["text"]))
        elif kind == "mouse":
            width, height = self._size
            self.send(
                "Input.dispatchMouseEvent",
                modifiers=_modifiers(what),
                x=float(what["x"]) * width,
                y=float(what["y"]) * height,
                **{name: what[name] for name in ("type", "button", "buttons", "clickCount", "deltaX", "deltaY")},
            )
        elif kind == "key":
            self.send(
                "Input.dispatchKeyEvent",
                modifiers=_modifiers(what),
                windowsVirtualKeyCode=what["keyCode"],
                **{name: what[name] for name in ("type", "key", "code", "text", "autoRepeat", "location")},
            )


def _modifiers(what: dict[str, Any]) -> int:
    return sum(1 << bit for bit, name in enumerate(_MODIFIERS) if what["modifiers"][name])


def _over(session: Session) -> str:
    if session.chromium is None:
        return "There is nothing to see: the backend runs without browsers (--browserless)."
    minutes, seconds = divmod(int(session.seconds), 60)
    return f"The session is over. It ran for {f'{minutes} min ' if minutes else ''}{seconds} s."


def _load() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that keep it to itself: it loads nothing, and is not shown inside another one."""
    page = files(__package__).joinpath("live.html").read_text(encoding="utf-8")
    hashes = {}
    for tag in ("style", "script"):
        inside = page.split(f"<{tag}>")[1].split(f"</{tag}>")[0]
        hashes[tag] = f"'sha256-{b64encode(sha256(inside.encode()).digest()).decode()}'"
    policy = (
        f"default-src 'none'; style-src {hashes['style']}; script-src {hashes['script']}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.encode(), {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
