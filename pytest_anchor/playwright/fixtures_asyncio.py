"""A browser for each test, for pytest-playwright-asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from .apis import settle
from .life import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from playwright.async_api import Browser

    from ..session import AnchorSessionFactory


@pytest_asyncio.fixture(loop_scope="session")
async def _anchor_connection(anchor_session: AnchorSessionFactory) -> AsyncIterator[Connection]:  # noqa: ARG001
    """The test's browser, disconnected when all is torn down that may still need it."""
    connection = Connection()
    yield connection
    await settle(connection.close())


@pytest_asyncio.fixture(loop_scope="session")
async def browser(_anchor_connection: Connection, launch_browser: Callable[..., Awaitable[Browser]]) -> Browser:
    """A browser of the test's own, on an Anchor session of its own."""
    __tracebackhide__ = True
    kept: Browser = _anchor_connection.keep(await launch_browser())
    return kept
