"""A scripted Anchor API over real HTTP: it keeps sessions, and fails on demand.

It runs in the test's own process, so a test reads `server.alive` and `server.requests` directly,
while real pytest processes talk to it.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
import uuid
from collections import defaultdict, deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    Answer = tuple[int, dict[str, str], bytes]
    # A fault gets the handler and a function that does what was asked and returns the true answer.
    # It returns the answer to send, or None if it dealt with the connection itself.
    Fault = Callable[["_Handler", Callable[[], Answer]], "Answer | None"]

KEY = "key-SECRET-4711"

# What is asked for beside the sessions' life: by these names they meet faults of their own.
EVIDENCE = {
    "/screenshot": "SCREENSHOT",
    "/fetch": "RECORDING",
    ".mp4": "FILE",
    "/v1/sessions": "HISTORY",
    "/tags": "TAGS",
}
MP4 = b"\0\0\0\x18ftypmp42 and so on"
# One pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415478da63606060000000040001c8eaebf90000000049454e44ae426082"
)


@dataclass
class Session:
    id: str
    tags: list[str]
    alive: bool = True
    created: float = field(default_factory=time.time)
    ended_by_request: bool = False
    ended: float = 0.0  # when, by time.monotonic()


class FaultServer:
    """Start it as a context manager. Faults are taken in the order they were given, then all is well."""

    def __init__(self) -> None:
        self.sessions: dict[str, Session] = {}
        self.requests: list[tuple[str, str]] = []
        self.asked_for_evidence: list[
            tuple[str, str]
        ] = []  # names of EVIDENCE and paths; these are not in the list above
        self.times: list[float] = []  # of each request, by time.monotonic()
        self.headers: list[dict[str, str]] = []  # of each request, names in lower case
        self.closing = threading.Event()  # what a fault that never ends waits for
        self.held: dict[str, threading.Event] = {}  # methods whose requests wait until the event is set
        self.connections = 0
        self.busy = 0  # requests under way
        self.keys = {KEY}
        self.cap: int | None = None  # what the account's plan allows at once; None: the API does not say
        self.asked_for_cap = 0  # how often; those requests are not in the lists above, and meet no fault
        self.list_delay = 0.0  # seconds before a new session shows up in lists
        self.already_over: int | None = 401  # what DELETE answers for a session that is over; None: 200
        self.lock = threading.RLock()
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._always: dict[str, Fault] = {}

    def __enter__(self) -> FaultServer:
        server = self
        handler = type("Handler", (_Handler,), {"server_state": server})
        self._http = _HTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for event in self.held.values():
            event.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    @property
    def alive(self) -> list[str]:
        """Ids of the sessions that run, and cost."""
        with self.lock:
            return [s.id for s in self.sessions.values() if s.alive]

    @property
    def env(self) -> dict[str, str]:
        """What a pytest process needs to use this server."""
        return {"ANCHORBROWSER_API_KEY": KEY, "ANCHORBROWSER_BASE_URL": self.url}

    def count(self, method: str, path: str = "/") -> int:
        with self.lock:
            return sum(m == method and p.startswith(path) for m, p in self.requests)

    def asked_for(self, name: str) -> list[str]:
        """The paths of the requests that have a name of EVIDENCE."""
        with self.lock:
            return [path for one, path in self.asked_for_evidence if one == name]

    def fail(self, method: str, *faults: Fault) -> None:
        """The next requests of *method* meet these faults, one each."""
        self._faults[method].extend(faults)

    def fail_always(self, method: str, fault: Fault | None) -> None:
        if fault is None:
            self._always.pop(method, None)
        else:
            self._always[method] = fault

    def add(self, *tags: str) -> str:
        """A session that somebody else created."""
        session = Session(str(uuid.uuid4()), list(tags))
        with self.lock:
            self.sessions[session.id] = session
        return session.id

    def end(self, session_id: str) -> None:
        """The server ends a session by itself."""
        self.sessions[session_id].alive = False

    def _fault(self, method: str) -> Fault | None:
        with self.lock:
            queue = self._faults[method]
            return queue.popleft() if queue else self._always.get(method)

    def _act(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Answer:  # noqa: PLR0911
        with self.lock:
            if method == "POST" and path == "/v1/sessions":
                session_id = self.add(*(body.get("session") or {}).get("tags", ()))
                return ok(
                    {
                        "id": session_id,
                        "cdp_url": f"ws://127.0.0.1:1/?apiKey={KEY}&sessionId={session_id}",
                        "live_view_url": f"{self.url}/live/{session_id}",
                    }
                )
            if method == "GET" and path == "/v1/sessions/all/status":
                wanted = set(filter(None, query.get("tags", [""])[0].split(",")))
                items = [
                    {
                        "session_id": s.id,
                        "status": "running" if s.alive else "completed",
                        "tags": s.tags,
                        "created_at": datetime.fromtimestamp(s.created, timezone.utc).isoformat(),
                    }
                    for s in self.sessions.values()
                    if wanted <= set(s.tags) and time.time() - s.created >= self.list_delay
                ]
                return ok({"count": len(items), "items": items})
            if method == "DELETE" and path == "/v1/sessions/all":
                for session in self.sessions.values():
                    session.alive = False
                return ok({"status": "ended"})
            session = self.sessions.get(path.removeprefix("/v1/sessions/").partition("/")[0])
            if method == "PUT" or path.endswith(tuple(EVIDENCE)):
                return self._show(path, session, body)
            if method == "DELETE":
                if session is None or not session.alive:
                    return ok({"status": "ended"}) if self.already_over is None else error(self.already_over)
                session.alive, session.ended_by_request, session.ended = False, True, time.monotonic()
                return ok({"status": "ended"})
            return error(404)

    def _show(self, path: str, session: Session | None, body: Any) -> Answer:
        if session is None:
            return error(404)
        if path.endswith("/tags"):
            session.tags = body["tags"]
            return ok({"tags": session.tags})
        if path.endswith("/screenshot"):
            return (200, {}, PNG) if session.alive else error(404)
        return error(404) if session.alive else (302, {"Location": f"/files/{session.id}.mp4?signature=1"}, b"")


class _HTTPServer(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or a fault of ours, is no news."""


