"""Anchor's sessions API: HTTP with a deadline, one loop of attempts, the endpoints and what their answers mean.

Knows Anchor; knows neither pytest nor the registry.
"""

from .answers import Created, Ended, Listed
from .endpoints import AnchorAPI

__all__ = ["AnchorAPI", "Created", "Ended", "Listed"]
