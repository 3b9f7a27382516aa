"""The HTTP calls to Anchor's sessions API, and what each answer means.

Knows Anchor; knows neither pytest nor the registry. Facts come from Anchor's public
OpenAPI description of ``/v1/sessions`` unless a comment says otherwise.
"""

from __future__ import annotations

import hmac
import io
import json
import math
import os
import random
import re
import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, InvalidHeader, MaxRetryError, NewConnectionError, ResponseError
from urllib3.util.retry import Retry

from .errors import AnchorAPIError, AnchorLostCreateError, Limit, printable, redact
from .tags import is_session_id

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping

KEY_HEADER = "anchor-api-key"

CONNECT_TIMEOUT = 10.0  # seconds
CREATE_TIMEOUT = 120.0  # seconds; the call blocks until the browser is ready
CALL_TIMEOUT = 15.0  # seconds, for ending and listing

MAX_IDLE = 5.0  # seconds for which a connection may have been idle that a creation uses
MAX_CONNECTIONS = 256  # kept alive, which is as many as --anchor-sweep-at-once allows
MAX_ANSWER = 1 << 20  # bytes
MAX_LIST = 64 << 20  # bytes; a session takes about 300 in a list
MAX_RETRY_AFTER = 30.0  # seconds; a server that asks for more is asked again sooner
FIRST_PAUSE = 0.25  # seconds after a 429 at least; doubled with each that the same call meets
WAKE_JITTER = 0.1  # seconds over which those who waited begin again

MAX_WAIT = 3600.0  # seconds; what asks for a longer wait is no Retry-After
MAX_POLICY = 4096  # characters of a RateLimit-Policy
MAX_QUOTA = 100_000  # requests
MAX_WINDOW = 24 * 3600.0  # seconds

# A creation that these answer did not take place. 408 may come after the effect.
_DEFINITE_REFUSALS = frozenset(range(400, 500)) - {408}
# The one word for a session's end that is known. Any other counts as alive: ending twice is harmless.
_OVER = "completed"

_REMEDIES = {
    400: "Check the keywords given to the factory, anchor_session_defaults and the anchor marker.",
    401: "The API refuses the key: check ANCHORBROWSER_API_KEY.",
    402: "The account has no credits left: top it up, or run with --anchor-local.",
    403: "The key may not do this, or the project's cost limit is reached: check Anchor's dashboard.",
    404: "Check the base URL (ANCHORBROWSER_BASE_URL, --anchor-base-url).",
    429: "The plan's limit is reached: run fewer workers, or end sessions that are not needed.",
}
_SERVER_REMEDY = "The trouble is at the API's side: try again, and tell Anchor's support if it lasts."
_ANSWER_REMEDY = "This is no answer of Anchor's API: check the base URL and any proxy between."
_NO_ANSWER_REMEDY = "Check the network and the base URL (ANCHORBROWSER_BASE_URL, --anchor-base-url)."


@dataclass(frozen=True)
class Created:
    """What the API answers to a creation; the URLs contain the key."""

    id: str
    cdp_url: str = field(repr=False)
    live_view_url: str = field(repr=False)


@dataclass(frozen=True)
class Listed:
    """A session in the API's list.

    :param age: seconds since its creation when it was listed, by the server's clock; ``None`` if not told.
    """

    id: str
    status: str
    tags: tuple[str, ...]
    age: float | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        """Whether the session may still run; a status is a hint, and an unknown one counts as alive."""
        return self.status != _OVER


class Ended(NamedTuple):
    """A session that is confirmed to be over."""

    already: bool  # it was over before it was asked to end
    note: str = ""


