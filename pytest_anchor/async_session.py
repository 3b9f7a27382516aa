"""The factory for tasks of asyncio and trio: the synchronous one, called in a thread."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .asynchronous import run_blocking
from .configuration import check_keywords
from .errors import AnchorError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .session import AnchorSession, AnchorSessionFactory


class AsyncAnchorSessionFactory:
    """Creates sessions that are ended when the factory's fixture is torn down, and never blocks the event loop.

    Safe to call from several tasks, of asyncio or trio, and from loops in several threads.
    """

    def __init__(self, factory: AnchorSessionFactory) -> None:
        self._factory = factory

    async def __call__(
        self,
        *,
        session: Mapping[str, Any] | None = None,
        browser: Mapping[str, Any] | None = None,
        integrations: list[Mapping[str, Any]] | None = None,
        identities: list[Mapping[str, Any]] | None = None,
        **unknown: NoReturn,
    ) -> AnchorSession:
        """Create a session; the event loop goes on until its browser is ready.

        Keywords and errors are those of :meth:`.AnchorSessionFactory.__call__`. Where the task is
        cancelled, the creation is as well.

        :raises RuntimeError: it is awaited by neither asyncio nor trio.
        """
        __tracebackhide__ = True
        check_keywords(unknown, "async_anchor_session()")
        given = {"session": session, "browser": browser, "integrations": integrations, "identities": identities}
        keywords: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return await run_blocking(partial(self._factory, **keywords), discard=_end_later)

    def __repr__(self) -> str:
        return f"<Async{repr(self._factory)[1:]}"


def _end_later(session: AnchorSession) -> None:
    """End a session that its cancelled task has not received; teardown tries again."""
    with suppress(AnchorError):
        session.end_later()
