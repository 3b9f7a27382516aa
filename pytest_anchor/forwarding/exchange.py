"""What a browser's network would add to a request before it sends it, and what it would do about a 401."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from .guard import OPAQUE, initiator, origin, site

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .upstream import Response, Upstream

# What a request of each type is for, as ``Sec-Fetch-Dest`` has it; what is not here says ``empty``.
_DESTINATIONS = {
    "Font": "font",
    "Image": "image",
    "Manifest": "manifest",
    "Media": "video",
    "Script": "script",
    "Stylesheet": "style",
    "TextTrack": "track",
}
_WITH_CORS = ("Fetch", "Font", "Manifest", "XHR")  # types of requests that a script may read the response of


class Exchange:
    """Sends the paused requests of one browser.

    :param accept_language: what its pages say of the user's languages, where no header does.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.accept_language = ""
        self._upstream = upstream
        self._credentials: dict[str, str] = {}  # an ``Authorization`` by browser context
        self._accepted: dict[tuple[str, str], str] = {}  # the same by browser context and origin

    def set_credentials(self, browser_context: str, user: str, password: str) -> None:
        """Answer the challenges of a browser context's servers."""
        self._credentials[browser_context] = _basic(user, password)

    async def send(
        self, pause: Mapping[str, Any], browser_context: str, *, body: bytes | None, is_page: bool
    ) -> Response:
        """Return the response to a paused request.

        :param is_page: whether it is for the outermost document of a page.
        :raises UpstreamError: there is none.
        """
        request = pause["request"]
        url, in_url = _without_user(request["url"])
        headers = {**request["headers"], **self._added(pause, url, is_page=is_page)}
        server = (browser_context, origin(url))
        if (authorization := self._accepted.get(server)) and "Authorization" not in headers:
            headers["Authorization"] = authorization
        send = partial(
            self._upstream.send, request["method"], url, body=body, is_urgent=pause.get("resourceType") == "Document"
        )
        response = await send(headers)
        offered = in_url or self._credentials.get(browser_context, "")
        if offered and headers.get("Authorization") != offered and response.challenges("Basic"):
            response.body.close()
            headers["Authorization"] = offered
            response = await send(headers)
            if response.status != 401:
                self._accepted[server] = offered
        return response

    def _added(self, pause: Mapping[str, Any], url: str, *, is_page: bool) -> dict[str, str]:
        headers, kind = pause["request"]["headers"], pause.get("resourceType", "")
        added = {"Accept-Encoding": "gzip, deflate"}
        if self.accept_language and "Accept-Language" not in headers:
            added["Accept-Language"] = self.accept_language
        if kind == "Document":
            mode, destination = "navigate", "document" if is_page else "iframe"
        else:
            mode = "cors" if kind in _WITH_CORS or "Origin" in headers else "no-cors"
            destination = _DESTINATIONS.get(kind, "empty")
        return {
            **added,
            "Sec-Fetch-Site": _relation(headers, url),
            "Sec-Fetch-Mode": mode,
            "Sec-Fetch-Dest": destination,
        }


def _relation(headers: Mapping[str, str], url: str) -> str:
    source = initiator(headers)
    if not source:
        return "cross-site" if headers.get("Origin") == OPAQUE else "none"
    if source == origin(url):
        return "same-origin"
    return "same-site" if site(source) == site(url) else "cross-site"


def _without_user(url: str) -> tuple[str, str]:
    """A URL without a user and a password, and the header that these make."""
    parts = urlsplit(url)
    user, found, host = parts.netloc.rpartition("@")
    if not found:
        return urlunsplit(parts._replace(fragment="")), ""
    name, _, password = user.partition(":")
    return urlunsplit(parts._replace(netloc=host, fragment="")), _basic(unquote(name), unquote(password))


def _basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode('ascii')}"
