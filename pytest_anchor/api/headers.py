"""Times, limits and amounts from headers and answers; whatever they hold, nothing here raises."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from ..errors import Limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_WAIT = 3600.0  # seconds; a longer Retry-After cannot be meant
MAX_POLICY = 4096  # characters of a RateLimit-Policy
MAX_QUOTA = 100_000  # requests
MAX_AMOUNT = 1e9
MAX_WINDOW = 24 * 3600.0  # seconds

_AMOUNT = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_WINDOW = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_OPAQUE = re.compile(r'"(?:[^"\\]|\\.)*"?|:[A-Za-z0-9+/=]*:')  # quoted strings and byte sequences

# RFC 3339, and what of ISO 8601 is written often. Without an offset it is ambiguous.
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)([.,]\d+)?(?:Z|([+-]\d\d)(?::?(\d\d))?)", re.ASCII | re.IGNORECASE
)


def parse_limit(headers: Mapping[str, str]) -> Limit:
    """The limit that the headers of a 429 describe."""
    policies = list(_policies(headers.get("RateLimit-Policy", "")))
    # Of several policies the shortest one sets the pace; for a longer one there is Retry-After.
    quota, window = min(policies, key=lambda policy: (policy[1], policy[0]), default=(None, None))
    seconds = parse_retry_after(headers)
    return Limit(None if seconds is None or seconds > MAX_WAIT else seconds, quota, window)


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds for which ``Retry-After`` asks to wait, perhaps infinitely many."""
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    if (until := parse_date(text)) is None:
        return None
    now = parse_date(headers.get("Date", ""))
    seconds = until - (time.time() if now is None else now)
    return seconds if seconds >= 0 else None


def parse_date(text: str) -> float | None:
    """Seconds since the epoch of an HTTP date, whose zone is always GMT."""
    try:
        moment = parsedate_to_datetime(text[:100])
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def parse_timestamp(text: object) -> float | None:
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


def parse_amount(value: object) -> float | None:
    """An amount that is not negative: a number, or a text with one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and not _AMOUNT.fullmatch(value):
        return None
    amount = float(value)
    return amount if 0 <= amount < MAX_AMOUNT else None


def _policies(header: str) -> Iterator[tuple[int, float]]:
    """The quota and the window in seconds of each policy that has both.

    That is ``"name";q=5;w=60``, where the name may be missing, or the older ``5;w=60``.
    """
    if len(header) > MAX_POLICY:
        return
    for policy in _OPAQUE.sub("''", header).split(","):
        first, *rest = (part.strip() for part in policy.split(";"))
        parameters = dict(part.partition("=")[::2] for part in (first if "=" in first else f"q={first}", *rest))
        quota, window = parameters.get("q", ""), parameters.get("w", "")
        if not (re.fullmatch("[0-9]{1,6}", quota) and _WINDOW.fullmatch(window)):
            continue
        if 1 <= int(quota) <= MAX_QUOTA and 0 < float(window) <= MAX_WINDOW:
            yield int(quota), float(window)