class _Call:
    """What is to be known deep inside urllib3 of the call under way in this context.

    :ivar sent: whether the first byte of the request may have left this machine.
    """

    def __init__(self, deadline: float, wait: Callable[[_Call], None], *, creates: bool = False) -> None:
        self.deadline = deadline
        self.creates = creates
        self.tries = 0
        self.sent = False
        self._wait = wait
        self._pause = FIRST_PAUSE

    def begin(self) -> float:
        """Wait until a request may be sent, and count it.

        :returns: the seconds there are for it.
        :raises AnchorAPIError: that would be too late.
        """
        self._wait(self)
        self.tries += 1
        return max(0.05, self.deadline - time.monotonic())

    def pause_after(self, told: Limit) -> float:
        """Seconds for which the API is left alone after this call met a 429 that *told* this."""
        least, self._pause = self._pause, 2 * self._pause
        wait = max(least * random.uniform(1.0, 1.5), told.retry_after or 0.0)  # noqa: S311 - no secret
        return min(wait, MAX_RETRY_AFTER)


class _Pause:
    """Until when the API asked all to wait, in ``time.monotonic()`` seconds."""

    def __init__(self, until: float = 0.0) -> None:
        self.until = until
        self._lock = threading.Lock()

    def extend(self, seconds: float) -> None:
        with self._lock:
            self.until = max(self.until, time.monotonic() + seconds)


_call: ContextVar[_Call] = ContextVar("call")


class _KeyAuth(requests.auth.AuthBase):
    """Adds the key header last, so that no object with a telling ``repr`` carries it.

    An explicit auth also keeps requests from looking into a ``.netrc``.
    """

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers[KEY_HEADER] = self._key
        return request


class _TimedReader(io.RawIOBase):
    """Reads from a socket until the call's deadline.

    A socket's own timeout starts anew with every byte: a server that trickles could hold a
    teardown, or a whole run, for hours.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _call.get().deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer did not end in time")
        self._sock.settimeout(min(left, self._sock.gettimeout() or left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock))

    def begin(self) -> None:
        super().begin()
        del self.headers["Set-Cookie"]  # nothing here wants one, and http.cookiejar warns of what it cannot read


class _NotesSending:
    """A connection that notes when a request is sent over it, which asking a proxy for a tunnel is not."""

    is_connecting = False
    used_at = math.inf  # in ``time.monotonic()`` seconds

    def connect(self) -> None:
        self.is_connecting = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self.is_connecting = False

    def send(self, data: Any) -> None:
        if self.sock is None:  # type: ignore[attr-defined]
            self.connect()
        if not self.is_connecting:
            _call.get().sent = True
        super().send(data)  # type: ignore[misc]


class _Connection(_NotesSending, HTTPConnection):
    response_class = _TimedResponse


class _SecureConnection(_NotesSending, HTTPSConnection):
    response_class = _TimedResponse


class _DropsIdle:
    """A pool that gives a creation no connection which a router on the way may have forgotten."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)  # type: ignore[misc]
        if _call.get().creates and time.monotonic() - connection.used_at > MAX_IDLE:
            connection.close()  # it is opened anew when it is used
        return connection

    def _put_conn(self, connection: Any) -> None:
        if connection is not None:
            connection.used_at = time.monotonic()
        super()._put_conn(connection)  # type: ignore[misc]


