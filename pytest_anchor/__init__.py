"""Anchor Browser sessions for pytest, none of which outlives the run.

Enable it with ``pytest -p pytest_anchor``, which works installed or from a checkout, or install
it and let pytest load it by itself.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    # On demand: a run that creates no session, and the helper processes, do not pay for it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import errors, session

    if name.startswith("Async"):
        from . import async_session

        return getattr(async_session, name)
    return getattr(errors, name, None) or getattr(session, name)
