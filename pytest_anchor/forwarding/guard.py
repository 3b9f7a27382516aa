"""Which hosts are forwarded, and to which pages: by the browser's report of a request, never by a page's own word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPAQUE = "null"  # as a header's value: an origin that says nothing about where the page came from


class Hosts:
    """The hosts that mean the test machine: names, addresses, and ``*.`` before a name for all below it."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = list(patterns)
        self._names = {pattern.strip("[]") for pattern in patterns if not pattern.startswith("*.")}
        self._suffixes = tuple(pattern[1:] for pattern in patterns if pattern.startswith("*."))

    def include(self, url: str) -> bool:
        """Whether the host of a URL, or of an origin, is one of them."""
        try:
            host = urlsplit(url.removeprefix("blob:")).hostname or ""
        except ValueError:
            return False
        return host in self._names or host.endswith(self._suffixes)

    @property
    def fetch_patterns(self) -> list[dict[str, str]]:
        """For ``Fetch.enable``; they also match some URLs of other hosts."""
        hosts = [f"{user}{pattern}" for pattern in self.patterns for user in ("", "*@")]
        return [{"urlPattern": f"*://{host}{rest}"} for host in hosts for rest in ("/*", ":*")]


def origin(url: str) -> str:
    """The origin of a URL, ``""`` where it has none of its own."""
    try:
        parts = urlsplit(url.removeprefix("blob:"))
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else ""


def site(url: str) -> tuple[str, str]:
    """What cookies take for one site: the scheme, and the host without what stands before its last two names."""
    parts = urlsplit(url.removeprefix("blob:"))
    host = parts.hostname or ""
    is_name = not (":" in host or host.replace(".", "").isdigit())
    return {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme), (
        ".".join(host.split(".")[-2:]) if is_name else host
    )


def initiator(headers: Mapping[str, str]) -> str:
    """The origin that a request comes from by the headers that the browser has set, ``""`` where they do not tell.

    A page can make the browser leave them out, but cannot put another origin there.
    """
    if (named := headers.get("Origin", OPAQUE)) != OPAQUE:
        return named
    return origin(headers.get("Referer", ""))


class Frames:
    """The documents and workers of a browser, as it reports them."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._targets: dict[str, dict[str, Any]] = {}  # pages, workers, and frames with a process of their own
        self._origins: dict[str, str] = {}  # of the document in a frame
        self._parents: dict[str, str] = {}

    def attached(self, target: dict[str, Any]) -> None:
        """Take in what is known of a page, a worker, or a frame with a process of its own."""
        self._targets[target["targetId"]] = target

    def detached(self, target_id: str) -> None:
        """Take in that it is gone."""
        self._targets.pop(target_id, None)
        self._origins.pop(target_id, None)

    def has_parent(self, frame: str, parent: str) -> None:
        """Take in that there is a frame in another."""
        self._parents[frame] = parent

    def has_document(self, frame: str, document_origin: str) -> None:
        """Take in that a frame has a new document."""
        self._origins[frame] = document_origin

    def has_left(self, frame: str, reason: str) -> None:
        """Take in that a frame is gone, or only in another process now."""
        if reason == "swap":
            return
        self._parents.pop(frame, None)
        self._origins.pop(frame, None)

    def is_target(self, frame: str) -> bool:
        """Whether the browser itself can be asked what the frame shows."""
        return frame in self._targets

    def is_page(self, frame: str) -> bool:
        """Whether a frame is the outermost of its page."""
        return self._targets.get(frame, {}).get("type") == "page"

    def browser_context(self, frame: str) -> str:
        """The id of the browser context that a frame or worker is in, ``""`` where that is not known."""
        while frame not in self._targets and frame in self._parents:
            frame = self._parents[frame]
        return str(self._targets.get(frame, {}).get("browserContextId", ""))

    def is_local(self, frame: str) -> bool:
        """Whether what a frame or a worker shows comes from the test machine, and from nowhere else."""
        target = self._targets.get(frame, {})
        if origin(target.get("url", "")):
            return self._hosts.include(target["url"])
        if origin(known := self._origins.get(frame, "")):
            return self._hosts.include(known)
        # A document without an address of its own, such as about:srcdoc, or none yet.
        parent = target.get("parentFrameId") or self._parents.get(frame)
        return parent is not None and self.is_local(parent)
