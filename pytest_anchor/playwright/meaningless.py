"""What a launch asks for: what has a meaning for a session's creation, and what has none, with a remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from ..configuration import merge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PERSISTENT = (
    "launch_persistent_context() would start a Chromium on this machine. With --anchor-playwright, use launch() and "
    "new_context(); a profile that lasts is Anchor's: @pytest.mark.anchor(browser={'profile': {'name': …}})."
)
OTHER_BROWSER = "{} was asked for, and Anchor's browsers are Chromium: run it without --anchor-playwright"
CONNECT_OPTIONS = (
    "connect_options are not used: --anchor-playwright connects to Anchor. Leave that option away to use them."
)

# Options of a launch whose absence changes nothing that a test sees.
_SILENT = (
    "downloads_path",
    "artifacts_dir",
    "traces_dir",
    "timeout",
    "handle_sigint",
    "handle_sigterm",
    "handle_sighup",
)
_REMEDIES = {
    "channel": "Anchor chooses the Chromium; leave the channel away, or run without --anchor-playwright",
    "executable_path": "Anchor's Chromium is used; leave it away",
    "args": "Anchor chooses its browser's flags; what the API has an option for goes into anchor_session_defaults",
    "env": "the browser does not run on this machine",
    "devtools": "watch the session's live view instead",
    "chromium_sandbox": "Anchor's browsers are isolated from each other",
    "ignore_default_args": "Anchor chooses its browser's flags",
    "firefox_user_prefs": "Anchor's browsers are Chromium",
}
_IMPLIED = re.compile(
    # What launches in containers and CI carry: of no effect on what a page does.
    r"--(no-sandbox|disable-setuid-sandbox|disable-dev-shm-usage|disable-gpu|no-first-run|no-zygote|mute-audio"
    r"|disable-extensions|disable-background-.*|start-maximized)$"
)


class Creation(NamedTuple):
    """What a launch comes to.

    :param keywords: for the creation of the session.
    :param slow_mo: milliseconds, for Playwright.
    """

    keywords: dict[str, Any]
    slow_mo: float


def creation_of(options: Mapping[str, Any], remark: Callable[[str], object]) -> Creation:
    """Translate the options of ``BrowserType.launch``.

    :param remark: told of each that has no meaning.
    """
    keywords: dict[str, Any] = {}
    slow_mo = 0.0
    for name, value in options.items():
        if value is None or name in _SILENT or (name == "devtools" and not value):
            continue
        if name == "slow_mo":
            slow_mo = float(value)
        elif name == "headless":
            keywords = merge(keywords, {"browser": {"headless": {"active": bool(value)}}})
        elif name == "proxy":
            keywords = merge(keywords, {"session": {"proxy": _proxy(value, remark)}})
        elif name == "args":
            keywords = merge(keywords, _from_arguments(value, remark))
        elif value not in ([], {}):
            _no_meaning(name, value, remark)
    return Creation(keywords, slow_mo)


def _no_meaning(name: str, value: object, remark: Callable[[str], object]) -> None:
    remedy = _REMEDIES.get(name, "leave it away, or run without --anchor-playwright")
    shown = "" if name in ("env", "firefox_user_prefs") else f"={value!r}"
    remark(f"the launch option {name}{shown} has no meaning for a session of Anchor: {remedy}")


def _proxy(proxy: Mapping[str, str], remark: Callable[[str], object]) -> dict[str, Any]:
    server = proxy["server"]
    parts = urlsplit(server if "://" in server else f"http://{server}")
    if proxy.get("bypass"):
        remark("the launch option proxy.bypass has no meaning for a session of Anchor: all goes through the proxy")
    given = {name: proxy.get(name) or "" for name in ("username", "password")}  # the API requires both
    return {"active": True, "type": "custom", "server": f"{parts.scheme}://{parts.netloc}", **given}


def _from_arguments(arguments: list[str], remark: Callable[[str], object]) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--window-size" and (size := re.fullmatch(r"(\d+)[,x](\d+)", value)):
            viewport = {"width": int(size[1]), "height": int(size[2])}
            keywords = merge(keywords, {"browser": {"viewport": viewport}})
        elif name == "--disable-web-security":
            keywords = merge(keywords, {"browser": {"disable_web_security": {"active": True}}})
        elif name == "--headless":
            keywords = merge(keywords, {"browser": {"headless": {"active": True}}})
        elif name == "--proxy-server":
            keywords = merge(keywords, {"session": {"proxy": _proxy({"server": value}, remark)}})
        elif not _IMPLIED.match(argument):
            _no_meaning("args", argument, remark)
    return keywords
