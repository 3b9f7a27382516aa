"""Has a page go back and forward as in a browser that Playwright has launched: it loads again what it shows.

Playwright turns off the cache in which Chromium keeps whole pages for that, since it waits for a page to load, and one
from the cache does not: ``page.go_back()`` would wait in vain. In a browser that others have started, the cache can
still be emptied, as it is when memory is short.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import apis
from .life import ATTRIBUTE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .launch import Replacements


def replace_history(replacements: Replacements) -> None:
    """Have ``Page.go_back()`` and ``go_forward()`` empty that cache first."""
    from playwright import async_api, sync_api

    def make(original: Any) -> Callable[..., Any]:
        async def go(page: Any, options: dict[str, Any]) -> Any:
            __tracebackhide__ = True
            if hasattr(page.context.browser, ATTRIBUTE):
                with suppress(Exception):  # where it is refused, Playwright may still find the page loaded
                    await _empty_cache(page)
            return await apis.settle(original(page, **options))

        return lambda page, **options: apis.run(page, go(page, options))

    for api in (sync_api, async_api):
        for name in ("go_back", "go_forward"):
            replacements.replace(api.Page, name, make)


async def _empty_cache(page: Any) -> None:
    protocol = await apis.settle(page.context.new_cdp_session(page))
    await apis.settle(protocol.send("Memory.simulatePressureNotification", {"level": "critical"}))
    await apis.settle(protocol.detach())
