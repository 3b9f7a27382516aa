"""How many creations may begin, and how many sessions may be open: state and time in, state and decision out.

Pure functions: they wait for nothing, and know neither a clock nor where the state is kept. The caller gives
the time, in seconds since the epoch, and chance.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from .state import QueueEntry, Slot, State

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from ..errors import Limit
    from .state import Lease

TRUSTED_FOR = 3600.0  # seconds for which what the API reported of its limits is believed
MARGIN = 0.05  # seconds by which a request may reach the API sooner after it was sent than the one before it
BACKOFF = 0.5  # seconds after the first 429 at least; doubled with each that follows
MAX_BACKOFF = 30.0  # seconds
JITTER = 0.1  # part of a wait that chance may add
MAX_JITTER = 1.0  # seconds
HEARTBEAT_TIMEOUT = 3.0  # seconds after which an entry that was not polled belongs to a process that died or stopped
REFRESH_INTERVAL = 1.0  # seconds after which a poll shows anew that its entry is present
QUIET_SHARE = 1 / 3  # part of a lease for which a run may be silent without being passed in the queue
POLL_INTERVAL = 0.25  # seconds between polls, at most
POLL_SHARE = 0.005  # seconds more for each entry before it, where that is longer
MAX_POLL_INTERVAL = 1.0  # seconds
FIRST_POLL_INTERVAL = 0.02  # seconds between polls of the first in the queue
MAX_CAP = 100_000  # sessions

Deadlock = Literal["", "own", "mutual"]


@dataclass(frozen=True)
class Applicant:
    """A creation that asks for its turn.

    :param nonce: of the creation.
    :param ticket: of its place in the queue, for all its attempts.
    :param number: that place, 0 where it has none yet.
    :param cap: most sessions at once, 0 for no cap.
    :param waited: seconds for which it has waited so far.
    :param remaining: seconds for which it may go on waiting.
    :param self_blocked: whether the test's process can end none of its sessions meanwhile.
    :param begun: the nonces that this very process has begun, and no other process of its name.
    :param over: nonces whose sessions are over, though their processes died before they could release the slots.
    """

    nonce: str
    ticket: str
    number: int
    run: str
    owner: str
    test: str
    cap: int
    waited: float
    remaining: float
    self_blocked: bool = False
    begun: Collection[str] = ()
    over: Collection[str] = ()


class Holding(NamedTuple):
    """A test that waits, and how many sessions its process has open."""

    test: str
    owner: str
    sessions: int


@dataclass(frozen=True)
class AdmissionDecision:
    """What a poll of the queue came to.

    :param number: the place in the queue.
    :param began: when the creation began, ``None`` if it has to wait.
    :param poll_in: seconds until it is worth to ask again.
    :param blocked_by: what it waits for: the API's ``rate``, a ``slot``, or the entries before it in the ``queue``.
    :param waits_for_slot: whether all slots are taken, whatever else it waits for.
    :param starts_in: seconds until the rate allows the next creation.
    :param is_too_late: whether that is later than it may wait.
    :param deadlock: whether no slot can become free as all wait: its ``own`` process has them all, or ``mutual``, and
        this one is to give way.
    :param holdings: the tests that wait for each other, or for themselves.
    :param quota: creations that the API allows in a window, 0 where that is not known.
    :param window: its length in seconds.
    :param slots: the slots that are taken, by nonce.
    :param leases: of the runs that share the account over a server.
    :param others_before: how many entries of other runs are before this one.
    """

    number: int
    began: float | None = None
    poll_in: float = 0.0
    blocked_by: Literal["rate", "slot", "queue"] = "queue"
    waits_for_slot: bool = False
    starts_in: float = 0.0
    is_too_late: bool = False
    deadlock: Deadlock = ""
    holdings: tuple[Holding, ...] = ()
    quota: int = 0
    window: float = 0.0
    slots: Mapping[str, Slot] = field(default_factory=dict, repr=False)
    leases: Mapping[str, Lease] = field(default_factory=dict, repr=False)
    others_before: int = 0

    @property
    def is_hopeless(self) -> bool:
        """Whether waiting is of no use."""
        return self.is_too_late or bool(self.deadlock)

    def waits_for_others(self, run: str) -> bool:
        """Whether a creation of *run* would not wait, as far as the cap and the queue go, without other machines."""
        shared = [slot.run for slot in self.slots.values() if slot.run in self.leases]
        holds_up = self.blocked_by == "slot" and any(other != run for other in shared)
        return holds_up or (self.blocked_by == "queue" and bool(self.others_before and self.leases))


def is_present(state: State, entry: QueueEntry, now: float) -> bool:
    """Whether the creation of *entry* is still being polled for.

    A run with a lease shows by that alone that it lives: it takes its entries back itself.
    """
    if lease := state.leases.get(entry.run):
        return abs(now - lease.seen) < lease.lasts * QUIET_SHARE
    return abs(now - entry.seen) < HEARTBEAT_TIMEOUT


def is_full(state: State, cap: int) -> bool:
    """Whether no slot is free under *cap*."""
    return bool(cap) and len(state.slots) >= cap


def is_crowded(state: State, now: float) -> bool:
    """Whether any creation waits for a session to end."""
    return any(entry.waits_for_slot and is_present(state, entry, now) for entry in state.queue)


def next_start(state: State) -> float:
    """When the next creation may begin, as far as the rate goes."""
    if not state.quota or len(state.starts) < state.quota:
        return state.until
    return max(state.until, state.starts[-state.quota] + state.window + MARGIN)


def expire(state: State, now: float) -> State:
    """Drop what is too old to matter, or was written by a clock that has been set back since."""
    until, misses, quota, window = state.until, state.misses, state.quota, state.window
    if not 0 <= now - state.set_at < TRUSTED_FOR or until - state.set_at > 1.1 * TRUSTED_FOR:
        until, misses = 0.0, 0
    if not 0 <= now - state.learned < TRUSTED_FOR:
        quota, window = 0, 0.0
    since = now - window - MARGIN
    return state._replace(
        until=until,
        misses=misses,
        quota=quota,
        window=window,
        starts=tuple(start for start in state.starts if since < start <= now)[-quota:] if quota else (),
        queue=tuple(
            entry
            for entry in state.queue
            if entry.run in state.leases or abs(now - entry.seen) < 10 * HEARTBEAT_TIMEOUT
        ),
    )


def try_admit(state: State, now: float, applicant: Applicant) -> tuple[State, AdmissionDecision]:
    """Begin a creation if it is its turn, else give it a place in the queue."""
    state = expire(state, now)
    if applicant.over:
        state = release_slots(state, now, applicant.over)[0]
    entry = _entry(state, now, applicant)
    state = state._replace(last=max(state.last, entry.number))  # the store may have begun anew
    others = [other for other in state.queue if other.ticket != entry.ticket]
    before = [other for other in others if other.number < entry.number and is_present(state, other, now)]
    full = is_full(state, applicant.cap)
    # Those that wait for a smaller cap of their own do not hold up the others.
    is_first = all(is_full(state, other.cap) and not full for other in before)
    wait = next_start(state) - now
    if is_first and not full and wait <= 0:
        slot = Slot(applicant.run, applicant.owner)
        state = _begin(state._replace(queue=tuple(others)), now, applicant.nonce, slot, applicant.cap)
        return state, AdmissionDecision(entry.number, began=now, quota=state.quota, window=state.window)
    is_fresh = entry.run in state.leases or abs(now - entry.seen) < REFRESH_INTERVAL
    entry = entry._replace(
        cap=applicant.cap,
        seen=entry.seen if is_fresh else now,
        waits_for_slot=full,
        self_blocked=applicant.self_blocked and full and _holds_its_own(state, applicant),
    )
    state = state._replace(queue=tuple(sorted([*others, entry], key=lambda other: other.number)))
    deadlock, holdings = _deadlock(state, now, entry) if full else ("", ())
    return state, AdmissionDecision(
        entry.number,
        poll_in=_poll_in(wait, len(before)),
        others_before=sum(other.run != applicant.run for other in before),
        blocked_by="rate" if wait > 0 else "slot" if full else "queue",
        waits_for_slot=full,
        starts_in=max(wait, 0.0),
        is_too_late=wait > applicant.remaining,
        deadlock=deadlock,
        holdings=holdings,
        quota=state.quota,
        window=state.window,
        slots=state.slots,
        leases=state.leases,
    )


def _poll_in(wait: float, before: int) -> float:
    most = min(max(POLL_INTERVAL, POLL_SHARE * before), MAX_POLL_INTERVAL)
    return min(max(wait, FIRST_POLL_INTERVAL * (1 + before)), most)


def try_admit_ahead(state: State, now: float, *, nonce: str, slot: Slot, cap: int) -> tuple[State, float | None]:
    """Begin a creation that no test waits for, if it keeps none that a test waits for from anything.

    Half of what a window allows is left to the tests' own.

    :returns: with the state, when it began; ``None`` if it may not.
    """
    state = expire(state, now)
    if any(is_present(state, entry, now) for entry in state.queue) or next_start(state) > now or is_full(state, cap):
        return state, None
    if state.quota and len(state.starts) >= state.quota // 2:
        return state, None
    return _begin(state, now, nonce, slot, cap), now


def leave_queue(state: State, _now: float, ticket: str, nonce: str) -> tuple[State, None]:
    """Give up a place in the queue, and the slot of a creation that was interrupted as it began."""
    queue = tuple(entry for entry in state.queue if entry.ticket != ticket)
    return state._replace(queue=queue, slots=_without(state.slots, [nonce])), None


def record_rate_limited(
    state: State, now: float, *, nonce: str, began: float, limit: Limit, chance: float
) -> tuple[State, None]:
    """Take in that the API answered 429 to a creation: there is no session, and others are to wait.

    :param began: when the creation did.
    :param chance: from 0 to 1: the part of the jitter to add, so that not all come back at once.
    """
    state = expire(state, now)
    state = state._replace(
        slots=_without(state.slots, [nonce]), starts=tuple(start for start in state.starts if start != began)
    )
    if limit.quota and limit.window:
        state = state._replace(quota=limit.quota, window=limit.window, learned=now)
    if now >= state.until:  # the answers to what was under way at the first are no news
        state = state._replace(misses=state.misses + 1)
    wait = limit.retry_after if limit.retry_after is not None else limit.window or 0.0
    wait = max(min(wait, TRUSTED_FOR), min(BACKOFF * 2 ** min(state.misses - 1, 10), MAX_BACKOFF))
    if now + wait > state.until:
        state = state._replace(until=now + wait + chance * min(JITTER * wait, MAX_JITTER), set_at=now)
    return state, None


def record_success(state: State, _now: float) -> tuple[State, None]:
    """Take in that the API created a session."""
    return state._replace(misses=0), None


def mark_slots(state: State, _now: float, nonces: Iterable[str], use: str) -> tuple[State, None]:
    """Note what sessions are there for."""
    marked = {nonce: state.slots[nonce]._replace(use=use) for nonce in nonces if nonce in state.slots}
    return state._replace(slots={**state.slots, **marked}), None


def release_slots(state: State, _now: float, nonces: Iterable[str]) -> tuple[State, None]:
    """Free the slots of sessions that are over, or that never came to be."""
    return state._replace(slots=_without(state.slots, nonces)), None


def keep_own(state: State, is_own: Callable[[str, Slot | QueueEntry], bool]) -> State:
    """Return *state* as its owner knows it where the store is gone: it hears of no other process any more.

    :param is_own: whether a slot, with its nonce, or a place in the queue, with ``""``, is the owner's.
    """
    return state._replace(
        slots={nonce: slot for nonce, slot in state.slots.items() if is_own(nonce, slot)},
        queue=tuple(entry for entry in state.queue if is_own("", entry)),
        touched=0.0,
        leases={},
        vanished={},
    )


def merge(state: State, known: State, is_own: Callable[[str, Slot | QueueEntry], bool]) -> State:
    """Bring what one owner knows, and could not store as it should have, into the *state* that the others share."""
    if known.until > state.until:
        state = state._replace(until=known.until, set_at=known.set_at, misses=known.misses)
    if known.learned > state.learned:
        state = state._replace(quota=known.quota, window=known.window, learned=known.learned, starts=known.starts)
    others = {nonce: slot for nonce, slot in state.slots.items() if not is_own(nonce, slot)}
    return state._replace(slots={**others, **keep_own(known, is_own).slots})


def shift(state: State, seconds: float) -> State:
    """Return what is known of the rate by a clock that is *seconds* ahead of the one it was learned by."""

    def moved(moment: float) -> float:
        return max(moment + seconds, 0.0) if moment else 0.0

    return state._replace(
        until=moved(state.until),
        set_at=moved(state.set_at),
        learned=moved(state.learned),
        starts=tuple(map(moved, state.starts)),
    )


def _entry(state: State, now: float, applicant: Applicant) -> QueueEntry:
    """Return the applicant's place in the queue, the last if it has none."""
    mine = next((entry for entry in state.queue if entry.ticket == applicant.ticket), None)
    return mine or QueueEntry(
        applicant.number or state.last + 1,
        applicant.ticket,
        applicant.run,
        applicant.owner,
        applicant.test,
        asked=now - applicant.waited,
        seen=now,
    )


