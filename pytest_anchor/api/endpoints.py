"""The endpoints of Anchor's sessions API, and what each answer means.

Facts come from Anchor's public OpenAPI description of ``/v1/sessions`` unless a comment says otherwise.
"""

from __future__ import annotations

import hmac
import math
import time
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import urljoin, urlsplit

from ..errors import AnchorAPIError, printable
from ..tags import is_session_id
from .answers import Created, Ended, Listed
from .caller import RATE_REMEDY, Caller, lost
from .headers import parse_amount, parse_date, parse_timestamp

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from .caller import Answer

CREATE_TIMEOUT = 120.0  # seconds; the call blocks until the browser is ready
MAX_RECORDING = 1 << 30  # bytes
MP4 = b"ftyp"  # after a length
REDIRECTS = (301, 302, 303, 307, 308)
MAX_SCREENSHOT = 8 << 20  # bytes
PNG = b"\x89PNG\r\n\x1a\n"
PAGE = 50  # sessions that the API's history tells of at once, at most
MAX_LIST = 64 << 20  # bytes; a session takes about 300 in a list

# A creation that these answer did not take place. 408 may come after the effect.
_DEFINITE_REFUSALS = frozenset(range(400, 500)) - {408}

_REMEDIES = {
    400: "Check the keywords given to the factory, anchor_session_defaults and the anchor marker.",
    401: "The API refuses the key: check ANCHORBROWSER_API_KEY.",
    402: "The account has no credits left: top it up, or run with --anchor-local.",
    403: "The key may not do this, or the project's cost limit is reached: check Anchor's dashboard.",
    404: "Check the base URL (ANCHORBROWSER_BASE_URL, --anchor-base-url).",
    429: RATE_REMEDY,
}
_SERVER_REMEDY = "The trouble is at the API's side: try again, and tell Anchor's support if it lasts."
_ANSWER_REMEDY = "This is not an answer of Anchor's API: check the base URL and any proxy between."


