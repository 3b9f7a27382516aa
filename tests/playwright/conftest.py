from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "local"))

from backend import Backend
from switched import Suite


@pytest.fixture(scope="module")
def backends() -> Iterator[Callable[..., Backend]]:
    """Start backends that are gone at the end of the module."""
    with ExitStack() as stack:

        def start(*arguments: str, **more: Any) -> Backend:
            backend = Backend(*arguments, **more)
            stack.callback(backend.remove)
            return backend

        yield start


@pytest.fixture(scope="session")
def chromium() -> Iterator[Backend]:
    """A backend with real Chromium."""
    backend = Backend()
    yield backend
    backend.remove()


@pytest.fixture
def suite(tmp_path: Path, chromium: Backend, pytester: pytest.Pytester) -> Suite:
    """A folder of tests."""
    folder = tmp_path / "suite"
    folder.mkdir()
    return Suite(folder, chromium, pytester)
