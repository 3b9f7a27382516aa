"""A browser for each test, for pytest-playwright."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .life import Connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser

    from ..session import AnchorSessionFactory


@pytest.fixture
def _anchor_connection(anchor_session: AnchorSessionFactory) -> Iterator[Connection]:  # noqa: ARG001 - which ends it
    """The test's browser, disconnected when all is torn down that may still need it."""
    connection = Connection()
    yield connection
    connection.close()


@pytest.fixture
def browser(_anchor_connection: Connection, launch_browser: Callable[..., Browser]) -> Browser:
    """A browser of the test's own, on an Anchor session of its own."""
    __tracebackhide__ = True
    kept: Browser = _anchor_connection.keep(launch_browser())
    return kept