class _Pool(_DropsIdle, urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(_DropsIdle, urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


_POOLS = {"http": _Pool, "https": _SecurePool}


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """No redirect is followed; without this, requests would still parse its address and read all of its body."""


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager


class _Retry(Retry):
    """urllib3's retries, which do not sleep past a deadline and do not trust ``Retry-After``; 429 is not theirs."""

    RETRY_AFTER_STATUS_CODES = frozenset({503})

    def get_retry_after(self, response: Any) -> float | None:
        try:
            seconds = super().get_retry_after(response)
        except (InvalidHeader, ValueError, OverflowError):
            return None
        return None if seconds is None else min(seconds, MAX_RETRY_AFTER)

    def increment(self, method: Any = None, url: Any = None, response: Any = None, *args: Any, **kwargs: Any) -> _Retry:
        error = kwargs.get("error") or ResponseError("out of time")
        if method == "POST" and (_call.get().sent or not isinstance(error, (NewConnectionError, ConnectTimeoutError))):
            raise MaxRetryError(kwargs["_pool"], url, error)  # it may have created a session
        retry = super().increment(method, url, response, *args, **kwargs)
        wait = (response is not None and self.get_retry_after(response)) or retry.get_backoff_time()
        if time.monotonic() + wait >= _call.get().deadline:
            raise MaxRetryError(kwargs["_pool"], url, error)
        return retry

    def sleep(self, response: Any = None) -> None:
        super().sleep(response)
        _call.get().begin()


_RETRY = _Retry(
    total=3,
    redirect=0,
    status_forcelist=(500, 502, 503, 504),
    allowed_methods={"GET", "DELETE"},
    backoff_factor=0.25,
    backoff_max=10,
    backoff_jitter=0.25,
    raise_on_status=False,
)


class _Answer(NamedTuple):
    status: int
    body: bytes
    data: Any  # the decoded JSON, or None
    tries: int
    date: str  # the header
    limit: Limit | None  # what a 429 tells

    def __repr__(self) -> str:
        return f"<answer {self.status}>"  # the API may have repeated the key in it


class _Http(NamedTuple):
    """What belongs to one process: a child that shared a connection with its parent would mix up their answers."""

    session: requests.Session
    pause: _Pause
    pid: int


class AnchorAPI:
    """One account at one base URL. Safe to use from several threads, and after a fork.

    :param base_url: without a trailing slash, already checked.
    :param key: the API key; kept in memory and in the request header only.
    """

    def __init__(self, base_url: str, key: str) -> None:
        self.base_url = base_url
        self._auth = _KeyAuth(key)
        self._key = key
        self._http = self._new_http(until=0.0)

    def __repr__(self) -> str:
        return f"<AnchorAPI {self.base_url}>"

    @cached_property
    def fingerprint(self) -> str:
        """What a record may keep of the key: enough to recognise it, too little to use it."""
        return sha256(b"pytest-anchor:" + self._key.encode()).hexdigest()[:16]

    @cached_property
    def account(self) -> str:
        """What all processes call the account in a file's name."""
        return sha256(f"{self.base_url}\n{self.fingerprint}".encode()).hexdigest()[:16]

    def sign(self, *words: str) -> str:
        """What proves to a holder of the key that a holder of the key wrote *words*, for this base URL."""
        text = "\n".join((self.base_url, *words))
        return hmac.digest(self._key.encode(), text.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]

    @property
    def quiet_until(self) -> float:
        """Until when nothing but creations is sent, in ``time.monotonic()`` seconds; a 429 asked for it."""
        return self._here().pause.until

    def create(self, config: Mapping[str, Any]) -> Created:
        """Create a session; blocks until its browser is ready.

        A 429 is left to the caller: it is about creations, and neither waited for here nor a pause for other calls.

        :param config: the request's body: ``session``, ``browser``, ``integrations``, ``identities``.
        :raises AnchorLostCreateError: a session may exist whose id is not known.
        :raises AnchorAPIError: the API refused, or was not reached: there is no session.
        """
        __tracebackhide__ = True
        what = "create a session"
        answer = self._call("POST", "/v1/sessions", what, json=config, read=CREATE_TIMEOUT)
        if answer.status in _DEFINITE_REFUSALS:
            raise self._error(what, answer)
        if not 200 <= answer.status < 300:
            raise _lost(self._error(what, answer))
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        if not isinstance(data, dict) or "id" not in data:
            raise _lost(self._error(what, answer, "an answer without an id"))
        if not is_session_id(data["id"]):
            raise _lost(self._error(what, answer, f"a hostile id, {data['id']!r}"))
        urls = [url if isinstance(url := data.get(name), str) else "" for name in ("cdp_url", "live_view_url")]
        return Created(data["id"], *urls)

    def end(self, session_id: str, tag: str, *, deadline: float) -> Ended:
        """End a session and say what is known of it afterwards.

        The API answers 401 both to a bad key and to a session that is unknown or over; what it
        answers to a session that is over is not documented at all. So everything but a clear
        success is settled by one read, with the same key, of the sessions that carry *tag*: what
        is listed as over is over, and so is what the API does not know while it takes the key.

        :param tag: a tag that only this session carries.
        :param deadline: ``time.monotonic()`` seconds after which nothing new is tried.
        :raises AnchorAPIError: the session may still be running.
        """
        __tracebackhide__ = True
        what = f"end session {session_id}"
        if not is_session_id(session_id):
            raise AnchorAPIError(
                f"end session {printable(repr(session_id), 80)}",
                message="this is no session id, and was not sent",
                remedy="Look at the account's sessions in Anchor's dashboard.",
            )
        answer = self._call("DELETE", f"/v1/sessions/{session_id}", what, deadline=deadline)
        success = 200 <= answer.status < 300
        if success and (not answer.body or (isinstance(answer.data, dict) and "error" not in answer.data)):
            return Ended(already=False)
        refused = self._error(what, answer)
        unknown = answer.status in (401, 404, 410)  # what it says of a session that it does not know
        try:
            listed = [one for one in self.sessions_with_tag(tag, deadline=deadline) if one.id == session_id]
        except AnchorAPIError as error:
            if not unknown:
                raise refused from None
            error.what, error.tries = what, answer.tries
            raise
        alive = next((one for one in listed if one.alive), None)
        if (alive and not unknown) or (not listed and not (unknown or success)):
            raise refused
        note = f"the API lists it as {printable(self._without_key(alive.status), 40)!r}" if alive else ""
        return Ended(already=True, note=note)

    def sessions_with_tag(self, *tags: str, deadline: float) -> list[Listed]:
        """List the sessions that carry all of *tags*, whatever their state.

        An item that does not itself show the tags is left out, even though it was filtered by them:
        what is listed may be ended, and an API that ignored the filter would list strangers.

        :raises AnchorAPIError: there is no usable list.
        """
        __tracebackhide__ = True
        what = "list the run's sessions"
        path = "/v1/sessions/all/status"
        answer = self._call("GET", path, what, params={"tags": ",".join(tags)}, deadline=deadline, limit=MAX_LIST)
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        items = data.get("items") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(items, list):
            raise self._error(what, answer)
        now = _http_date(answer.date) or time.time()  # this machine's clock may be wrong
        return [
            Listed(item["session_id"], str(item.get("status")), shown, None if created is None else now - created)
            for item in items
            if isinstance(item, dict)
            and is_session_id(item.get("session_id"))
            and isinstance(carried := item.get("tags"), list)
            and set(tags) <= set(shown := tuple(tag for tag in carried if isinstance(tag, str)))
            for created in [_moment(item.get("created_at"))]
        ]

    def max_sessions(self, *, deadline: float) -> int | None:
        """How many browsers the account's plan allows at once; ``None`` where that cannot be learned."""
        try:
            answer = self._call("GET", "/v1/billing", "read the plan's limits", deadline=deadline)
        except AnchorAPIError:
            return None
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        most = data.get("max_concurrent_browsers") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(most, (int, float)) or isinstance(most, bool):
            return None
        return int(most) if 1 <= most < math.inf else None

    def _error(self, what: str, answer: _Answer, message: str = "") -> AnchorAPIError:
        """Translate an answer that is not a success; the API may have repeated the key in it."""
        error = answer.data.get("error") if isinstance(answer.data, dict) else None
        code = error.get("code", "") if isinstance(error, dict) else ""
        message = message or str(error.get("message", "") if isinstance(error, dict) else error or "")
        if 300 <= answer.status < 400:
            message = "a redirect, which is not followed because the key would go along"
        if not message:
            text = answer.body.decode("utf-8", "replace").strip()
            message = f"not JSON: {text}" if text and answer.data is None else text or "no reason given"
        return AnchorAPIError(
            what,
            status=answer.status,
            code=self._without_key(str(code)),
            message=self._without_key(message),
            remedy=_REMEDIES.get(answer.status, _SERVER_REMEDY if answer.status >= 500 else _ANSWER_REMEDY),
            tries=answer.tries,
            limit=answer.limit,
        )

    def _without_key(self, text: str) -> str:
        return redact(text, self._key)

    def _route(self) -> str:
        """Where a request was to go, and by which proxy; a proxy's URL may hold a password."""
        parts = urlsplit(self.base_url)
        proxy = requests.utils.select_proxy(self.base_url, requests.utils.get_environ_proxies(self.base_url) or {})
        if not proxy or parts.scheme != "https":
            return parts.netloc
        return f"{parts.netloc}, by the proxy {proxy.rpartition('@')[2]}"

    def _new_http(self, until: float) -> _Http:
        session = _Session()
        session.auth = self._auth
        session.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # To loopback goes no proxy: over plain HTTP it would read the key.
        session.trust_env = urlsplit(self.base_url).scheme == "https"
        for prefix in ("https://", "http://"):
            session.mount(prefix, _Adapter(pool_maxsize=MAX_CONNECTIONS, max_retries=_RETRY))
        return _Http(session, _Pause(until), os.getpid())

    def _here(self) -> _Http:
        if self._http.pid != os.getpid():
            self._http = self._new_http(self._http.pause.until)
        return self._http

    def _wait(self, what: str, call: _Call) -> None:
        """Wait until the API may be asked again.

        :raises AnchorAPIError: that is after the call's deadline.
        """
        __tracebackhide__ = True
        while (until := self.quiet_until) > (now := time.monotonic()):
            if until + WAKE_JITTER >= call.deadline:
                message = f"the API asked to wait another {until - now:.1f} s, and there is not that much time"
                raise AnchorAPIError(what, status=429, message=message, remedy=_REMEDIES[429], tries=call.tries)
            time.sleep(until - now + random.uniform(0.0, WAKE_JITTER))  # noqa: S311 - no secret

    def _call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        read: float = CALL_TIMEOUT,
        deadline: float = float("inf"),
        limit: int = MAX_ANSWER,
        **kwargs: Any,
    ) -> _Answer:
        __tracebackhide__ = True
        creates = method == "POST"
        deadline = min(deadline, time.monotonic() + (CONNECT_TIMEOUT + read) * (1 if creates else 4))
        call = _Call(deadline, (lambda _call: None) if creates else partial(self._wait, what), creates=creates)
        token = _call.set(call)
        failure: BaseException
        try:
            while True:
                left = call.begin()
                with self._here().session.request(
                    method,
                    self.base_url + path,
                    timeout=(min(CONNECT_TIMEOUT, left), min(read, left)),
                    allow_redirects=False,
                    stream=True,
                    **kwargs,
                ) as response:
                    told = limit_told(response.headers) if response.status_code == 429 else None
                    if told and not creates:
                        self._here().pause.extend(call.pause_after(told))
                    answer = _answer(response, limit, call.tries, told)
                if told is None or creates or self.quiet_until + WAKE_JITTER >= deadline:
                    return answer
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            HTTPException,
            OSError,
            ValueError,
            OverflowError,
            _TooLongError,
        ) as error:
            message = self._without_key(_reason(error))
            if not call.sent:
                message += f" ({self._route()})"
            failure = AnchorAPIError(what, message=message, remedy=_NO_ANSWER_REMEDY, tries=call.tries)
            if creates and call.sent:
                failure = _lost(failure)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, or what a signal's handler raises
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        finally:
            _call.reset(token)
        # Raised out here, without the cause: its frames hold the request's headers, and with them the
        # key, which `pytest --showlocals` would print.
        raise failure


