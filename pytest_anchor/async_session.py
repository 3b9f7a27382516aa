"""The factory for tasks of asyncio and trio: the synchronous one, called in a thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from .asynchronous import current_loop, run_blocking
from .configuration import check_keywords
from .other_tasks import can_end_a_session

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
        factory, loop = self._factory, current_loop()
        config = factory.prepare(session=session, browser=browser, integrations=integrations, identities=identities)
        can_end = can_end_a_session(loop.task, loop.other_tasks(), type(self).__call__.__code__)
        is_self_blocked = factory.client.is_self_blocked and not can_end

        def create() -> AnchorSession:
            __tracebackhide__ = True
            return factory.create(
                config,
                is_self_blocked=is_self_blocked,
                on_wait=lambda text: loop.call_soon(factory.on_wait, text),  # the terminal is the test's thread's
            )

        return await run_blocking(create, discard=factory.discard)

    def __repr__(self) -> str:
        return f"<Async{repr(self._factory)[1:]}"
