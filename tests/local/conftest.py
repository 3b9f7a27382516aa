from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from backend import Backend


@pytest.fixture(scope="module")
def backends() -> Iterator[Callable[..., Backend]]:
    """Start backends that are gone at the end of the module."""
    started: list[Backend] = []

    def start(*arguments: str, **more: Any) -> Backend:
        started.append(Backend(*arguments, **more))
        return started[-1]

    with ExitStack() as stack:
        yield start
        for backend in started:
            stack.callback(backend.remove)


@pytest.fixture(scope="module")
def chromium(backends: Callable[..., Backend]) -> Backend:
    """A backend with real Chromium."""
    return backends()


@pytest.fixture(scope="module")
def records(backends: Callable[..., Backend]) -> Backend:
    """A backend without browsers."""
    return backends("--browserless")


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        yield started
