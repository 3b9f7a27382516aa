"""Screenshots of the pages that a test has open: which of a browser's pages a test looks at, the API cannot know."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..launcher import elapsed
from . import apis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .life import LaunchedBrowser

PAGE_TIMEOUT = 2.0  # seconds for one page
TIMEOUT = 2.0  # seconds after which no other is begun
MOST_PAGES = 3  # of one browser, the newest
MOST_BYTES = 8 << 20  # of all


def take_screenshots(browsers: Iterable[LaunchedBrowser]) -> dict[str, list[bytes]]:
    """What the pages of connected browsers show, as PNGs, by the nonce of the session.

    To be called in the thread of the test, while none of its code runs.
    """
    began, size = elapsed(), 0
    taken: dict[str, list[bytes]] = {}
    for launched in browsers:
        for page in _pages(launched.browser):
            if elapsed() - began > TIMEOUT:
                return taken
            with suppress(Exception):  # whatever it is, the API is asked for one instead
                image = launched.complete(_screenshot(page))
                size += len(image or b"")
                if image is None or size > MOST_BYTES:
                    return taken
                taken.setdefault(launched.lease.session.nonce, []).append(image)
    return taken


def _pages(browser: Any) -> list[Any]:
    if not browser.is_connected():
        return []
    pages = [page for context in browser.contexts for page in context.pages if not page.is_closed()]
    # A session begins with a page of its own, which a test that makes a context for itself never sees.
    return [page for page in pages if page.url != "about:blank"][-MOST_PAGES:]


async def _screenshot(page: Any) -> bytes:
    image: bytes = await apis.settle(page.screenshot(timeout=PAGE_TIMEOUT * 1000))
    return image
