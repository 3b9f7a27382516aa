"""What the broker does while its sweeps end sessions, but for the reaper's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cleanup.policy import SweepObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from .broker import Broker
    from .owner import Owner


class CrashSweep(SweepObserver):
    """A sweep of what one process left, while the run goes on."""

    def __init__(self, broker: Broker, owner: Owner | None) -> None:
        self._broker = broker
        self._owner = owner

    def ended(self, nonce: str) -> None:
        """Release its slot."""
        self._broker.release_slots(nonce)
        if self._owner is not None:
            self._owner.release_slots([nonce])

    def should_continue(self) -> bool:
        """Whether the run goes on; its last sweep does the rest."""
        return not self._broker.is_over


class LastSweep(SweepObserver):
    """The last sweep of a run, which its controller waits for."""

    def __init__(
        self, broker: Broker, progress: Callable[[int, int], object], should_continue: Callable[[], bool]
    ) -> None:
        self._broker = broker
        self._progress = progress
        self._should_continue = should_continue

    def progress(self, done: int, total: int) -> None:
        """Pass it on."""
        self._progress(done, total)

    def ended(self, nonce: str) -> None:
        """Release its slot."""
        self._broker.release_slots(nonce)

    def should_continue(self) -> bool:
        """Whether the controller still waits."""
        return self._should_continue()