class AnchorAPI:
    """One account at one base URL. Safe to use from several threads, and after a fork.

    :param base_url: without a trailing slash, already checked.
    :param key: the API key; kept in memory and in the request header only.
    """

    def __init__(self, base_url: str, key: str) -> None:
        self.base_url = base_url
        self._key = key
        self._caller = Caller(base_url, key)

    def __repr__(self) -> str:
        return f"<AnchorAPI {self.base_url}>"

    @cached_property
    def fingerprint(self) -> str:
        """What a record may keep of the key: enough to recognise it, too little to use it."""
        return sha256(b"pytest-anchor:" + self._key.encode()).hexdigest()[:16]

    @cached_property
    def account(self) -> str:
        """Names the account in file names, alike in all processes."""
        return sha256(f"{self.base_url}\n{self.fingerprint}".encode()).hexdigest()[:16]

    def sign(self, *words: str) -> str:
        """A signature of *words* for this base URL, which takes the key to make and to check."""
        text = "\n".join((self.base_url, *words))
        return hmac.digest(self._key.encode(), text.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]

    @property
    def quiet_until(self) -> float:
        """Until when nothing but creations is sent, in ``time.monotonic()`` seconds; a 429 asked for it."""
        return self._caller.pause.until

    def create(self, config: Mapping[str, Any]) -> Created:
        """Create a session; blocks until its browser is ready.

        A 429 is left to the caller: it is about creations, and neither waited for here nor a pause for other calls.

        :param config: the request's body: ``session``, ``browser``, ``integrations``, ``identities``.
        :raises AnchorLostCreateError: a session may exist whose id is not known.
        :raises AnchorAPIError: the API refused, or was not reached: there is no session.
        """
        __tracebackhide__ = True
        what = "create a session"
        answer = self._caller.call("POST", "/v1/sessions", what, json=config, read=CREATE_TIMEOUT)
        if answer.status in _DEFINITE_REFUSALS:
            raise self._error(what, answer)
        if not 200 <= answer.status < 300:
            raise lost(self._error(what, answer))
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        if not isinstance(data, dict) or "id" not in data:
            raise lost(self._error(what, answer, "an answer without an id"))
        if not is_session_id(data["id"]):
            raise lost(self._error(what, answer, f"a hostile id, {data['id']!r}"))
        cdp_url, live_view_url = (
            url if isinstance(url := data.get(name), str) else "" for name in ("cdp_url", "live_view_url")
        )
        # Terminals show the latter.
        return Created(data["id"], cdp_url, live_view_url if live_view_url.isprintable() else "")

    def end(self, session_id: str, tag: str, *, deadline: float) -> Ended:
        """End a session and return what is known of it afterwards.

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
                message="this is not a session id, and was not sent",
                remedy="Look at the account's sessions in Anchor's dashboard.",
            )
        answer = self._caller.call("DELETE", f"/v1/sessions/{session_id}", what, deadline=deadline)
        success = 200 <= answer.status < 300
        if success and (not answer.body or (isinstance(answer.data, dict) and "error" not in answer.data)):
            return Ended(already=False)
        refused = self._error(what, answer)
        unknown = answer.status in (401, 404, 410)  # its answers for a session that it does not know
        if time.monotonic() >= deadline and not (unknown or success):
            raise refused
        try:
            listed = [session for session in self.sessions_with_tag(tag, deadline=deadline) if session.id == session_id]
        except AnchorAPIError as error:
            if not unknown:
                raise refused from None
            error.what, error.tries = what, answer.tries
            raise
        alive = next((session for session in listed if session.alive), None)
        if (alive and not unknown) or (not listed and not (unknown or success)):
            raise refused
        note = f"the API lists it as {printable(self._caller.without_key(alive.status), 40)!r}" if alive else ""
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
        answer = self._caller.call(
            "GET", path, what, params={"tags": ",".join(tags)}, deadline=deadline, limit=MAX_LIST
        )
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        items = data.get("items") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(items, list):
            raise self._error(what, answer)
        now = parse_date(answer.date) or time.time()  # this machine's clock may be wrong
        return [
            Listed(item["session_id"], str(item.get("status")), shown, None if created is None else now - created)
            for item in items
            if isinstance(item, dict)
            and is_session_id(item.get("session_id"))
            and isinstance(carried := item.get("tags"), list)
            and set(tags) <= set(shown := tuple(tag for tag in carried if isinstance(tag, str)))
            for created in [parse_timestamp(item.get("created_at"))]
        ]

    def screenshot(self, session_id: str, *, deadline: float) -> bytes:
        """What a session's screen shows, as a PNG.

        :raises AnchorAPIError: there is none.
        """
        __tracebackhide__ = True
        what = f"take a screenshot of session {session_id}"
        if not is_session_id(session_id):
            raise AnchorAPIError("take a screenshot", message="this is not a session id, and was not sent")
        path = f"/v1/sessions/{session_id}/screenshot"
        answer = self._caller.call("GET", path, what, deadline=deadline, limit=MAX_SCREENSHOT)
        if answer.status != 200:
            raise self._error(what, answer)
        if not answer.body.startswith(PNG):
            raise self._error(what, answer, "an answer that is not a PNG")
        return answer.body

    def recording(self, session_id: str, file: BinaryIO, *, deadline: float) -> None:
        """Download what was recorded of a session that is over, as an MP4.

        The API answers with a redirect to the file, which is fetched without the key.

        :param file: empty, and written from its beginning.
        :raises AnchorAPIError: there is none, or not yet; or the file cannot take it.
        """
        __tracebackhide__ = True
        what = f"fetch the recording of session {session_id}"
        if not is_session_id(session_id):
            raise AnchorAPIError("fetch a recording", message="this is not a session id, and was not sent")
        path = f"/v1/sessions/{session_id}/recordings/primary/fetch"
        answer = self._caller.call("GET", path, what, deadline=deadline, limit=MAX_RECORDING, sink=file)
        if answer.status in REDIRECTS:
            base, path = self._split_redirect(what, answer)
            answer = Caller(base, None).call("GET", path, what, deadline=deadline, limit=MAX_RECORDING, sink=file)
        if answer.status != 200:
            raise self._error(what, answer)
        if answer.body[4:8] != MP4:
            raise self._error(what, answer, "an answer that is not an MP4")

    def _split_redirect(self, what: str, answer: Answer) -> tuple[str, str]:
        """The base and the rest of an address that the API names: https, or this machine's where the API is here."""
        parts = urlsplit(urljoin(self.base_url, answer.location))
        is_here = (parts.scheme, parts.hostname) == ("http", urlsplit(self.base_url).hostname)
        if not (parts.scheme == "https" or (is_here and self.base_url.startswith("http:"))) or not parts.hostname:
            message = "a redirect to where no file is fetched from"
            raise AnchorAPIError(what, status=answer.status, message=message, remedy=_ANSWER_REMEDY)
        return f"{parts.scheme}://{parts.netloc}", f"{parts.path}?{parts.query}"

    def set_tags(self, session_id: str, tags: Sequence[str], *, deadline: float) -> None:
        """Replace all tags of a session.

        :raises AnchorAPIError: they are not replaced, as far as is known.
        """
        __tracebackhide__ = True
        what = f"tag session {session_id}"
        if not is_session_id(session_id):
            raise AnchorAPIError("tag a session", message="this is not a session id, and was not sent")
        path = f"/v1/sessions/{session_id}/tags"
        answer = self._caller.call("PUT", path, what, deadline=deadline, json={"tags": list(tags)})
        if not 200 <= answer.status < 300:
            raise self._error(what, answer)

    def credits(self, ids: Collection[str], tag: str, *, deadline: float) -> float | None:
        """The credits that some sessions have used, all together, by one question.

        :param tag: that all of them carry.
        :returns: ``None`` where that cannot be learned: one page of the API's history does not tell all of them.
        """
        params = {"tags": tag, "limit": PAGE}
        try:
            answer = self._caller.call("GET", "/v1/sessions", "read the credits", params=params, deadline=deadline)
        except AnchorAPIError:
            return None
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        items = data.get("sessions") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(items, list):
            return None
        told = {str(item.get("id")): parse_amount(item.get("used_credits")) for item in items if isinstance(item, dict)}
        amounts = [told.get(session_id) for session_id in ids]
        return None if None in amounts else sum(filter(None, amounts))

    def max_sessions(self, *, deadline: float) -> int | None:
        """How many browsers the account's plan allows at once; ``None`` where that cannot be learned."""
        try:
            answer = self._caller.call("GET", "/v1/billing", "read the plan's limits", deadline=deadline)
        except AnchorAPIError:
            return None
        data = answer.data.get("data") if isinstance(answer.data, dict) else None
        most = data.get("max_concurrent_browsers") if isinstance(data, dict) else None
        if answer.status != 200 or not isinstance(most, (int, float)) or isinstance(most, bool):
            return None
        return int(most) if 1 <= most < math.inf else None

    def _error(self, what: str, answer: Answer, message: str = "") -> AnchorAPIError:
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
            code=self._caller.without_key(str(code)),
            message=self._caller.without_key(message),
            remedy=_REMEDIES.get(answer.status, _SERVER_REMEDY if answer.status >= 500 else _ANSWER_REMEDY),
            tries=answer.tries,
            limit=answer.limit,
        )
