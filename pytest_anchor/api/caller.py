"""Makes a call in as many attempts as it is worth: one loop, and one rule of what is tried again."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..errors import AnchorAPIError, AnchorLostCreateError, is_transient_status, redact
from . import failures
from .answers import CUT_SHORT
from .headers import parse_limit, parse_retry_after
from .transport import CallContext, current_call, describe_route, open_session, read_body

if TYPE_CHECKING:
    import requests

    from ..errors import Limit

CONNECT_TIMEOUT = 10.0  # seconds
CALL_TIMEOUT = 15.0  # seconds, for ending and listing

MAX_ANSWER = 1 << 20  # bytes
MAX_RETRIES = 3  # of a call that failed otherwise than by a 429
BACKOFF = 0.25  # seconds; the first retry follows at once, the second after twice as long, and so on
MAX_RETRY_AFTER = 30.0  # seconds; a server that asks for more is asked again sooner
FIRST_PAUSE = 0.25  # seconds after a 429 at least; doubled with each that the same call meets
WAKE_JITTER = 0.1  # seconds over which the calls that waited begin again

RATE_REMEDY = "The plan's limit is reached: run fewer workers, or end sessions that are not needed."
_NO_ANSWER_REMEDY = "Check the network and the base URL (ANCHORBROWSER_BASE_URL, --anchor-base-url)."


class Answer(NamedTuple):
    """An answer that was read to its end."""

    status: int
    body: bytes
    data: Any  # the decoded JSON, or None
    tries: int
    date: str  # the header
    retry_after: float | None  # seconds
    limit: Limit | None  # of a 429
    location: str = ""  # of a redirect

    def __repr__(self) -> str:
        return f"<answer {self.status}>"  # the API may have repeated the key in it


class Call(CallContext):
    """A call with all its attempts.

    :param what: what is asked for, for errors.
    :param creates: whether it may create a session: then it is tried again only where nothing was sent.
    """

    def __init__(self, what: str, deadline: float, *, creates: bool = False) -> None:
        super().__init__(deadline, needs_fresh_connection=creates)
        self.what = what
        self.creates = creates
        self.tries = 0
        self._retries = 0
        self._pause = FIRST_PAUSE

    @property
    def remaining(self) -> float:
        """The seconds there are for the next attempt."""
        return max(0.05, self.deadline - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.deadline

    def pause_after(self, limit: Limit) -> float:
        """Seconds for which the API is left alone after this call met a 429 with this *limit*."""
        least, self._pause = self._pause, 2 * self._pause
        wait = max(least * random.uniform(1.0, 1.5), limit.retry_after or 0.0)  # noqa: S311 - no secret
        return min(wait, MAX_RETRY_AFTER)

    def retry_in(self, outcome: Answer | BaseException) -> float | None:
        """Seconds until the next attempt, ``None`` if there is to be none after this *outcome*.

        After a 429, all calls wait together: see :class:`Pause`.
        """
        if isinstance(outcome, Answer):
            is_worth_it = is_transient_status(outcome.status) and not self.creates
            if is_worth_it and outcome.status == 429:
                return 0.0
        elif self.creates:
            is_worth_it = not self.is_sent and failures.is_unconnected(outcome)
        else:
            is_worth_it = failures.is_transient(outcome)
        if not is_worth_it or self._retries == MAX_RETRIES:
            return None
        wait = BACKOFF * 2**self._retries * random.uniform(1.0, 1.5) if self._retries else 0.0  # noqa: S311 - no secret
        if isinstance(outcome, Answer) and outcome.retry_after is not None:
            wait = min(outcome.retry_after, MAX_RETRY_AFTER)
        self._retries += 1
        return wait if time.monotonic() + wait < self.deadline else None


class Pause:
    """Until when the API asked all to wait, in ``time.monotonic()`` seconds."""

    def __init__(self, until: float = 0.0) -> None:
        self.until = until
        self._lock = threading.Lock()

    def extend(self, seconds: float) -> None:
        """Have all wait for *seconds* from now at least."""
        with self._lock:
            self.until = max(self.until, time.monotonic() + seconds)

    def wait(self, call: Call) -> None:
        """Wait until the API may be asked again.

        :raises AnchorAPIError: that is after the call's deadline.
        """
        __tracebackhide__ = True
        while (until := self.until) > (now := time.monotonic()):
            if self.outlasts(call.deadline):
                message = f"the API asked to wait another {until - now:.1f} s, and there is not that much time"
                raise AnchorAPIError(call.what, status=429, message=message, remedy=RATE_REMEDY, tries=call.tries)
            time.sleep(until - now + random.uniform(0.0, WAKE_JITTER))  # noqa: S311 - no secret

    def outlasts(self, deadline: float) -> bool:
        """Whether it is over too late for another attempt."""
        return self.until + WAKE_JITTER >= deadline


class _Process(NamedTuple):
    """What belongs to one process: a child that shared a connection with its parent would mix up their answers."""

    session: requests.Session
    pause: Pause
    pid: int


class Caller:
    """Calls an account's API. Safe to use from several threads, and after a fork.

    :param key: the API key; kept in memory and in the request header only. ``None`` sends none.
    """

    def __init__(self, base_url: str, key: str | None) -> None:
        self._base_url = base_url
        self._key = key
        self._process = self._new_process(until=0.0)

    @property
    def session(self) -> requests.Session:
        """The HTTP session of this process."""
        return self._here().session

    @property
    def pause(self) -> Pause:
        """The pause that a 429 asked for; it does not hold for creations."""
        return self._here().pause

    def without_key(self, text: str) -> str:
        """*text* as it may be shown: the API may have repeated the key in it."""
        return redact(text, self._key) if self._key else text

    def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        read: float = CALL_TIMEOUT,
        deadline: float = float("inf"),
        limit: int = MAX_ANSWER,
        sink: BinaryIO | None = None,
        **kwargs: Any,
    ) -> Answer:
        """Make a call; a POST is taken for a creation.

        A 429 makes all calls of this process wait, but for creations: theirs is left to the caller.

        :param what: what is asked for, for errors.
        :param read: seconds for an answer to begin.
        :param deadline: ``time.monotonic()`` seconds after which nothing new is tried.
        :param limit: bytes that an answer may have.
        :param sink: takes the body of a success; that of the answer is its beginning then.
        :raises AnchorLostCreateError: no usable answer came to a creation that was sent.
        :raises AnchorAPIError: no usable answer came.
        """
        __tracebackhide__ = True
        creates = method == "POST"
        deadline = min(deadline, time.monotonic() + (CONNECT_TIMEOUT + read) * (1 if creates else 4))
        call = Call(what, deadline, creates=creates)
        token = current_call.set(call)
        failure: BaseException
        try:
            return self._attempts(method, path, call, read=read, limit=limit, sink=sink, **kwargs)
        except failures.FAILURES as error:
            message = self.without_key(failures.describe(error))
            if not call.is_sent:
                message += f" ({describe_route(self._base_url)})"
            failure = AnchorAPIError(what, message=message, remedy=_NO_ANSWER_REMEDY, tries=call.tries)
            if creates and call.is_sent:
                failure = lost(failure)
        except BaseException as error:  # noqa: BLE001 - Ctrl-C, or what a signal's handler raises
            failure = error.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        finally:
            current_call.reset(token)
        # Raised out here, without the cause: its frames hold the request's headers, and with them the
        # key, which `pytest --showlocals` would print.
        raise failure

    def _attempts(
        self, method: str, path: str, call: Call, *, read: float, limit: int, sink: BinaryIO | None, **kwargs: Any
    ) -> Answer:
        __tracebackhide__ = True
        answer = None
        while True:
            if not call.creates:
                self.pause.wait(call)
            call.tries += 1
            timeout = (min(CONNECT_TIMEOUT, call.remaining), min(read, call.remaining))
            try:
                answer = self._attempt(method, path, call, limit, sink, timeout=timeout, **kwargs)
            except failures.FAILURES as error:
                if (wait := call.retry_in(error)) is None:
                    if answer and call.is_over and timeout[1] < CUT_SHORT:  # it was cut short: the answer before counts
                        return answer._replace(tries=call.tries)
                    raise
                answer = None
            else:
                wait = call.retry_in(answer)
                if wait is None or (answer.status == 429 and self.pause.outlasts(call.deadline)):
                    return answer
            time.sleep(wait)

    def _attempt(self, method: str, path: str, call: Call, limit: int, sink: BinaryIO | None, **kwargs: Any) -> Answer:
        url = self._base_url + path
        with self.session.request(method, url, allow_redirects=False, stream=True, **kwargs) as response:
            headers = response.headers
            rate_limit = parse_limit(headers) if response.status_code == 429 else None
            if rate_limit and not call.creates:
                self.pause.extend(call.pause_after(rate_limit))  # before the body, which may have no end
            body = read_body(response, limit, sink if response.status_code == 200 else None)
            return Answer(
                response.status_code,
                body,
                _parse_json(body),
                call.tries,
                headers.get("Date", ""),
                parse_retry_after(headers),
                rate_limit,
                headers.get("Location", ""),
            )

    def _new_process(self, until: float) -> _Process:
        return _Process(open_session(self._base_url, self._key), Pause(until), os.getpid())

    def _here(self) -> _Process:
        if self._process.pid != os.getpid():
            self._process = self._new_process(self._process.pause.until)
        return self._process


def lost(error: AnchorAPIError) -> AnchorLostCreateError:
    """The same error, for a creation that may have taken effect."""
    return AnchorLostCreateError(
        error.what,
        status=error.status,
        code=error.code,
        message=error.message,
        remedy="A session may exist all the same; the run looks for it by its tag and ends it.",
    )


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
