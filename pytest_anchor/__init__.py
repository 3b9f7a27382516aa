"""Anchor Browser sessions for pytest, none of which outlives the run.

Enable it with ``pytest -p pytest_anchor``, which works installed or from a checkout, or install
it and let pytest load it by itself.
"""

from .errors import (
    AnchorAPIError,
    AnchorConfigError,
    AnchorError,
    AnchorLostCreateError,
    AnchorRegistryError,
)
from .session import AnchorSession, AnchorSessionFactory

__all__ = [
    "AnchorAPIError",
    "AnchorConfigError",
    "AnchorError",
    "AnchorLostCreateError",
    "AnchorRegistryError",
    "AnchorSession",
    "AnchorSessionFactory",
]

__version__ = "0.1.0"

# `-p pytest_anchor` and the entry point both load this module, and through it the hooks.
pytest_plugins = ["pytest_anchor.plugin"]
