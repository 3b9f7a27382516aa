"""A creation's body: checked, and refused where the local backend cannot do what it asks for."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

_ACTIVE = {"active": bool}
_NUMBER = (int, float)

# A type, a tuple of types, `[type]` for a list of it, or a mapping of known keys. Unknown keys
# pass, as they do at Anchor.
_SHAPE: dict[str, Any] = {
    "session": {
        "initial_url": str,
        "tags": [str],
        "recording": _ACTIVE,
        "proxy": _ACTIVE,
        "timeout": {"max_duration": _NUMBER, "idle_timeout": _NUMBER},
        "live_view": {"read_only": bool, "one_time_url": bool},
    },
    "browser": {
        "profile": {"name": str, "persist": bool},
        "viewport": {"width": int, "height": int},
        "extensions": [str],
        **dict.fromkeys(
            (
                "adblock",
                "captcha_solver",
                "disable_dialogs",
                "disable_web_security",
                "extra_stealth",
                "force_popups_as_tabs",
                "fullscreen",
                "headless",
                "p2p_download",
                "pdf_viewer",
                "popup_blocker",
                "sensitive_data_mask",
                "tracing",
                "web_bot_auth",
            ),
            _ACTIVE,
        ),
    },
    "integrations": [dict],
    "identities": [dict],
}

# A test would notice that these are missing. What is on by default at Anchor and only adds to a
# session (ad blocking, tracing) is accepted, so that a suite runs unchanged.
_BEYOND = (
    "session.proxy.active",
    "browser.captcha_solver.active",
    "browser.disable_dialogs.active",
    "browser.extensions",
    "browser.extra_stealth.active",
    "browser.force_popups_as_tabs.active",
    "browser.fullscreen.active",
    "browser.p2p_download.active",
    "browser.profile.name",
    "browser.profile.persist",
    "browser.sensitive_data_mask.active",
    "browser.web_bot_auth.active",
    "integrations",
    "identities",
)

_WORDS = {bool: "true or false", str: "a string", int: "an integer", dict: "an object", _NUMBER: "a number"}
_URL = re.compile(r"(https?://|about:|data:)", re.IGNORECASE)


@dataclass(frozen=True)
class Config:
    """What a creation asked for; durations in seconds, ``None`` where there is no limit."""

    body: dict[str, Any]
    tags: tuple[str, ...]
    initial_url: str | None
    width: int
    height: int
    headless: bool
    web_security: bool
    recording: bool
    read_only: bool
    one_time_url: bool
    idle_timeout: float | None
    max_duration: float | None

    @classmethod
    def parse(cls, raw: bytes) -> Config:
        """Check the body of a creation.

        :raises Refused: 400, it is malformed, or asks for what only the real Anchor can do.
        """
        body = _load(raw)
        _check(body, _SHAPE, "")
        for path in _BEYOND:
            if _at(body, path):
                raise Refused(400, f"The local backend cannot do {path}; the real Anchor can.")
        if _at(body, "browser.pdf_viewer.active") is False:
            raise Refused(400, "The local backend cannot turn browser.pdf_viewer off; the real Anchor can.")
        tags = _tags(_at(body, "session.tags") or (), "session.tags")
        url = _at(body, "session.initial_url")
        if url is not None and not _URL.match(url):
            raise Refused(400, "session.initial_url must be an http, https, about or data URL.")
        headless, one_time_url = (
            bool(_at(body, path)) for path in ("browser.headless.active", "session.live_view.one_time_url")
        )
        if headless and one_time_url:
            raise Refused(400, "session.live_view.one_time_url requires a headful browser.")
        return cls(
            body=body,
            tags=tags,
            initial_url=url,
            width=_pixels(body, "browser.viewport.width", 1440),
            height=_pixels(body, "browser.viewport.height", 900),
            headless=headless,
            web_security=not _at(body, "browser.disable_web_security.active"),
            recording=bool(_at(body, "session.recording.active")),
            read_only=bool(_at(body, "session.live_view.read_only")),
            one_time_url=one_time_url,
            idle_timeout=_minutes(body, "session.timeout.idle_timeout", 5),
            max_duration=_minutes(body, "session.timeout.max_duration", 20),
        )


def parse_tags(raw: bytes) -> tuple[str, ...]:
    """Check the body that replaces a session's tags.

    :raises Refused: 400, it is malformed.
    """
    body = _load(raw)
    _check(body, {"tags": [str]}, "")
    if "tags" not in body:
        raise Refused(400, "tags is required.")
    return _tags(body["tags"], "tags")


def _tags(tags: Iterable[str], path: str) -> tuple[str, ...]:
    if any("," in tag for tag in tags):
        raise Refused(400, f"{path}: a tag cannot contain a comma, which separates tags in queries.")
    return tuple(tags)


def _load(raw: bytes) -> dict[str, Any]:
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise Refused(400, "The body must be an object.")
    return body


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _check(value: Any, shape: Any, path: str) -> None:
    if isinstance(shape, dict):
        _check(value, dict, path or "The body")
        for name, inner in shape.items():
            if name in value:
                _check(value[name], inner, f"{path}.{name}" if path else name)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise Refused(400, f"{path} must be a list.")
        for index, item in enumerate(value):
            _check(item, shape[0], f"{path}[{index}]")
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        raise Refused(400, f"{path} must be {_WORDS[shape]}.")


def _at(body: dict[str, Any], path: str) -> Any:
    value: Any = body
    for name in path.split("."):
        value = value.get(name)
        if value is None:
            return None
    return value


def _pixels(body: dict[str, Any], path: str, default: int) -> int:
    value = _at(body, path)
    if value is None:
        return default
    if not 1 <= value <= 10_000:
        raise Refused(400, f"{path} must be from 1 to 10000.")
    return int(value)


def _minutes(body: dict[str, Any], path: str, default: float) -> float | None:
    value = _at(body, path)
    if value is None:
        value = default
    if value == -1:
        return None
    if not 0 < value <= 1_000_000:
        raise Refused(400, f"{path} must be a number of minutes from 0 to 1000000, or -1 for no limit.")
    return float(value) * 60
