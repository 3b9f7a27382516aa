"""What a session is configured with: keywords, merged from the suite's defaults, the marker and the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import AnchorConfigError
from .settings import KEYWORDS

IDLE_TIMEOUT, MAX_DURATION = 5, 20  # minutes; Anchor's defaults for a session's timeouts


class Wanted(NamedTuple):
    """A session that a test is expected to ask for."""

    test: str
    config: Mapping[str, Any]


def check_keywords(given: Mapping[str, Any], where: str) -> None:
    """Refuse keywords that Anchor's API does not have.

    :raises TypeError: with the valid ones.
    """
    __tracebackhide__ = True
    if unknown := sorted(set(given) - set(KEYWORDS)):
        raise TypeError(f"{where} got an unknown keyword {unknown[0]!r}; the valid ones are {', '.join(KEYWORDS)}")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """*over* on top of *base*: mappings merge deeply, ``tags`` lists are joined, all else is replaced."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(value, Mapping):
            merged[name] = merge(below if isinstance(below, Mapping) else {}, value)
        elif name == "tags" and isinstance(below, (list, tuple)) and isinstance(value, (list, tuple)):
            merged[name] = [*below, *(tag for tag in value if tag not in below)]
        else:
            merged[name] = value
    return merged


def with_tags(config: Mapping[str, Any], tags: list[str]) -> dict[str, Any]:
    """*config* with *tags* added to the session's own.

    :raises AnchorConfigError: ``session`` or its ``tags`` have no such form.
    """
    __tracebackhide__ = True
    session = config.get("session", {})
    if not isinstance(session, Mapping) or not isinstance(session.get("tags", []), (list, tuple)):
        raise AnchorConfigError("'session' must be a mapping, and its 'tags' a list of strings")
    return merge(config, {"session": {"tags": tags}})


def max_duration(config: Mapping[str, Any]) -> float:
    """Seconds after which Anchor ends a session with this *config*; infinite where it has no such limit."""
    session = config.get("session")
    timeout = session.get("timeout") if isinstance(session, Mapping) else None
    minutes = timeout.get("max_duration", MAX_DURATION) if isinstance(timeout, Mapping) else MAX_DURATION
    return minutes * 60.0 if isinstance(minutes, (int, float)) and minutes >= 0 else float("inf")
