"""What the limits need of the place where their state is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from .state import State

Result = TypeVar("Result")


class Store(Protocol):
    """The state of one account's limits, as one process sees it. Safe to use from several threads.

    Neither method raises because the store fails: creations go on by what this process knows itself, and by what the
    API answers.
    """

    def update(self, rule: Callable[[State, float], tuple[State, Result]]) -> Result:
        """Replace the state by what *rule* makes of it, with no change by another process in between.

        :param rule: called with the state and the time by the store's clock, perhaps more than once; it returns the
            new state and a result.
        :returns: the result that belongs to the state that was kept.
        """

    def read(self) -> tuple[State, float]:
        """The state, and the time by the store's clock."""

    @property
    def is_current(self) -> bool:
        """Whether what was decided last still holds: the process has not stood still for too long since."""
