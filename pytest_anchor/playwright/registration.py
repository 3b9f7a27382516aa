"""Puts the switch's fixtures where they belong: before pytest-playwright's, behind the suite's own.

Of two plugins' fixtures with the same name, pytest takes that of the plugin that was registered later; those of a
conftest.py win over both. A helper that a conftest.py names in ``pytest_plugins`` is a plugin like any other, and is
registered when that conftest.py is loaded. So the place for ours is just before.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

NAME = "pytest_anchor.playwright.switched"  # of the module, made for the run, that holds the fixtures
_SYNC = "pytest_playwright.pytest_playwright"
_ASYNC = "pytest_playwright_asyncio.pytest_playwright"


def register_fixtures(manager: pytest.PytestPluginManager, *, per_test: bool) -> None:
    """Register the fixtures that replace pytest-playwright's, if it is there by now.

    :param per_test: whether each test has a browser of its own.
    """
    if (plugin := _pytest_playwright(manager)) is not None:
        manager.register(_module(_fixtures(plugin, per_test=per_test)), NAME)


def register_late(manager: pytest.PytestPluginManager, *, per_test: bool) -> None:
    """Register what could not be before the first conftest.py was loaded.

    That is so for pytest-playwright where a conftest.py names it, and for all plugins in an xdist worker whose
    controller was told of them by ``-p``. By now, ours would win over a suite's helpers, too, and so leave out what
    these define.
    """
    from . import fixtures_of_test

    manager.register(fixtures_of_test, fixtures_of_test.__name__)
    plugin = _pytest_playwright(manager)
    if plugin is None or manager.has_plugin(NAME):
        return
    helpers = [one for one in manager.get_plugins() if getattr(one, "__name__", "") != plugin]
    taken = {name for one in helpers for name in getattr(one, "__dict__", ())}
    fixtures = _fixtures(plugin, per_test=per_test)
    manager.register(_module({name: one for name, one in fixtures.items() if name not in taken}), NAME)


def _fixtures(plugin: str, *, per_test: bool) -> dict[str, Any]:
    from . import fixtures

    chosen: dict[str, Any] = {
        "launch_browser": fixtures.launch_browser,
        "connect_options": fixtures.connect_options,
    }
    if per_test:
        browsers = import_module(f".fixtures_{'asyncio' if plugin == _ASYNC else 'sync'}", __package__)
        chosen |= {name: getattr(browsers, name) for name in ("browser", "_anchor_connection")}
    return chosen


def _module(fixtures: dict[str, Any]) -> ModuleType:
    module = ModuleType(NAME)
    vars(module).update(fixtures)
    return module


def _pytest_playwright(manager: pytest.PytestPluginManager) -> str | None:
    """The name of pytest-playwright's module, if it is one of the run's plugins."""
    for name in (_SYNC, _ASYNC):
        module = sys.modules.get(name)
        if module is not None and manager.is_registered(module):
            return name
    return None