class _TooLongError(Exception):
    pass


def _read(response: requests.Response, limit: int) -> bytes:
    body = bytearray()
    while chunk := response.raw.read1(65536):
        body += chunk
        if len(body) > limit:
            raise _TooLongError(f"an answer of more than {limit} bytes")
    return bytes(body)


def _answer(response: requests.Response, limit: int, tries: int, told: Limit | None) -> _Answer:
    body = _read(response, limit)
    return _Answer(response.status_code, body, _json(body), tries, response.headers.get("Date", ""), told)


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


# RFC 3339, and what of ISO 8601 is written often. Without an offset it tells no moment.
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)([.,]\d+)?(?:Z|([+-]\d\d)(?::?(\d\d))?)", re.ASCII | re.IGNORECASE
)


def _moment(text: object) -> float | None:
    """Seconds since the epoch of an ISO 8601 timestamp; Python 3.10's own parser takes few of them."""
    match = _MOMENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        return None
    date, clock, fraction, hours, minutes = match.groups()
    try:
        whole = datetime.fromisoformat(f"{date}T{clock}{hours or '+00'}:{minutes or '00'}").timestamp()
    except (ValueError, OverflowError):
        return None
    return whole + float((fraction or ".0").replace(",", "."))


def _http_date(text: str) -> float | None:
    """Seconds since the epoch of an HTTP date, whose zone is always GMT."""
    try:
        moment = parsedate_to_datetime(text[:100])
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def limit_told(headers: Mapping[str, str]) -> Limit:
    """What the headers of a 429 tell; whatever they hold, it raises nothing."""
    policies = list(_policies(headers.get("RateLimit-Policy", "")))
    # Of several the shortest paces; of a longer one, Retry-After tells.
    quota, window = min(policies, key=lambda one: (one[1], one[0]), default=(None, None))
    return Limit(_retry_after(headers.get("Retry-After", ""), headers.get("Date", "")), quota, window)


