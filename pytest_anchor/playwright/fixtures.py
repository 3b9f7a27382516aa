"""Fixtures in the place of pytest-playwright's, for both of Playwright's APIs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ..plugin.state import PLUGIN
from .meaningless import CONNECT_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="session")
def connect_options() -> None:
    """Nothing: browsers are connected to by pytest-anchor."""


@pytest.fixture(scope="session")
def launch_browser(
    pytestconfig: pytest.Config,
    browser_type_launch_args: dict[str, Any],
    browser_type: Any,
    connect_options: dict[str, Any] | None,
    session_anchor_session: object,  # noqa: ARG001 - so it is known early that the test will create a session
) -> Callable[..., Any]:
    """Launches browsers on Anchor sessions: call it with the options of Playwright's launch()."""
    if connect_options:
        pytestconfig.stash[PLUGIN].remark(CONNECT_OPTIONS)

    def launch(**options: Any) -> Any:
        __tracebackhide__ = True
        return browser_type.launch(**{**browser_type_launch_args, **options})

    return launch
