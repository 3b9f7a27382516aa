"""One browser elsewhere, for which ``localhost`` is the test machine."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from .cdp import LARGEST_BODY, CDPError, Connection
from .cookies import header, to_store
from .exchange import Exchange
from .guard import Frames, Hosts, initiator
from .sockets import Context, Sockets
from .uploads import FileReader, body_of, has_files
from .upstream import IN_MEMORY, Upstream, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from http.cookies import Morsel

    from .upstream import Response

SETUP_TIMEOUT = 10.0  # seconds until the browser must have answered what prepares it
READ_TIMEOUT = 60.0  # seconds for the files of one request
KEEPALIVE = 0.5  # seconds that requests of a document that is gone may take
_OUTLIVE_THEIR_PAGE = ("Document", "Ping")
BLOCKED, UNREADABLE = "BlockedByClient", "AccessDenied"
_PAGES = ("page", "iframe", "webview")
_WORKERS = ("worker", "shared_worker", "service_worker")
_SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
_TOO_LARGE = (
    "pytest-anchor: this response has {:.0f} MB, and a browser elsewhere takes at most {:.0f} MB of one. "
    "Ask for it in ranges, or let the test read it without the browser."
)
_AUTO_ATTACH = {"autoAttach": True, "waitForDebuggerOnStart": True, "flatten": True}


class Browser:
    """Answers the requests of one session's browser for the forwarded hosts.

    :param name: part of the names that its script needs in a page; no other client of the browser may have it.
    """

    def __init__(self, hosts: Hosts, name: str) -> None:
        self._hosts = hosts
        self._outward, self._inward = f"__anchor_out_{name}", f"__anchor_in_{name}"
        values = ", ".join(map(json.dumps, (self._outward, self._inward, hosts.patterns)))
        self._script = f"({_SCRIPT})({values})"
        self._frames = Frames(hosts)
        self._upstream = Upstream()
        self.exchange = Exchange(self._upstream)
        self._sockets = Sockets(hosts, self._cookies, self._store_cookies, self._deliver)
        self._contexts: dict[tuple[str, int], Context] = {}
        self._targets: dict[str, dict[str, Any]] = {}  # by debugging session
        self._noted: set[str] = set()  # browser contexts
        self._requests: dict[str, set[asyncio.Task[Any]]] = {}  # of the document in a frame
        self._tasks: set[asyncio.Task[Any]] = set()
        self._large = asyncio.Lock()  # one large body at a time
        self.gone: asyncio.Task[None] | None = None  # done when the connection is closed
        self._connection: Connection | None = None
        self._http: aiohttp.ClientSession | None = None
        self._events = self._handlers

    async def attach(self, url: str) -> None:
        """Connect, and return once requests are paused for us.

        :raises CDPError: the browser refuses what this takes.
        :raises aiohttp.ClientError: the connection failed; the message may contain the key.
        """
        self._http = aiohttp.ClientSession(trust_env=False)
        self._connection = await Connection.open(self._http, url, self._on_event)
        self.gone = asyncio.create_task(self._connection.run())
        await self._call("Fetch.enable", patterns=self._hosts.fetch_patterns)
        before = set(self._tasks)
        await self._call("Target.setAutoAttach", **_AUTO_ATTACH)
        if preparing := self._tasks - before:
            await asyncio.wait(preparing, timeout=SETUP_TIMEOUT)

    async def note_contexts(self, credentials: Sequence[str] | None) -> None:
        """Give credentials to the browser contexts that are new since this was last called."""
        with suppress(CDPError):
            found = set((await self._call("Target.getBrowserContexts"))["browserContextIds"])
            for browser_context in found - self._noted:
                if credentials:
                    self.exchange.set_credentials(browser_context, *credentials)
            self._noted = found

    @property
    def is_attached(self) -> bool:
        """Whether the connection stands."""
        return self.gone is not None and not self.gone.done()

    async def close(self) -> None:
        """Leave the browser: to it, these hosts are its own machine again."""
        for task in list(self._tasks):
            task.cancel()
        await self._sockets.close()
        await self._upstream.close()
        if self._connection is not None:
            await self._connection.close()
        if self._http is not None:
            await self._http.close()

    def _run(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(_while_it_lives(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _call(self, method: str, session: str = "", /, **params: Any) -> dict[str, Any]:
        assert self._connection is not None
        return await self._connection.call(method, session, **params)

    # What the browser reports.

    def _on_event(self, event: dict[str, Any]) -> None:
        if take := self._events.get(event["method"]):
            take(event["params"], event.get("sessionId", ""))

    @property
    def _handlers(self) -> dict[str, Callable[[dict[str, Any], str], object]]:
        return {
            "Fetch.requestPaused": lambda params, _: self._paused(params),
            "Target.attachedToTarget": lambda params, _: self._attached(params["sessionId"], params["targetInfo"]),
            "Target.detachedFromTarget": lambda params, _: self._detached(params["sessionId"]),
            "Page.frameAttached": lambda params, _: self._frames.has_parent(params["frameId"], params["parentFrameId"]),
            "Page.frameDetached": lambda params, _: self._frames.has_left(params["frameId"], params.get("reason", "")),
            "Runtime.executionContextCreated": lambda params, session: self._has_context(session, params["context"]),
            "Runtime.executionContextDestroyed": lambda params, session: self._forget_contexts(
                session, params["executionContextId"]
            ),
            "Runtime.executionContextsCleared": lambda _, session: self._forget_contexts(session),
            "Runtime.bindingCalled": self._called,
        }

    def _called(self, params: dict[str, Any], session: str) -> None:
        context = self._contexts.get((session, params["executionContextId"]))
        if context is not None and params["name"] == self._outward:
            self._sockets.take(context, params["payload"])

    def _attached(self, session: str, target: dict[str, Any]) -> None:
        self._targets[session] = target
        self._frames.attached(target)
        self._run(self._prepare(session, target["type"]))

    async def _prepare(self, session: str, kind: str) -> None:
        """Have our script run in a target before any other does, and let it go on."""
        steps: list[tuple[str, dict[str, Any]]] = []
        if kind in _PAGES or kind in _WORKERS:
            steps = [("Runtime.enable", {}), ("Runtime.addBinding", {"name": self._outward})]
            if kind in _PAGES:
                script = {"source": self._script, "runImmediately": True}
                steps += [("Page.enable", {}), ("Page.addScriptToEvaluateOnNewDocument", script)]
            else:
                steps.append(("Runtime.evaluate", {"expression": self._script}))
            steps.append(("Target.setAutoAttach", _AUTO_ATTACH))
        steps.append(("Runtime.runIfWaitingForDebugger", {}))
        await asyncio.gather(
            *(self._call(method, session, **params) for method, params in steps), return_exceptions=True
        )
        if kind == "page" and not self.exchange.accept_language:
            expression = (
                "navigator.languages.map((name, i) => i ? `${name};q=${(10 - Math.min(i, 9)) / 10}` : name).join()"
            )
            found = await self._call("Runtime.evaluate", session, expression=expression)
            self.exchange.accept_language = str(found["result"].get("value", ""))

    def _detached(self, session: str) -> None:
        if target := self._targets.pop(session, None):
            self._frames.detached(target["targetId"])
        self._forget_contexts(session)

    def _has_context(self, session: str, described: dict[str, Any]) -> None:
        about = described.get("auxData", {})
        if frame := about.get("frameId", ""):
            if not about.get("isDefault"):
                return  # a world of another client's
            self._frames.has_document(frame, described["origin"])
        browser_context = self._targets.get(session, {}).get("browserContextId", "")
        context = Context(session, described["id"], described["origin"], frame, browser_context)
        self._contexts[session, described["id"]] = context

    def _forget_contexts(self, session: str, number: int | None = None) -> None:
        for key in [one for one in self._contexts if one[0] == session and number in (None, one[1])]:
            context = self._contexts.pop(key)
            self._sockets.forget(context)
            if context.frame:
                self._cancel_requests(context.frame)

    # Requests.

    def _paused(self, pause: dict[str, Any]) -> None:
        task = self._run(self._answer(pause))
        if pause.get("resourceType") not in _OUTLIVE_THEIR_PAGE:
            requests = self._requests.setdefault(pause.get("frameId", ""), set())
            requests.add(task)
            task.add_done_callback(requests.discard)

    def _cancel_requests(self, frame: str) -> None:
        """Give up what a document waits for that is gone, so that what replaces it need not wait for connections."""
        loop = asyncio.get_running_loop()
        for task in self._requests.pop(frame, ()):
            loop.call_later(KEEPALIVE, task.cancel)

    async def _answer(self, pause: dict[str, Any]) -> None:
        request_id, url = pause["requestId"], pause["request"]["url"]
        if not self._hosts.include(url):
            await self._call("Fetch.continueRequest", requestId=request_id)
            return
        try:
            if not await self._may_pass(pause):
                raise UpstreamError(BLOCKED)
            frame = pause.get("frameId", "")
            response = await self.exchange.send(
                pause,
                self._frames.browser_context(frame),
                body=await self._body_of(pause),
                is_page=self._frames.is_page(frame),
            )
        except UpstreamError as error:
            await self._call("Fetch.failRequest", requestId=request_id, errorReason=error.reason)
        else:
            with response.body:
                await self._fulfill(request_id, response)

    async def _may_pass(self, pause: dict[str, Any]) -> bool:
        """Whether a browser on the test machine would let this request out.

        To such a browser, what it is for is on a loopback address: a page from elsewhere may send its user there, but
        neither load anything from there nor show it in a frame.
        """
        headers, frame = pause["request"]["headers"], pause.get("frameId", "")
        is_ahead = "Purpose" in headers or "Sec-Purpose" in headers
        if pause.get("resourceType") == "Document" and self._frames.is_page(frame) and not is_ahead:
            return True
        if source := initiator(headers):
            return self._hosts.include(source)
        if self._frames.is_target(frame):
            self._frames.attached((await self._call("Target.getTargetInfo", targetId=frame))["targetInfo"])
        else:
            await self._call("Browser.getVersion")  # what it had to report of this frame has arrived before its answer
        return self._frames.is_local(frame)

    async def _body_of(self, pause: dict[str, Any]) -> bytes | None:
        request = pause["request"]
        if not has_files(request):
            return body_of(request)
        contexts = [one for one in self._contexts.values() if one.frame == pause.get("frameId")]
        if pause.get("resourceType") == "Document" or not contexts:  # a page that is left runs no script
            raise UpstreamError(UNREADABLE)
        context = contexts[-1]
        reader = FileReader(partial(self._call_target, context.session), context.number)
        try:
            return await asyncio.wait_for(reader.body_of(request), READ_TIMEOUT)
        except (CDPError, asyncio.TimeoutError) as error:
            raise UpstreamError(UNREADABLE) from error

    async def _call_target(self, session: str, method: str, /, **params: Any) -> dict[str, Any]:
        return await self._call(method, session, **params)

    async def _fulfill(self, request_id: str, response: Response) -> None:
        headers = b"\0".join(name + b": " + value for name, value in response.headers)
        answer: dict[str, Any] = {
            "requestId": request_id,
            "responseCode": response.status,
            "binaryResponseHeaders": base64.b64encode(headers).decode("ascii"),
        }
        if response.phrase:
            answer["responsePhrase"] = response.phrase
        assert self._connection is not None
        if response.size > LARGEST_BODY:
            text = _TOO_LARGE.format(response.size / 1e6, LARGEST_BODY / 1e6).encode()
            answer |= {"responseCode": 502, "responsePhrase": "Bad Gateway", "binaryResponseHeaders": ""}
            await self._connection.call_with_body("Fetch.fulfillRequest", base64.b64encode(text), **answer)
        elif response.size > IN_MEMORY:
            async with self._large:
                await self._connection.call_with_body(
                    "Fetch.fulfillRequest", base64.b64encode(response.body.read()), **answer
                )
        else:
            body = base64.b64encode(response.body.read())
            await self._connection.call_with_body("Fetch.fulfillRequest", body, **answer)

    # Sockets.

    async def _deliver(self, context: Context, messages: list[Any]) -> None:
        await self._call(
            "Runtime.callFunctionOn",
            context.session,
            functionDeclaration=f"(messages) => globalThis[{json.dumps(self._inward)}](messages)",
            executionContextId=context.number,
            arguments=[{"value": messages}],
            silent=True,
        )

    async def _cookies(self, url: str, context: Context) -> str:
        """The cookies that a request of a context carries; only a page's session knows them."""
        pages = [
            session
            for session, target in self._targets.items()
            if target["type"] in _PAGES and target.get("browserContextId", "") == context.browser_context
        ]
        if not pages:
            return ""
        found = await self._call("Network.getCookies", pages[0], urls=[url])
        return header(found["cookies"], url, context.origin)

    async def _store_cookies(self, url: str, context: Context, cookies: list[Morsel[str]]) -> None:
        """Have the browser store what a response has set, as far as it accepts it."""
        where = {"browserContextId": context.browser_context} if context.browser_context else {}
        for cookie in to_store(cookies, url, context.origin):
            with suppress(CDPError):
                await self._call("Storage.setCookies", cookies=[cookie], **where)


async def _while_it_lives(work: Coroutine[Any, Any, Any]) -> None:
    """Do something for a target that may go at any time: it then needs it no more."""
    with suppress(CDPError):
        await work
