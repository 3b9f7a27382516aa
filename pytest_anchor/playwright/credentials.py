"""Has the test machine's servers answered with the credentials of the context that they challenge.

A challenge of theirs is answered where requests are forwarded from; the browser never sees it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..forwarding import note_contexts
from . import apis

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..client import Client
    from ..session import AnchorSession


def forward_credentials(browser: Any, client: Client, session: AnchorSession) -> None:
    """Have the ``http_credentials`` of the browser's new contexts hold for forwarded hosts as well."""
    if client.settings.forward != "off":
        note = partial(note_contexts, client, session)
        for name in ("new_context", "new_page"):
            setattr(browser, name, _replacement(browser, getattr(browser, name), note))


def _replacement(browser: Any, original: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    async def create(options: dict[str, Any]) -> Any:
        __tracebackhide__ = True
        credentials = options.get("http_credentials")
        if not credentials:
            return await apis.settle(original(**options))
        await apis.without_blocking(browser, note)
        created = await apis.settle(original(**options))
        pair = (credentials["username"], credentials["password"])
        await apis.without_blocking(browser, partial(note, pair))
        return created

    def replacement(**options: Any) -> Any:
        __tracebackhide__ = True
        return apis.run(browser, create(options))

    return replacement
