"""Cookies of requests that the browser does not send itself: those it would send along, and those it would store."""

from __future__ import annotations

import time
from calendar import timegm
from contextlib import suppress
from email.utils import parsedate
from typing import TYPE_CHECKING, Any

from .guard import origin, site

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from http.cookies import Morsel

_SAME_SITE = {"strict": "Strict", "lax": "Lax", "none": "None"}
_PAST = 1.0  # an expiry, in seconds since the epoch, that has the browser delete a cookie


def header(cookies: Iterable[Mapping[str, Any]], url: str, source: str) -> str:
    """The value of a request's ``Cookie`` header.

    :param cookies: the browser's for the URL, as CDP describes them.
    :param source: the origin that the request comes from.
    """
    is_foreign = _is_foreign(url, source)
    return "; ".join(
        f"{one['name']}={one['value']}" for one in cookies if not is_foreign or one.get("sameSite") == "None"
    )


def to_store(cookies: Iterable[Morsel[str]], url: str, source: str) -> list[dict[str, Any]]:
    """What a response has set and the browser would take, as CDP wants it; the browser checks the rest.

    :param source: the origin that the request came from.
    """
    is_foreign = _is_foreign(url, source)
    return [
        _described(one, url)
        for one in cookies
        if not is_foreign or (_SAME_SITE.get(one["samesite"].lower()) == "None" and one["secure"])
    ]


def _is_foreign(url: str, source: str) -> bool:
    return site(url) != site(origin(source))


def _described(cookie: Morsel[str], url: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": cookie.key,
        "value": cookie.coded_value,
        "url": url,
        "secure": bool(cookie["secure"]),
        "httpOnly": bool(cookie["httponly"]),
    }
    described |= {name: cookie[name] for name in ("domain", "path") if cookie[name]}
    if same_site := _SAME_SITE.get(cookie["samesite"].lower()):
        described["sameSite"] = same_site
    if (expires := _expires(cookie)) is not None:
        described["expires"] = expires
    return described


def _expires(cookie: Morsel[str]) -> float | None:
    """The seconds since the epoch until which a cookie lasts; ``None`` for as long as the browser."""
    with suppress(ValueError, OverflowError):  # what cannot be read counts as if it were not there
        age = int(cookie["max-age"])
        return time.time() + age if age > 0 else _PAST
    with suppress(ValueError, OverflowError):
        if date := parsedate(cookie["expires"]):
            return max(float(timegm(date)), _PAST)  # in UTC, whatever it says
    return None
