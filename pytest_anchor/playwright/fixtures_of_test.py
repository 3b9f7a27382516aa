"""What a run whose browsers are Anchor's adds to each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .switch import Switch

SWITCH = "pytest_anchor_switch"  # the plugin's name


@pytest.fixture(autouse=True)
def _anchor_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the test itself launches, is this fixture's."""
    switch: Switch | None = request.config.pluginmanager.get_plugin(SWITCH)
    assert switch is not None
    with switch.test_of(request):
        yield
