"""The routes, and who may use them."""

from __future__ import annotations

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

from . import cdp
from .config import Config
from .errors import ChromiumError, Refused
from .sessions import RUNNING, Session, Sessions, now, stamp

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping

KEY_HEADER = "anchor-api-key"

_OVER = "Invalid API Key or browser session ID"
_HTTP_PORT = 80
_PAGE_SIZES = (10, 20, 50)
_ORDERS: dict[str, Callable[[Session], str]] = {
    "created_at": lambda session: stamp(session.created),
    "session_id": lambda session: session.id,
    # One key and no credits: the order stays that of creation.
    "used_credits": lambda _: "",
    "api_key_name": lambda _: "",
}
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
                web.get("/v1/sessions/{session_id}", self._get),
                web.delete("/v1/sessions/{session_id}", self._end),
                web.get("/v1/sessions/{session_id}/pages", self._pages),
                web.get("/v1/sessions/{session_id}/screenshot", self._screenshot),
                web.get("/live/{session_id}", self._live),
            ]
        )

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
        if "Origin" in request.headers:
            raise Refused(403, "This API is not for pages in a browser.")
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
            "live_view_url": f"{self._base}/live/{session.id}",
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
        if by not in _ORDERS or order not in ("asc", "desc"):
            raise Refused(400, f"sort_by must be one of {', '.join(_ORDERS)}; sort_order asc or desc.")
        found = self._filtered(query)
        if "status" in query:
            found = [session for session in found if session.status == query["status"]]
        for term in _terms(query, "search"):
            found = [each for each in found if any(term.lower() in tag.lower() for tag in each.config.tags)]
        found.sort(key=_ORDERS[by], reverse=order == "desc")
        return _data(
            {
                "sessions": [_history(each) for each in islice(found, (page - 1) * limit, page * limit)],
                "total": len(found),
                "page": page,
                "total_pages": math.ceil(len(found) / limit),
            }
        )

    async def _status(self, request: web.Request) -> web.StreamResponse:
        items = [
            {
                "session_id": session.id,
                "status": session.status,
                "tags": session.config.tags,
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

    async def _get(self, request: web.Request) -> web.StreamResponse:
        session = self._sessions.get(request.match_info["session_id"])
        if session is None:
            raise Refused(404, "Session not found.")
        return _data(
            {
                "session_id": session.id,
                "team_id": "local",
                "duration": session.duration,
                "status": session.status,
                "credits_used": 0,
                "configuration": session.config.body,
                "playground": False,
                "proxy_bytes": 0,
                "tokens": {},
                "steps": 0,
                "tags": session.config.tags,
                "created_at": stamp(session.created),
            }
        )

    async def _billing(self, _: web.Request) -> web.StreamResponse:
        cap = self._sessions.cap
        return _data(
            {
                "credits": 0,
                "credits_used": 0,
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
                    "frontend_url": f"{self._base}/live/{session.id}?page={page['id']}",
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
            return web.Response(body=await session.chromium.screenshot(), content_type="image/png")
        except (ChromiumError, aiohttp.ClientError) as error:
            return _json({"error": f"No screenshot could be taken: {error}"}, 500)

    async def _live(self, _: web.Request) -> web.StreamResponse:
        raise Refused(404, "The local backend has no live view; the real Anchor has.")

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


def _history(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "status": session.status,
        "tags": session.config.tags,
        "headless": session.config.headless,
        "recording": False,
        "used_credits": "N/A" if session.status == RUNNING else 0,
        "proxy_bytes": 0,
        "proxy_type": None,
        "steps": 0,
        "duration": session.duration,
        "created_at": stamp(session.created),
        "user_configuration": session.config.body,
        "task_initiated": False,
        "task_executions_count": 0,
        "api_key_name": "local",
        "browser_ip": None,
        "domains": None,
    }


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
