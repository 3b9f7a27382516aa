"""Which processes hold the slots under the cap, as far as this machine's registry knows: whether they live."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import AnchorRegistryError, printable
from ..registry.journal import Run
from ..registry.locks import is_live

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .state import Lease, Slot

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
    :param run: the run's name among those that share the limits, its folder's if empty.
    """

    def __init__(
        self,
        folder: Path,
        owner: str,
        base_url: str = "",
        lives: Callable[[str], bool] = lambda _owner: True,
        *,
        run: str = "",
    ) -> None:
        self.run = run or folder.name
        self.owner = owner
        self._folder = folder
        self._registry = folder.parent
        self._base_url = base_url
        self._lives = lives
        self._dead_runs: dict[str, Run] = {}

    def find_over(self, slots: Mapping[str, Slot], leases: Mapping[str, Lease]) -> list[str]:
        """Return the nonces of the sessions that are over, and whose processes died before they released the slots.

        Where runs have *leases*, these say whether another one lives: this machine need not know of it.
        """
        slots = {nonce: slot for nonce, slot in slots.items() if slot.run == self.run or slot.run not in leases}
        alive = {holder: self._is_alive(*holder) for holder in {(slot.run, slot.owner) for slot in slots.values()}}
        return [
            nonce for nonce, slot in slots.items() if not alive[slot.run, slot.owner] and self._is_over(slot.run, nonce)
        ]

    def _is_alive(self, run: str, owner: str) -> bool:
        return self._lives(owner) if run == self.run else is_live(self._registry / run)

    def _is_over(self, run: str, nonce: str) -> bool:
        journal = self._dead_runs.setdefault(run, Run(self._folder if run == self.run else self._registry / run))
        if not journal.folder.is_dir():
            return True
        with suppress(AnchorRegistryError):
            record = journal.read().records.get(nonce)
            return record is None or not record.open
        return False  # a record that cannot be read does not show an end

    def describe(self, slots: Mapping[str, Slot], leases: Mapping[str, Lease]) -> str:
        """Which processes hold *slots*, in words."""
        held = Counter((slot.run, slot.owner, slot.use) for slot in slots.values())
        return "; ".join(
            f"{count} by a run on {printable(leases[run].machine, 40)} [{owner}]{_USES[use]}"
            if run != self.run and run in leases
            else f"{count} by {'this run' if run == self.run else 'another run'} [{owner}]"
            f"{self._state_of(run, owner, use)}"
            for (run, owner, use), count in held.items()
        )

    def _state_of(self, run: str, owner: str, use: str) -> str:
        from ..reporting.summary import sweep_command

        if self._is_alive(run, owner):
            return _USES[use]
        if is_live(self._registry / run):
            return ", which is over; its run tries to end what it left"
        return f", which died: {sweep_command(self._registry, self._base_url)} ends what it left"
