"""How much was used in each period: ``GET /v1/sessions/history``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

METRICS = (
    "session_count",
    "proxy_bytes",
    "ai_steps",
    "session_hours",
    "credits_used",
    "screenshots",
    "network_bytes_total",
)


def _day(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


PERIODS: dict[str, Callable[[datetime], datetime]] = {
    "hour": lambda moment: moment.replace(minute=0, second=0, microsecond=0),
    "day": _day,
    "week": lambda moment: _day(moment) - timedelta(days=moment.weekday()),
    "month": lambda moment: _day(moment).replace(day=1),
}


@dataclass(frozen=True)
class Use:
    """What one session has used."""

    created: datetime
    seconds: float
    credits: float


def history(uses: Iterable[Use], granularity: str, metrics: Iterable[str], page: int, limit: int) -> dict[str, Any]:
    """Return what was used in each period in which a session was created, and in all of them together."""
    periods: dict[datetime, list[Use]] = {}
    for use in uses:
        periods.setdefault(PERIODS[granularity](use.created), []).append(use)
    totals = {start: _total(periods[start]) for start in sorted(periods)}
    points = [
        {"date": start.isoformat().replace("+00:00", "Z"), **{name: used[name] for name in metrics}}
        for start, used in totals.items()
    ]
    total_pages = math.ceil(len(points) / limit)
    total = _total([use for each in periods.values() for use in each])
    return {
        "data": points[(page - 1) * limit : page * limit],
        "summary": {f"total_{'sessions' if name == 'session_count' else name}": total[name] for name in METRICS},
        "pagination": {
            "current_page": page,
            "total_pages": total_pages,
            "total_records": len(points),
            "has_next": page < total_pages,
            "has_prev": page > 1,
        },
    }


def _total(uses: list[Use]) -> dict[str, float]:
    return {
        **dict.fromkeys(METRICS, 0),
        "session_count": len(uses),
        "session_hours": sum(use.seconds for use in uses) / 3600,
        "credits_used": sum(use.credits for use in uses),
    }
