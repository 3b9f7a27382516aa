"""What all that share an account know of its limits: frozen data, and its form in a store.

Times are in seconds since the epoch, by the store's clock.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_WINDOW = 86_400.0  # seconds
MAX_LEASE = 600.0  # seconds
MAX_LABEL = 100  # characters
SLOT_USES = ("", "ahead", "ending", "kept")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)  # it may be a folder's
_WORD = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


class Slot(NamedTuple):
    """A session that counts under the cap.

    :param use: ``""``, or why no test needs to end it before it is free: ``ahead``, ``ending`` or ``kept``.
    """

    run: str
    owner: str
    use: str = ""


class QueueEntry(NamedTuple):
    """A creation that waits.

    :param number: its place: the first that asked has the lowest.
    :param ticket: names it, whatever becomes of the store.
    :param asked: when it began to wait.
    :param seen: when it was polled last.
    :param cap: most sessions at once, as its process has it; 0 for no cap.
    :param waits_for_slot: whether it needs another session to end.
    :param self_blocked: whether its process can end none of its sessions meanwhile.
    """

    number: int
    ticket: str
    run: str
    owner: str
    test: str
    asked: float
    seen: float
    cap: int = 0
    waits_for_slot: bool = False
    self_blocked: bool = False


class Lease(NamedTuple):
    """A run that shares the account with others over a server, and has shown lately that it lives.

    :param seen: when it did.
    :param lasts: seconds for which that counts.
    :param run_id: the run's name in its sessions' tags.
    :param machine: where it runs, for people.
    :param shard: which part of a CI run it is, ``""`` where that is not known.
    :param joins: how often it has joined, each time after its lease was lost included.
    :param writes: how often it has written, by which it sees whether what it wrote last is still there.
    """

    seen: float
    lasts: float
    run_id: str
    machine: str
    shard: str = ""
    joins: int = 1
    writes: int = 0

    @property
    def until(self) -> float:
        """When it runs out."""
        return self.seen + self.lasts


class Vanished(NamedTuple):
    """A run whose lease ran out, and whose sessions are to be ended by another.

    :param lease: the last one that it had.
    :param since: when that was noticed.
    :param taker: the run that ends its sessions, ``""`` where none does so far.
    """

    lease: Lease
    since: float
    taker: str = ""


class State(NamedTuple):
    """What a store holds for one account.

    :param until: no creation begins before.
    :param set_at: when *until* was set.
    :param misses: answers of 429 since a creation succeeded.
    :param quota: creations allowed in a window, 0 where no policy is known.
    :param window: its length in seconds.
    :param learned: when the policy was learned.
    :param last: the number given to the latest queue entry.
    :param starts: when creations began, the oldest first.
    :param slots: by the nonce of the creation.
    :param queue: the first to be served first.
    :param touched: when a store that several machines share was last written.
    :param leases: by run, in such a store; there, a slot or a place in the queue counts only with its run's lease.
    :param vanished: by run.
    """

    until: float = 0.0
    set_at: float = 0.0
    misses: int = 0
    quota: int = 0
    window: float = 0.0
    learned: float = 0.0
    last: int = 0
    starts: tuple[float, ...] = ()
    slots: Mapping[str, Slot] = {}
    queue: tuple[QueueEntry, ...] = ()
    touched: float = 0.0
    leases: Mapping[str, Lease] = {}
    vanished: Mapping[str, Vanished] = {}


def dump(state: State) -> bytes:
    """Return *state* as one line of JSON."""
    values = {**state._asdict(), "queue": [entry._asdict() for entry in state.queue]}
    return json.dumps(values, separators=(",", ":")).encode()


def parse(text: bytes) -> State:
    """Return what :func:`dump` wrote; an empty state for anything else, since others may write where it is kept."""
    try:
        values = json.loads(text)
        slots = {nonce: Slot(*slot) for nonce, slot in values["slots"].items()}
        queue = tuple(QueueEntry(**entry) for entry in values["queue"])
        leases = {run: Lease(*lease) for run, lease in values.get("leases", {}).items()}
        vanished = {run: Vanished(Lease(*lease), *rest) for run, (lease, *rest) in values.get("vanished", {}).items()}
        parts = {"slots": slots, "queue": queue, "leases": leases, "vanished": vanished}
        state = State(**{**values, "starts": tuple(values.get("starts", ())), **parts})
        return state if _is_well_formed(state) else State()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return State()


def _is_well_formed(state: State) -> bool:
    counts = (state.misses, state.quota, state.last)
    # By the column: hundreds of slots have the same few runs and owners.
    runs, owners, uses = map(set, zip(*state.slots.values(), strict=True)) if state.slots else ((), (), ())
    return (
        _are_numbers((state.until, state.set_at, state.window, state.learned, state.touched, *state.starts, *counts))
        and all(isinstance(count, int) for count in counts)
        and state.window <= MAX_WINDOW
        and all(map(_is_name, (*state.slots, *runs)))
        and all(map(_is_word, owners))
        and all(use in SLOT_USES for use in uses)
        and all(map(_is_well_formed_entry, state.queue))
        and all(_is_name(run) and _is_well_formed_lease(lease) for run, lease in state.leases.items())
        and all(
            _is_name(run)
            and _is_well_formed_lease(gone.lease)
            and _are_numbers((gone.since,))
            and (gone.taker == "" or _is_name(gone.taker))
            for run, gone in state.vanished.items()
        )
    )


def _is_well_formed_lease(lease: Lease) -> bool:
    return (
        _are_numbers((lease.seen, lease.lasts, lease.joins, lease.writes))
        and isinstance(lease.joins, int)
        and isinstance(lease.writes, int)
        and lease.lasts <= MAX_LEASE
        and _is_word(lease.run_id)
        and all(isinstance(text, str) and len(text) <= MAX_LABEL for text in (lease.machine, lease.shard))
    )


def _is_well_formed_entry(entry: QueueEntry) -> bool:
    return (
        all(map(_is_name, (entry.ticket, entry.run)))
        and _is_word(entry.owner)
        and isinstance(entry.test, str)
        and _are_numbers((entry.number, entry.asked, entry.seen, entry.cap))
    )


@lru_cache(maxsize=4096)  # each state that is read has the same hundreds of them
def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def _is_word(word: object) -> bool:
    return isinstance(word, str) and _WORD.fullmatch(word) is not None


def _are_numbers(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1e12 for value in values
    )
