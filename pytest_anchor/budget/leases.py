"""Which runs live, as far as a store that several machines share can tell: state and time in, state and decision out.

Pure functions, as :mod:`.rules`. What a run has in the state counts only with its lease, which it renews whenever it
writes. One whose lease ran out has vanished: its slots and places are free at once; a while later, another run takes
it over, to end its sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .state import Lease, State, Vanished

if TYPE_CHECKING:
    from collections.abc import Collection

RENEW_SHARE = 1 / 6  # part of a lease after which a run renews it
GAP_SHARE = 1 / 3  # part of the shortest lease; if no run has written for longer, none could: no lease runs meanwhile
GRACE_SHARE = 2 / 3  # part of a lease that a vanished run has left to show the API that it lives
CREATION_TIMEOUT = 150.0  # seconds in which a creation that a vanished run has sent may come to be
FORGOTTEN_AFTER = 3600.0  # seconds after which a vanished run is no matter any more


class Member(NamedTuple):
    """A run, as it presents itself to the others; for its fields see :class:`~.state.Lease`."""

    run: str
    run_id: str
    machine: str
    shard: str
    lasts: float


class Presence(NamedTuple):
    """What a run finds of itself in the state.

    :param has_joined: whether it had no lease, so that the state does not have what the run knows.
    :param taken_by: the run that has taken it over since, ``""`` if none has.
    :param joins: see :class:`~.state.Lease`.
    """

    has_joined: bool
    taken_by: str
    joins: int


def renew(state: State, now: float, member: Member, joins: int) -> tuple[State, Presence]:
    """Show that a run lives where that is due, and free what those have that do not show it any more.

    :param joins: how often the run has joined so far, as it knows itself.
    """
    state = _expire(_wait_out_gap(state, now), now)
    lease, gone = state.leases.get(member.run), state.vanished.get(member.run)
    if lease is None:
        joins = max(joins, gone.lease.joins if gone else 0) + 1
    else:
        joins = lease.joins
        if 0 <= now - lease.seen < lease.lasts * RENEW_SHARE:
            return state, Presence(has_joined=False, taken_by="", joins=joins)
    writes = lease.writes if lease else 0
    fresh = Lease(now, member.lasts, member.run_id, member.machine, member.shard, joins, writes)
    vanished = {run: other for run, other in state.vanished.items() if run != member.run}
    state = state._replace(touched=now, leases={**state.leases, member.run: fresh}, vanished=vanished)
    return state, Presence(lease is None, gone.taker if gone else "", joins)


def leave(state: State, _now: float, run: str) -> tuple[State, None]:
    """Take in that a run is over: it has nothing any more, and takes over no other."""
    state = _without(state, {run})
    vanished = {name: gone._replace(taker="") if gone.taker == run else gone for name, gone in state.vanished.items()}
    return state._replace(vanished=vanished), None


def take_over(state: State, now: float, run: str) -> tuple[State, dict[str, Lease]]:
    """Have *run* take over those that vanished a while ago, and that no other living run has taken over.

    :returns: all that it has taken over, with their last leases.
    """
    vanished = {
        name: gone._replace(taker=run)
        if name != run and now - gone.since >= gone.lease.lasts * GRACE_SHARE and gone.taker not in state.leases
        else gone
        for name, gone in state.vanished.items()
    }
    mine = {name: gone.lease for name, gone in vanished.items() if gone.taker == run}
    return state._replace(vanished=vanished), mine


def confirm(state: State, _now: float, run: str, taken: str) -> tuple[State, bool]:
    """Whether *run* still has *taken* over, which has not come back."""
    gone = state.vanished.get(taken)
    return state, gone is not None and gone.taker == run


def settle(state: State, now: float, run: str, taken: str) -> tuple[State, bool]:
    """Forget a vanished run whose sessions have been ended.

    :returns: with the state, whether it is forgotten: not as long as something that it has sent may come to be.
    """
    gone = state.vanished.get(taken)
    if gone is None or gone.taker != run:
        return state, True
    if now - gone.since < CREATION_TIMEOUT:
        return state, False
    return state._replace(vanished={name: other for name, other in state.vanished.items() if name != taken}), True


def restore(state: State, now: float, known: State) -> State:
    """Bring into a *state* that has lost something what was *known* before of runs that it does not know.

    One of them may be gone, and must be missed; what one that lives has done since, it says itself. What had vanished
    may have come back since.
    """
    missing = {
        run: lease._replace(seen=now)
        for run, lease in known.leases.items()
        if run not in state.leases and run not in state.vanished
    }
    gone = {run: other for run, other in known.vanished.items() if run not in state.leases} | dict(state.vanished)
    return state._replace(
        slots={**{name: slot for name, slot in known.slots.items() if slot.run in missing}, **state.slots},
        leases={**missing, **state.leases},
        vanished={run: other._replace(since=now, taker="") for run, other in gone.items()},
    )


def _wait_out_gap(state: State, now: float) -> State:
    """Take the time in which no run has written from no lease: the server was away, or its clock jumped."""
    if not state.touched:
        return state
    shortest = min((lease.lasts for lease in state.leases.values()), default=0.0)
    gap = now - state.touched
    if 0 <= gap <= shortest * GAP_SHARE:
        return state
    leases = {run: lease._replace(seen=min(lease.seen + max(gap, 0.0), now)) for run, lease in state.leases.items()}
    vanished = {run: gone._replace(since=min(gone.since + max(gap, 0.0), now)) for run, gone in state.vanished.items()}
    return state._replace(touched=now, leases=leases, vanished=vanished)


def _expire(state: State, now: float) -> State:
    out = {run: lease for run, lease in state.leases.items() if lease.until <= now}
    vanished = {run: gone for run, gone in state.vanished.items() if now - gone.since < FORGOTTEN_AFTER}
    vanished |= {run: Vanished(lease, now) for run, lease in out.items()}
    homeless = {slot.run for slot in state.slots.values()} | {entry.run for entry in state.queue}
    homeless -= state.leases.keys()
    if not (out or homeless) and vanished == state.vanished:
        return state
    return _without(state, out.keys() | homeless)._replace(vanished=vanished)


def _without(state: State, runs: Collection[str]) -> State:
    return state._replace(
        slots={nonce: slot for nonce, slot in state.slots.items() if slot.run not in runs},
        queue=tuple(entry for entry in state.queue if entry.run not in runs),
        leases={run: lease for run, lease in state.leases.items() if run not in runs},
    )
