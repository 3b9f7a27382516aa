"""Connects Playwright to a session, and tells without the key why that fails."""

from __future__ import annotations

import re
from functools import partial
from inspect import signature
from ipaddress import ip_address
from time import sleep
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from ..errors import AnchorConnectionError, printable, redact
from . import apis

if TYPE_CHECKING:
    from ..session import AnchorSession

# By number and not by a clock, which a test may have frozen: about 12 seconds in all.
PAUSES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0)  # seconds between attempts
ATTEMPT_TIMEOUT = 30.0  # seconds
_REFUSED = re.compile(r"\b(401|403)\b")
_TIMED_OUT = re.compile(r"\bTimeout \d+ms exceeded")
_sleep = sleep  # as it was before a test replaced it


def connect(playwright: Any, session: AnchorSession, *, slow_mo: float = 0.0) -> Any:
    """Connect Playwright to *session*, whose browser may need a moment until it answers.

    :param playwright: a ``Playwright``, or its ``chromium``, of the synchronous or the asynchronous API.
    :param slow_mo: milliseconds by which Playwright slows each operation down.
    :returns: a ``Browser``; with the asynchronous API, an awaitable of one.
    :raises AnchorConnectionError: it cannot be connected to; the message has no key in it.
    """
    __tracebackhide__ = True
    return apis.run(playwright, _connect(getattr(playwright, "chromium", playwright), session, slow_mo))


async def _connect(chromium: Any, session: AnchorSession, slow_mo: float) -> Any:
    __tracebackhide__ = True
    options: dict[str, Any] = {"timeout": 1000 * ATTEMPT_TIMEOUT}
    if slow_mo:
        options["slow_mo"] = slow_mo
    if is_local(session) and "is_local" in signature(chromium.connect_over_cdp).parameters:
        options["is_local"] = True  # or files of more than 50 MB, and directories, could not be uploaded
    problem = ""
    for attempt in range(len(PAUSES) + 1):
        if attempt:
            await apis.without_blocking(chromium, partial(_sleep, PAUSES[attempt - 1]))
        browser, problem = await _attempt(chromium, session, options)
        if browser is not None:
            return browser
        if _REFUSED.search(problem):
            raise _failure(session, problem, "The session is over by now, or the key is no longer accepted.")
        if _TIMED_OUT.search(problem):
            break
    host = urlsplit(session.cdp_url).hostname
    raise _failure(session, problem, f"Can {host} be reached from here, WebSockets included? A proxy may forbid them.")


async def _attempt(chromium: Any, session: AnchorSession, options: dict[str, Any]) -> tuple[Any, str]:
    """A browser, or why there is none: Playwright's own exception holds the URL, and must not become a context."""
    from playwright.async_api import Error

    try:
        return await apis.settle(chromium.connect_over_cdp(session.cdp_url, **options)), ""
    except Error as error:
        return None, without_key(str(error), session.cdp_url)


def _failure(session: AnchorSession, problem: str, remedy: str) -> AnchorConnectionError:
    reason = problem.partition("\n")[0].removeprefix("BrowserType.connect_over_cdp: ").rstrip(".")
    return AnchorConnectionError(f"Playwright could not connect to {session.label}: {printable(reason)}. {remedy}")


def is_local(session: AnchorSession) -> bool:
    """Whether the session's browser is on this machine, and sees its files."""
    host = urlsplit(session.cdp_url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def without_key(text: str, cdp_url: str) -> str:
    """*text* without the query of *cdp_url*, and without what that consists of."""
    query = urlsplit(cdp_url).query
    text = text.replace(f"?{query}", "?…") if query else text
    for _, value in parse_qsl(query):
        text = redact(text, value) if len(value) > 5 else text
    return text
