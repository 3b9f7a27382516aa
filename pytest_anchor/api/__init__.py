"""Anchor's sessions API: HTTP with a deadline, one loop of attempts, the endpoints and what their answers mean.

Knows Anchor; knows neither pytest nor the registry.
"""

from typing import TYPE_CHECKING, Any

from .answers import CUT_SHORT, Created, Ended, Listed

if TYPE_CHECKING:
    from .endpoints import AnchorAPI

__all__ = ["CUT_SHORT", "AnchorAPI", "Created", "Ended", "Listed"]


def __getattr__(name: str) -> Any:
    # On demand: it takes `requests`, which what only reads a record does not need.
    if name != "AnchorAPI":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .endpoints import AnchorAPI

    return AnchorAPI