def _retry_after(text: str, date: str) -> float | None:
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif (until := _http_date(text)) is not None:
        now = _http_date(date)
        seconds = until - (time.time() if now is None else now)
    else:
        return None
    return seconds if 0 <= seconds <= MAX_WAIT else None


_NUMBER = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_OPAQUE = re.compile(r'"(?:[^"\\]|\\.)*"?|:[A-Za-z0-9+/=]*:')  # quoted strings and byte sequences


def _policies(header: str) -> Iterator[tuple[int, float]]:
    """The quota and the window in seconds of each policy that has both.

    That is ``"name";q=5;w=60``, where the name may be missing, or the older ``5;w=60``.
    """
    if len(header) > MAX_POLICY:
        return
    for policy in _OPAQUE.sub("''", header).split(","):
        first, *rest = (part.strip() for part in policy.split(";"))
        told = dict(part.partition("=")[::2] for part in (first if "=" in first else f"q={first}", *rest))
        quota, window = told.get("q", ""), told.get("w", "")
        if not (re.fullmatch("[0-9]{1,6}", quota) and _NUMBER.fullmatch(window)):
            continue
        if 1 <= int(quota) <= MAX_QUOTA and 0 < float(window) <= MAX_WINDOW:
            yield int(quota), float(window)


def _lost(error: AnchorAPIError) -> AnchorLostCreateError:
    return AnchorLostCreateError(
        error.what,
        status=error.status,
        code=error.code,
        message=error.message,
        remedy="A session may exist all the same; the run looks for it by its tag and ends it.",
    )


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it wraps: requests and urllib3 put the reason in ``reason`` or in ``args``."""
    chain: list[BaseException] = []
    todo: list[object] = [error]
    while todo:
        item = todo.pop()
        if isinstance(item, BaseException) and item not in chain:
            chain.append(item)
            todo += [getattr(item, "reason", None), *item.args]
    return chain


def _reason(error: BaseException) -> str:
    chain = _chain(error)
    no_connection = any(isinstance(one, NewConnectionError) for one in chain)  # to urllib3 a kind of timeout
    timeouts = (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
    if not no_connection and any(isinstance(one, timeouts) for one in chain):
        return "no answer in time"
    # The innermost says what the system said; those around it repeat it with their object's address.
    inner = next((one for one in reversed(chain) if isinstance(one, OSError) and one.strerror), chain[-1])
    text = (isinstance(inner, OSError) and inner.strerror) or str(inner) or type(inner).__name__
    text = re.sub(r"//[^/@\s]*@", "//***@", text)  # of a proxy's URL
    return text.rpartition(": ")[2] if no_connection else text
