"""How patient a sweep is, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass

from ..settings import SWEEP_AT_ONCE

LOST_GRACE = 10.0  # seconds after a creation was lost in which it may still turn up in the API's list
PAUSES = (0.25, 0.5, 1.0, 2.0, 4.0)  # seconds between the rounds of a sweep; the last repeats

# For the sessions of processes that are dead, where nothing waits for the sweep.
LONG_PAUSES = (*PAUSES, 8.0, 15.0, 30.0, 60.0)  # seconds
KILLED_GRACE = 150.0  # seconds in which a killed process's creation may come to be: the call's own timeout, and more


@dataclass(frozen=True)
class SweepPolicy:
    """How patient a sweep is.

    :param ended_by: what ends the sessions: ``sweep``, ``reaper``, ``recovery``; ``test`` or ``teardown`` outside one.
    :param pauses: seconds between the rounds; the last repeats.
    :param grace: seconds after its creation was lost in which a session may still turn up in the API's list.
    :param at_once: how many sessions are ended at the same time.
    :param always_lists: whether the API's list is read even if nothing on record is open: a creation may be there
        twice.
    :param ends_unrecorded: whether a session of this very invocation is ended even if no record knows its creation.
    """

    ended_by: str = "sweep"
    pauses: tuple[float, ...] = PAUSES
    grace: float = LOST_GRACE
    at_once: int = SWEEP_AT_ONCE
    always_lists: bool = False
    ends_unrecorded: bool = False


class SweepObserver:
    """Follows a sweep; what a subclass does not override does nothing."""

    def progress(self, done: int, total: int) -> None:
        """Take in that *done* of *total* are done; called now and then."""

    def ended(self, nonce: str) -> None:
        """Take in that a session is over; called in any thread."""

    def after_round(self) -> None:
        """Take in that a round is over."""

    def should_continue(self) -> bool:
        """Whether there is to be another round; asked before each."""
        return True