class _Handler(BaseHTTPRequestHandler):
    server_state: FaultServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for an answer

    def setup(self) -> None:
        super().setup()
        self.server_state.connections += 1

    def _serve(self) -> None:
        state = self.server_state
        with state.lock:
            state.busy += 1
        try:
            self._serve_one(state)
        finally:
            with state.lock:
                state.busy -= 1

    def _serve_one(self, state: FaultServer) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if len(raw) < length:  # the client died while it was sending
            self.close_connection = True
            return
        if parts.path == "/v1/billing":
            state.asked_for_cap += 1
            self.send(*(error(404) if state.cap is None else ok({"max_concurrent_browsers": state.cap})))
            return
        evidence = next((name for part, name in EVIDENCE.items() if parts.path.endswith(part)), "")
        if self.command == "POST":
            evidence = ""
        with state.lock:
            if evidence:
                state.asked_for_evidence.append((evidence, parts.path))
            else:
                state.requests.append((self.command, parts.path))
                state.times.append(time.monotonic())
                state.headers.append({name.lower(): value for name, value in self.headers.items()})

        def act() -> Answer:
            if parts.path.endswith(".mp4"):  # a file of another server's, which must not see the key
                return error(400) if "anchor-api-key" in self.headers else (200, {}, MP4)
            if self.headers.get("anchor-api-key") not in state.keys:
                return error(401)
            return state._act(self.command, parts.path, parse_qs(parts.query), json.loads(raw) if raw else {})

        if event := state.held.get(self.command):
            event.wait(60)
        fault = state._fault(evidence or self.command)
        answer = act() if fault is None else fault(self, act)
        if answer is not None:
            self.send(*answer)

    do_GET = do_POST = do_DELETE = do_PUT = _serve

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def drop(self) -> None:
        """Close with a reset instead of an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def ok(data: object) -> Answer:
    return 200, {}, json.dumps({"data": data}).encode()


def error(status: int, message: str = "", **headers: str) -> Answer:
    message = message or {401: "Invalid API Key or browser session ID"}.get(status, f"scripted {status}")
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


# The faults. Those named `lost_…` do what was asked first.


def status(code: int, message: str = "", **headers: str) -> Fault:
    return lambda _handler, _act: error(code, message, **headers)


def body(content: bytes, code: int = 200, **headers: str) -> Fault:
    return lambda _handler, _act: (code, {k.replace("_", "-"): v for k, v in headers.items()}, content)


def reset(handler: _Handler, _act: Callable[[], Answer]) -> None:
    handler.drop()


def lost_reset(handler: _Handler, act: Callable[[], Answer]) -> None:
    act()
    handler.drop()


def lost_truncated(handler: _Handler, act: Callable[[], Answer]) -> None:
    code, _, content = act()
    handler.send(code, {"Content-Length": str(len(content) + 10)}, content[:20])
    handler.drop()


def lost_status(code: int) -> Fault:
    def fault(_handler: _Handler, act: Callable[[], Answer]) -> Answer:
        act()
        return error(code)

    return fault


def lost_body(content: bytes) -> Fault:
    """The session is created, and this is answered with status 200."""

    def fault(_handler: _Handler, act: Callable[[], Answer]) -> Answer:
        act()
        return 200, {}, content

    return fault


def slow(seconds: float) -> Fault:
    """The true answer, late."""

    def fault(_handler: _Handler, act: Callable[[], Answer]) -> Answer:
        time.sleep(seconds)
        return act()

    return fault


def for_a_while(seconds: float, fault: Fault) -> Fault:
    """The fault for *seconds* from the first request that meets it, then the true answer."""
    until: list[float] = []

    def fault_or_not(handler: _Handler, act: Callable[[], Answer]) -> Answer | None:
        with handler.server_state.lock:
            if not until:
                until.append(time.monotonic() + seconds)
        return fault(handler, act) if time.monotonic() < until[0] else act()

    return fault_or_not


def once_each(fault: Fault) -> Fault:
    """The fault for the first request to each path, then the true answer."""
    met: set[str] = set()

    def fault_or_not(handler: _Handler, act: Callable[[], Answer]) -> Answer | None:
        with handler.server_state.lock:
            first = handler.path not in met
            met.add(handler.path)
        return fault(handler, act) if first else act()

    return fault_or_not


def one_of(some: Sequence[Fault], probability: float, random: Random) -> Fault:
    """One of the faults with a probability, else the true answer."""

    def fault_or_not(handler: _Handler, act: Callable[[], Answer]) -> Answer | None:
        return random.choice(some)(handler, act) if random.random() < probability else act()

    return fault_or_not


def silent(handler: _Handler, _act: Callable[[], Answer]) -> None:
    """No answer, for as long as the server runs."""
    handler.server_state.closing.wait()
    handler.drop()


def trickle(head: bytes) -> Fault:
    """*head*, and then a byte every 50 ms: for ten seconds, so that a client that waits for it fails and ends."""

    def fault(handler: _Handler, _act: Callable[[], Answer]) -> None:
        try:
            handler.wfile.write(head)
            for _ in range(200):
                if handler.server_state.closing.wait(0.05):
                    break
                handler.wfile.write(b" ")
                handler.wfile.flush()
        except OSError:
            pass  # the client has had enough
        handler.drop()

    return fault


def on(part: str, fault: Fault) -> Fault:
    """The fault for paths that contain *part*, the true answer for all others."""
    return lambda handler, act: fault(handler, act) if part in handler.path else act()


def among(ids: Sequence[str], fault: Fault) -> Fault:
    """The fault for paths that end with one of *ids*, the true answer for all others."""
    some = frozenset(ids)
    return lambda handler, act: fault(handler, act) if handler.path.rpartition("/")[2] in some else act()