def _begin(state: State, now: float, nonce: str, slot: Slot, cap: int) -> State:
    return state._replace(
        starts=(*state.starts, now) if state.quota else state.starts,
        slots={**state.slots, nonce: slot} if cap else state.slots,
    )


def _without(slots: Mapping[str, Slot], nonces: Iterable[str]) -> dict[str, Slot]:
    left = dict(slots)
    for nonce in nonces:
        left.pop(nonce, None)
    return left


def _holds_its_own(state: State, applicant: Applicant) -> bool:
    """Whether it was this process that began all that its owner holds, and no fork of it."""
    me = applicant.run, applicant.owner
    return all(nonce in applicant.begun for nonce, slot in state.slots.items() if (slot.run, slot.owner) == me)


def _deadlock(state: State, now: float, entry: QueueEntry) -> tuple[Deadlock, tuple[Holding, ...]]:
    """Return why no slot can become free while all wait; nothing if one can, or if another is to give way."""
    holders = Counter((slot.run, slot.owner) for slot in state.slots.values())
    blocked = [
        other
        for other in state.queue
        if other.self_blocked and is_present(state, other, now) and (other.run, other.owner) in holders
    ]
    if any(slot.use for slot in state.slots.values()) or not holders.keys() <= {(b.run, b.owner) for b in blocked}:
        return "", ()
    if holders.keys() == {(entry.run, entry.owner)}:
        return "own", (Holding(entry.test, entry.owner, holders[entry.run, entry.owner]),)
    if blocked[-1].ticket != entry.ticket:
        return "", ()
    return "mutual", tuple(Holding(other.test, other.owner, holders[other.run, other.owner]) for other in blocked)
