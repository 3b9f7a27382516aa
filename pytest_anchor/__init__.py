"""Anchor Browser sessions for pytest, none of which outlives the run.

Enable it with ``pytest -p pytest_anchor``, which works installed or from a checkout, or install
it and let pytest load it by itself.

PYTEST_DONT_REWRITE: every run with this plugin imports this, and it has no assertion.
"""

import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec

    from .async_session import AsyncAnchorSessionFactory
    from .errors import (
        AnchorAPIError,
        AnchorConfigError,
        AnchorConnectionError,
        AnchorError,
        AnchorLimitError,
        AnchorLostCreateError,
        AnchorRegistryError,
    )
    from .session import AnchorSession, AnchorSessionFactory

__all__ = [
    "AnchorAPIError",
    "AnchorConfigError",
    "AnchorConnectionError",
    "AnchorError",
    "AnchorLimitError",
    "AnchorLostCreateError",
    "AnchorRegistryError",
    "AnchorSession",
    "AnchorSessionFactory",
    "AsyncAnchorSessionFactory",
]

__version__ = "0.1.0"

# For `-p pytest_anchor` from a checkout; where the package is installed, its entry point names the plugin itself.
pytest_plugins = ["pytest_anchor.plugin"]


class _Finder:
    """Finds the package's modules before pytest does, which rewrites the assertions of plugins.

    These have none, and that would cost every run with this plugin: pytest reads what it has rewritten piece by
    piece, and does not find it again where no bytecode is written, as in most containers.
    """

    runs = 0  # of pytest that are under way in this process, one within another

    @staticmethod
    def find_spec(name: str, path: "Sequence[str] | None" = None, _target: object = None) -> "ModuleSpec | None":
        return PathFinder.find_spec(name, path) if name.startswith("pytest_anchor.") else None


def _remove_finder() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not _Finder]


def _put_finder_first() -> None:
    _remove_finder()
    sys.meta_path.insert(0, _Finder)


def find_first() -> "Callable[[], None]":
    """Find the package's modules before pytest does, which has put itself first since this one was imported.

    :returns: what to call when the run is over: until it exits, the interpreter keeps a finder that is not removed, and
        everything that can be reached from it.
    """

    def is_over() -> None:
        _Finder.runs -= 1
        if not _Finder.runs:
            _remove_finder()

    _Finder.runs += 1
    _put_finder_first()
    return is_over


if "_pytest.assertion.rewrite" in sys.modules:
    _put_finder_first()


def __getattr__(name: str) -> Any:
    # On demand: a run that creates no session, and the helper processes, do not pay for it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors, session

    if name.startswith("Async"):
        from . import async_session

        return getattr(async_session, name)
    return getattr(errors, name, None) or getattr(session, name)
