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
SLOT_USES = ("", "ahead", "ending", "kept")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)


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
        state = State(**{**values, "starts": tuple(values.get("starts", ())), "slots": slots, "queue": queue})
        return state if _is_well_formed(state) else State()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return State()


def _is_well_formed(state: State) -> bool:
    counts = (state.misses, state.quota, state.last)
    # By the column: hundreds of slots have the same few runs and owners.
    runs, owners, uses = map(set, zip(*state.slots.values(), strict=True)) if state.slots else ((), (), ())
    return (
        _are_numbers((state.until, state.set_at, state.window, state.learned, *state.starts, *counts))
        and all(isinstance(count, int) for count in counts)
        and state.window <= MAX_WINDOW
        and all(map(_is_name, (*state.slots, *runs, *owners)))
        and all(use in SLOT_USES for use in uses)
        and all(map(_is_well_formed_entry, state.queue))
    )


def _is_well_formed_entry(entry: QueueEntry) -> bool:
    return (
        all(map(_is_name, (entry.ticket, entry.run, entry.owner)))
        and isinstance(entry.test, str)
        and _are_numbers((entry.number, entry.asked, entry.seen, entry.cap))
    )


@lru_cache(maxsize=4096)  # each state that is read has the same hundreds of them
def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _are_numbers(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1e12 for value in values
    )
