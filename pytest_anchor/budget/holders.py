"""Which processes hold the slots under the cap, as far as this machine's registry knows: whether they live."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import AnchorRegistryError
from ..registry.journal import Run
from ..registry.locks import is_live

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .state import Slot

_USES = {
    "": "",
    "kept": " for a person to look at",
    "ahead": " for the next tests",
    "ending": ", which could not be ended so far",
}


class SlotHolders:
    """The processes that hold slots, as one of them sees the others.

    :param folder: its run's, in the registry.
    :param owner: its own name.
    :param base_url: where the account's API is.
    :param lives: whether the process of this run with a given name lives.
    """

    def __init__(
        self, folder: Path, owner: str, base_url: str = "", lives: Callable[[str], bool] = lambda _owner: True
    ) -> None:
        self.run = folder.name
        self.owner = owner
        self._registry = folder.parent
        self._base_url = base_url
        self._lives = lives
        self._dead_runs: dict[str, Run] = {}

    def find_over(self, slots: Mapping[str, Slot]) -> list[str]:
        """Return the nonces of the sessions that are over, and whose processes died before they released the slots."""
        alive = {holder: self._is_alive(*holder) for holder in {(slot.run, slot.owner) for slot in slots.values()}}
        return [
            nonce for nonce, slot in slots.items() if not alive[slot.run, slot.owner] and self._is_over(slot.run, nonce)
        ]

    def _is_alive(self, run: str, owner: str) -> bool:
        return self._lives(owner) if run == self.run else is_live(self._registry / run)

    def _is_over(self, run: str, nonce: str) -> bool:
        journal = self._dead_runs.setdefault(run, Run(self._registry / run))
        if not journal.folder.is_dir():
            return True
        with suppress(AnchorRegistryError):
            record = journal.read().records.get(nonce)
            return record is None or not record.open
        return False  # a record that cannot be read does not show an end

    def describe(self, slots: Mapping[str, Slot]) -> str:
        """Which processes hold *slots*, in words."""
        held = Counter((slot.run, slot.owner, slot.use) for slot in slots.values())
        return "; ".join(
            f"{count} by {'this run' if run == self.run else 'another run'} [{owner}]{self._state_of(run, owner, use)}"
            for (run, owner, use), count in held.items()
        )

    def _state_of(self, run: str, owner: str, use: str) -> str:
        from ..reporting.summary import sweep_command

        if self._is_alive(run, owner):
            return _USES[use]
        if is_live(self._registry / run):
            return ", which is over; its run tries to end what it left"
        return f", which died: {sweep_command(self._registry, self._base_url)} ends what it left"
