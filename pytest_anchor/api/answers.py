"""What the API's answers come to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

# The one word for a session's end that is known. Any other counts as alive: ending twice is harmless.
_OVER = "completed"

CUT_SHORT = 2.0  # seconds; an attempt that has less until its deadline, and no answer by then, tells nothing of the API


@dataclass(frozen=True)
class Created:
    """What the API answers to a creation; the URLs contain the key."""

    id: str
    cdp_url: str = field(repr=False)
    live_view_url: str = field(repr=False)


@dataclass(frozen=True)
class Listed:
    """A session in the API's list.

    :param age: seconds since its creation when it was listed, by the server's clock; ``None`` if not told.
    """

    id: str
    status: str
    tags: tuple[str, ...]
    age: float | None = field(default=None, compare=False)

    @property
    def alive(self) -> bool:
        """Whether the session may still run; a status is a hint, and an unknown one counts as alive."""
        return self.status != _OVER


class Ended(NamedTuple):
    """A session that is confirmed to be over."""

    already: bool  # it was over before it was asked to end
    note: str = ""
