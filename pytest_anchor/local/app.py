"""The routes, and who may use them."""

from __future__ import annotations

import asyncio
import hmac
import json
import math
import sys
import traceback
import uuid
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
from aiohttp import web

from . import cdp, usage
from .config import Config, parse_tags
from .errors import ChromiumError, Refused
from .live import LiveViews
from .sessions import RUNNING, Session, Sessions, now, stamp

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .recording import Recording

KEY_HEADER = "anchor-api-key"

_OVER = "Invalid API Key or browser session ID"
_HTTP_PORT = 80
_PAGE_SIZES = (10, 20, 50)
_ORDERS: dict[str, Callable[[Session], str]] = {
    "created_at": lambda session: stamp(session.created),
    "session_id": lambda session: session.id,
    # There is one key: the order stays that of creation.
    "api_key_name": lambda _: "",
}
_MOST_PERIODS = 1000
_SCREENSHOT_TIMEOUT = 10.0  # seconds
# No session here has any of these, so asking for those that have one finds none.
_NEVER = ("task_initiated", "playground", "proxy", "extra_stealth")


class Api:
    """The API over *sessions*, for holders of *key*."""

    def __init__(self, sessions: Sessions, key: str) -> None:
        self._sessions = sessions
        self._key = key.encode()
        self._base = ""
        self._hosts: frozenset[str] = frozenset()
        self._requests: dict[str, _Request] = {}
        self._live = LiveViews(sessions)
        self.app = web.Application(middlewares=[self._guard])
        self.app.add_routes(
            [
                web.get("/", self._cdp),
                web.get("/v1/billing", self._billing),
                web.get("/v1/sessions", self._list),
                web.post("/v1/sessions", self._create),
                web.post("/v1/sessions/async", self._create_async),
                web.get("/v1/sessions/async/{request_id}/status", self._async_status),
                web.delete("/v1/sessions/all", self._end_all),
                web.get("/v1/sessions/all/status", self._status),
                web.get("/v1/sessions/history", self._history),
                web.get("/v1/sessions/{session_id}", self._get),
                web.delete("/v1/sessions/{session_id}", self._end),
                web.get("/v1/sessions/{session_id}/pages", self._pages),
                web.get("/v1/sessions/{session_id}/screenshot", self._screenshot),
                web.get("/v1/sessions/{session_id}/tags", self._tags),
                web.put("/v1/sessions/{session_id}/tags", self._retag),
                web.delete("/v1/sessions/{session_id}/tags", self._untag),
                web.get("/v1/sessions/{session_id}/recordings", self._recordings),
                web.get("/v1/sessions/{session_id}/recordings/{recording_id}/fetch", self._fetch),
                web.get("/recordings/{session_id}/{secret}.mp4", self._mp4),
                web.get("/live/{view}", self._live.page),
                web.get("/live/{view}/socket", self._live.socket),
            ]
        )
        # Their addresses cannot be guessed, and are for what has no key: a person's browser, a video player.
        self._keyless = (self._fetch, self._mp4, self._live.page, self._live.socket)

    def listen(self, host: str, port: int) -> str:
        """Take the address that the server got, and return the base URL."""
        host = f"[{host}]" if ":" in host else host
        names = {host, "127.0.0.1", "localhost", "[::1]"}
        # Clients leave out the port that is HTTP's own.
        self._hosts = frozenset({f"{name}:{port}" for name in names} | (names if port == _HTTP_PORT else set()))
        self._base = f"http://{host}:{port}"
        return self._base

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._check(request)
            return await handler(request)
        except Refused as refusal:
            return _error(refusal.code, refusal.message, refusal.headers)
        except web.HTTPRedirection:
            raise
        except web.HTTPException as answer:
            allow = {"Allow": answer.headers["Allow"]} if "Allow" in answer.headers else None
            return _error(answer.status, f"{answer.reason}: {request.method} {request.path}", allow)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer in the API's shape
            traceback.print_exc(file=sys.stderr)
            return _error(500, f"The local backend failed: {type(error).__name__}.")

    def _check(self, request: web.Request) -> None:
        # A page of a site whose name was made to point here sends that name as Host; every other
        # page that scripts a request sends an Origin. No client of the API sends one.
        if request.headers.get("Host", "").lower() not in self._hosts:
            raise Refused(403, "The Host header names another server than this one.")
        origin = request.headers.get("Origin")
        handler = request.match_info.handler
        if origin is not None and not (handler == self._live.socket and origin == f"http://{request.host}"):
            raise Refused(403, "This API is not for pages in a browser.")
        if handler in self._keyless:
            return
        # A WebSocket's client cannot always set headers, so Anchor takes its key from the address.
        key = request.query.get("apiKey", "") if request.path == "/" else request.headers.get(KEY_HEADER, "")
        if not hmac.compare_digest(key.encode(errors="surrogateescape"), self._key):
            raise Refused(401, _OVER if request.path == "/" else "Invalid API Key")

    # Creating and ending

    async def _create(self, request: web.Request) -> web.StreamResponse:
        task = self._sessions.create(Config.parse(await request.read()))
        return _data(self._urls("id", await task))

    async def _create_async(self, request: web.Request) -> web.StreamResponse:
        task = self._sessions.create(Config.parse(await request.read()))
        pending = _Request(task)
        self._requests[pending.id] = pending
        return _data({"request_id": pending.id, "status": "pending", "session_id": None})

    async def _async_status(self, request: web.Request) -> web.StreamResponse:
        pending = self._requests.get(request.match_info["request_id"])
        if pending is None:
            raise Refused(404, "Async request not found.")
        data: dict[str, Any] = {
            "request_id": pending.id,
            "status": "processing",
            "created_at": stamp(pending.created),
            "progress": {"current_phase": "provisioning"},
        }
        if pending.task.done():
            error = pending.task.exception()
            if error:
                data["status"] = "failed"
                data["session"] = {"item_index": 0, "status": "failed", "error": str(error)}
            else:
                session = pending.task.result()
                data["status"] = "ready" if session.status == RUNNING else "completed"
                data["progress"]["current_phase"] = "ready"
                data["session"] = {"item_index": 0, "status": "completed", **self._urls("session_id", session)}
        return _data(data)

    def _urls(self, name: str, session: Session) -> dict[str, str]:
        socket = self._base.replace("http", "ws", 1)
        key = quote(self._key, safe="")
        return {
            name: session.id,
            "cdp_url": f"{socket}/?apiKey={key}&sessionId={session.id}",
            "live_view_url": f"{self._base}/live/{session.view}",
        }

    async def _end(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.running(request.match_info["session_id"])
        if session is None or not await self._sessions.end(session):
            raise Refused(401, _OVER)
        return _data({"status": "success"})

    async def _end_all(self, _: web.Request) -> web.StreamResponse:
        await self._sessions.end_all()
        return _data({"status": "success"})

    # Reading

    async def _list(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        page, limit = _number(query, "page", 1), _number(query, "limit", _PAGE_SIZES[0])
        if page < 1:
            raise Refused(400, "page counts from 1.")
        if limit not in _PAGE_SIZES:
            raise Refused(400, "limit must be 10, 20 or 50.")
        by, order = query.get("sort_by", "created_at"), query.get("sort_order", "asc")
        if by not in (*_ORDERS, "used_credits") or order not in ("asc", "desc"):
            raise Refused(400, f"sort_by must be one of {', '.join(_ORDERS)}, used_credits; sort_order asc or desc.")
        found = self._filtered(query)
        if "status" in query:
            found = [session for session in found if session.status == query["status"]]
        for term in _terms(query, "search"):
            found = [each for each in found if any(term.lower() in tag.lower() for tag in each.tags)]
        found.sort(key=self._sessions.cost if by == "used_credits" else _ORDERS[by], reverse=order == "desc")
        return _data(
            {
                "sessions": [self._item(each) for each in islice(found, (page - 1) * limit, page * limit)],
                "total": len(found),
                "page": page,
                "total_pages": math.ceil(len(found) / limit),
            }
        )

    def _item(self, session: Session) -> dict[str, Any]:
        return {
            "id": session.id,
            "status": session.status,
            "tags": session.tags,
            "headless": session.config.headless,
            "recording": session.recording is not None,
            "used_credits": "N/A" if session.status == RUNNING else self._sessions.cost(session),
            "proxy_bytes": 0,
            "proxy_type": None,
            "steps": 0,
            "duration": int(session.seconds),
            "created_at": stamp(session.created),
            "user_configuration": session.config.body,
            "task_initiated": False,
            "task_executions_count": 0,
            "api_key_name": "local",
            "browser_ip": None,
            "domains": None,
        }

    async def _status(self, request: web.Request) -> web.StreamResponse:
        items = [
            {
                "session_id": session.id,
                "status": session.status,
                "tags": session.tags,
                "created_at": stamp(session.created),
            }
            for session in self._filtered(request.query)
        ]
        return _data({"count": len(items), "items": items})

    def _filtered(self, query: Mapping[str, str]) -> list[Session]:
        if _terms(query, "domains"):
            raise Refused(400, "The local backend cannot filter by domains; the real Anchor can.")
        wanted = [_flag(query, name) for name in _NEVER]
        found = self._sessions.find(_terms(query, "tags"), _moment(query, "created_from"), _moment(query, "created_to"))
        if any(wanted) or query.get("batch_id") or query.get("profile_name"):
            return []
        return list(found)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        granularity = query.get("granularity", "day")
        if granularity not in usage.PERIODS:
            raise Refused(400, f"granularity must be one of {', '.join(usage.PERIODS)}.")
        # A list may come as one value or as several.
        metrics = [name for value in query.getall("metrics", ["session_count"]) for name in value.split(",")]
        if not set(metrics) <= set(usage.METRICS):
            raise Refused(400, f"metrics must be among {', '.join(usage.METRICS)}.")
        page, limit = _number(query, "page", 1), _number(query, "limit", 100)
        if page < 1 or not 1 <= limit <= _MOST_PERIODS:
            raise Refused(400, f"page counts from 1, and limit is from 1 to {_MOST_PERIODS}.")
        found = self._sessions.find((), _moment(query, "from_date"), _moment(query, "to_date"))
        uses = [usage.Use(each.created, each.seconds, self._sessions.cost(each)) for each in found]
        return _json(usage.history(uses, granularity, metrics, page, limit))

    def _known(self, request: web.Request) -> Session:
        session = self._sessions.get(request.match_info["session_id"])
        if session is None:
            raise Refused(404, "Session not found.")
        return session

    async def _get(self, request: web.Request) -> web.StreamResponse:
        session = self._known(request)
        return _data(
            {
                "session_id": session.id,
                "team_id": "local",
                "duration": int(session.seconds),
                "status": session.status,
                "credits_used": self._sessions.cost(session),
                "configuration": session.config.body,
                "playground": False,
                "proxy_bytes": 0,
                "tokens": {},
                "steps": 0,
                "tags": session.tags,
                "created_at": stamp(session.created),
            }
        )

    async def _tags(self, request: web.Request) -> web.StreamResponse:
        return _data({"tags": self._known(request).tags})

    async def _retag(self, request: web.Request) -> web.StreamResponse:
        session = self._known(request)
        self._sessions.tag(session, parse_tags(await request.read()))
        return _data({"status": "success", "tags": session.tags})

    async def _untag(self, request: web.Request) -> web.StreamResponse:
        self._sessions.tag(self._known(request), ())
        return _data({"status": "success", "tags": []})

    async def _billing(self, _: web.Request) -> web.StreamResponse:
        cap = self._sessions.cap
        return _data(
            {
                "credits": 0,
                "credits_used": sum(map(self._sessions.cost, self._sessions.find())),
                "included_credits": 0,
                "billing_period": now().strftime("%Y-%m"),
                "tier": "local",
                "gifts_balance": 0,
                "max_concurrent_browsers": -1 if cap is None else cap,
                "cost_limit": None,
            }
        )

    # The browser

    async def _pages(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.running(request.match_info["session_id"])
        if session is None:
            raise Refused(404, "Session not found.")
        pages = await session.chromium.pages() if session.chromium else []
        return _json(
            [
                {
                    "id": page["id"],
                    "title": page["title"],
                    "url": page["url"],
                    "frontend_url": f"{self._base}/live/{session.view}?page={page['id']}",
                }
                for page in pages
            ]
        )

    async def _screenshot(self, request: web.Request) -> web.StreamResponse:
        # The description gives this route's errors a shape of their own.
        session = self._sessions.running(request.match_info["session_id"])
        if session is None:
            return _json({"error": "Session not found."}, 404)
        if session.chromium is None:
            return _json({"error": "The backend runs without browsers (--browserless)."}, 500)
        try:
            picture = await asyncio.wait_for(session.chromium.screenshot(), _SCREENSHOT_TIMEOUT)
            return web.Response(body=picture, content_type="image/png")
        except asyncio.TimeoutError:
            reason = f"the page gave none within {_SCREENSHOT_TIMEOUT:g} s, as one that shows a dialog."
        except (ChromiumError, aiohttp.ClientError) as error:
            reason = str(error)
        return _json({"error": f"No screenshot could be taken: {reason}"}, 500)

    # The recording

    async def _recordings(self, request: web.Request) -> web.StreamResponse:
        session = self._known(request)
        made = [session.recording] if session.recording and session.recording.size else []
        items = [
            {
                "id": recording.id,
                "is_primary": True,
                "file_link": self._file(session, recording),
                "suggested_file_name": f"{session.id}.mp4",
                "duration": f"{recording.duration:.1f}",
                "size": recording.size,
                "created_at": stamp(recording.created),
            }
            for recording in made
        ]
        return _data({"count": len(items), "items": items})

    async def _fetch(self, request: web.Request) -> web.StreamResponse:
        session = self._known(request)
        recording = session.recording
        if recording is None:
            # The real API's words and status for one that is to be deleted: to ask again does not help.
            raise Refused(400, f"Recording feature is disabled for this session. {_why_disabled(session)}")
        if request.match_info["recording_id"] not in ("primary", recording.id):
            raise Refused(404, "Recording not found.")
        if not recording.size:
            raise Refused(500 if recording.failed else 404, f"Recording not found. {recording.state}")
        # As at Anchor, it is somewhere else, where no key is needed.
        raise web.HTTPFound(self._file(session, recording))

    def _file(self, session: Session, recording: Recording) -> str:
        return f"{self._base}/recordings/{session.id}/{recording.secret}.mp4"

    async def _mp4(self, request: web.Request) -> web.StreamResponse:
        recording = self._known(request).recording
        if (
            recording is None
            or not recording.size
            or not hmac.compare_digest(request.match_info["secret"].encode(errors="replace"), recording.secret.encode())
        ):
            raise Refused(404, "Recording not found.")
        return web.FileResponse(recording.path, headers={"Content-Type": "video/mp4", "Cache-Control": "no-store"})

    async def _cdp(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.running(request.query.get("sessionId", ""))
        if session is None:
            raise Refused(401, _OVER)
        if session.chromium is None:
            raise Refused(400, "The backend runs without browsers (--browserless): there is no CDP.")
        self._sessions.connected(session, 1)
        try:
            return await cdp.proxy(request, session.chromium.http, session.chromium.url)
        finally:
            self._sessions.connected(session, -1)


class _Request:
    """A creation that was asked for without waiting for it."""

    def __init__(self, task: asyncio.Task[Session]) -> None:
        self.id = str(uuid.uuid4())
        self.created = now()
        self.task = task


def _why_disabled(session: Session) -> str:
    if not session.config.recording:
        return 'The local backend records a session that asks for it: {"session": {"recording": {"active": true}}}.'
    if session.chromium is None:
        return "The backend runs without browsers (--browserless)."
    return "The local backend needs an encoder: pip install 'pytest-anchor[recording]'."


def _terms(query: Mapping[str, str], name: str) -> list[str]:
    return [term.strip() for term in query.get(name, "").split(",") if term.strip()]


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(query.get(name, default))
    except ValueError:
        raise Refused(400, f"{name} must be an integer.") from None


def _flag(query: Mapping[str, str], name: str) -> bool:
    words = {"true": True, "false": False}
    if query.get(name, "false") not in words:
        raise Refused(400, f"{name} must be true or false.")
    return words[query.get(name, "false")]


def _moment(query: Mapping[str, str], name: str) -> datetime | None:
    if name not in query:
        return None
    try:
        # Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(query[name].replace("Z", "+00:00"))
    except ValueError:
        raise Refused(400, f"{name} must be a time in ISO 8601.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _data(data: object) -> web.Response:
    return _json({"data": data})


def _error(code: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return _json({"error": {"code": code, "message": message}}, code, headers)


def _json(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json")
