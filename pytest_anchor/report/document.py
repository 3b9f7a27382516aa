"""The picture of a run as JSON: docs/report.md describes each field, and when the version changes."""

from __future__ import annotations

from collections import Counter
from os.path import relpath
from typing import TYPE_CHECKING, Any

from .estimates import estimates
from .model import Waits

if TYPE_CHECKING:
    from .model import Picture

FORMAT = "pytest-anchor-report"
VERSION = 1


def document_of(picture: Picture, folder: str) -> dict[str, Any]:
    """The picture as plain built-ins.

    :param folder: absolute; what was kept of the tests is named by its path from there.
    """
    seconds = sum(test.ended - test.began for test in picture.tests)
    waits = [sum(test.waits[kind] for test in picture.tests) for kind in range(len(Waits._fields))]
    return {
        "format": FORMAT,
        "version": VERSION,
        "run": {
            "id": picture.run_id,
            "status": picture.status,
            "began": round(picture.began, 3),
            "seconds": picture.seconds,
            "max_sessions": picture.cap or None,
            "rate": {"creations": picture.quota, "seconds": picture.window} if picture.quota else None,
            "prefetch": picture.prefetch,
            "end": "background" if picture.end_in_background else "inline",
        },
        "totals": {
            **picture.counts,
            "most_at_once": picture.peak,
            "browser_minutes": round(picture.browser_seconds / 60, 2),
            "credits": picture.credits,
            "tests": len(picture.tests),
            "outcomes": dict(Counter(test.outcome for test in picture.tests).most_common()),
            "test_seconds": {
                "own": round(max(seconds - sum(waits), 0.0), 3),
                **{name: round(waited, 3) for name, waited in zip(Waits._fields, waits, strict=True)},
            },
            "limit_waits": {
                limit: {"creations": len(waited), "seconds": round(sum(waited), 3)}
                for limit, waited in picture.limit_waits.items()
            },
        },
        "estimates": [estimate._asdict() for estimate in estimates(picture)],
        "lanes": picture.lanes,
        "tests": [
            {**test._asdict(), "waits": test.waits._asdict(), "screenshots": _from(folder, test.screenshots)}
            for test in picture.tests
        ],
        "sessions": [
            {**session._asdict(), "recordings": _from(folder, session.recordings)} for session in picture.sessions
        ],
        "live": picture.live,
    }


def _from(folder: str, paths: list[str]) -> list[str]:
    return [relpath(path, folder) for path in paths]
