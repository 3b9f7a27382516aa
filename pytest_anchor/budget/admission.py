"""Waits until a creation may begin: its place in the queue, the polls, and the reports while it waits."""

from __future__ import annotations

import math
import os
import random
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..errors import AnchorLimitError, printable
from . import rules
from .state import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..errors import Limit
    from .holders import SlotHolders
    from .rules import AdmissionDecision, Applicant
    from .state import State
    from .store import Store

    Result = TypeVar("Result")

REPORT_AFTER = 2.0  # seconds of waiting before it is reported

_REMEDY = "Raise that limit, run fewer workers, end sessions that are not needed, or take a larger plan."


class Limits:
    """One owner's view of what its account may do. Safe to use from several threads.

    :param store: where the state is kept that all owners share.
    :param holders: knows which owners live.
    :param cap: most sessions at once, 0 for no cap.
    :param timeout: seconds that a creation may wait.
    """

    def __init__(self, store: Store, holders: SlotHolders, *, cap: int, timeout: float) -> None:
        self.store = store
        self.holders = holders
        self.cap = min(cap, rules.MAX_CAP)
        self.timeout = timeout
        self._misses = 0  # as of the last update
        self._begun: set[str] = set()  # nonces of what this process has begun and not released

    def admission(self, test: str, report_wait: Callable[[str], None]) -> Admission:
        """A creation that is to begin when the limits allow.

        :param report_wait: called again and again with what is waited for, once that has taken two seconds.
        """
        return Admission(self, test, report_wait)

    def try_admit(self, applicant: Applicant) -> AdmissionDecision:
        """Begin a creation if it is its turn, else give it a place in the queue."""
        decision = self._update(partial(rules.try_admit, applicant=applicant))
        if decision.waits_for_slot and (over := self.holders.find_over(decision.slots, decision.leases)):
            applicant = replace(applicant, number=decision.number, over=over)
            decision = self._update(partial(rules.try_admit, applicant=applicant))
        if decision.began is not None and self.cap:
            self._begun.add(applicant.nonce)
        return decision

    def applicant(self, admission: Admission, nonce: str, *, self_blocked: bool) -> Applicant:
        """What the rules need to know of a creation that asks for its turn."""
        return rules.Applicant(
            nonce,
            admission.ticket,
            admission.number,
            self.holders.run,
            self.holders.owner,
            admission.test,
            cap=self.cap,
            waited=admission.seconds,
            remaining=admission.remaining,
            self_blocked=self_blocked,
            begun=self._begun,
        )

    def try_admit_ahead(self, nonce: str) -> float | None:
        """Count a creation that no test waits for as begun, if it keeps none that a test waits for from anything.

        :returns: when it began, in seconds since the epoch; ``None`` if it may not.
        """
        slot = Slot(self.holders.run, self.holders.owner, "ahead")
        began = self._update(partial(rules.try_admit_ahead, nonce=nonce, slot=slot, cap=self.cap))
        if began is not None and self.cap:
            self._begun.add(nonce)
        return began

    @property
    def is_current(self) -> bool:
        """Whether a creation that was admitted just now may still begin; else it is to ask again."""
        return self.store.is_current

    def leave_queue(self, ticket: str, nonce: str) -> None:
        """Give up a place in the queue, and the slot of a creation that was interrupted as it began."""
        self._update(partial(rules.leave_queue, ticket=ticket, nonce=nonce))
        self._begun.discard(nonce)

    def is_crowded(self) -> bool:
        """Whether any creation waits for a session to end."""
        return rules.is_crowded(*self.store.read())

    def record_rate_limited(self, nonce: str, began: float, limit: Limit) -> None:
        """Take in that the API answered 429 to the creation *nonce*: there is no session, and others are to wait.

        :param began: when the creation did, in seconds since the epoch.
        """
        chance = random.random()  # noqa: S311 - no secret
        self._update(partial(rules.record_rate_limited, nonce=nonce, began=began, limit=limit, chance=chance))
        self._begun.discard(nonce)

    def record_success(self) -> None:
        """Take in that the API created a session."""
        if self._misses:
            self._update(rules.record_success)

    def mark_slots(self, nonces: Iterable[str], use: str) -> None:
        """Note what sessions are there for: see :class:`~.state.Slot`."""
        nonces = list(nonces)
        if self.cap and nonces:
            self._update(partial(rules.mark_slots, nonces=nonces, use=use))

    def release_slots(self, nonces: Iterable[str]) -> None:
        """Free the slots of sessions that are over, or that never came to be."""
        nonces = list(nonces)
        if self.cap and nonces:
            self._update(partial(rules.release_slots, nonces=nonces))
            self._begun.difference_update(nonces)

    def _update(self, rule: Callable[[State, float], tuple[State, Result]]) -> Result:
        def noting_misses(state: State, now: float) -> tuple[State, Result]:
            state, result = rule(state, now)
            self._misses = state.misses
            return state, result

        return self.store.update(noting_misses)


class Admission:
    """One creation's place in the queue, for all its attempts.

    :ivar seconds: how long it has waited.
    :ivar slot_seconds: how much of that for a session to end.
    :ivar elsewhere_seconds: how much of that for runs of other machines.
    :ivar began: when its last attempt began, in seconds since the epoch.
    :ivar quota: creations that the API allows in a *window* of seconds, 0 where that is not known.
    :ivar refusal: what the API answered to it.
    :ivar ticket: names the place, whatever becomes of the store.
    :ivar number: the place, 0 until it has asked for the first time.
    """

    def __init__(self, limits: Limits, test: str, report_wait: Callable[[str], None]) -> None:
        self.test = test
        self.seconds = self.slot_seconds = self.elsewhere_seconds = self.began = 0.0
        self.quota, self.window = 0, 0.0
        self.refusal = ""
        self.ticket = os.urandom(8).hex()
        self.number = 0
        self._limits = limits
        self._report_wait = report_wait

    @property
    def remaining(self) -> float:
        """Seconds for which it may go on waiting."""
        return self._limits.timeout - self.seconds

    def wait(self, nonce: str, *, self_blocked: bool, between_polls: Callable[..., None]) -> None:
        """Block until the creation *nonce* may begin, and count it as begun.

        :param self_blocked: whether the test's process can end none of its sessions while this waits.
        :param between_polls: called with *waits_for_slot*; what it raises ends the wait.
        :raises AnchorLimitError: it has waited for too long, or would.
        """
        __tracebackhide__ = True
        limits, before, start = self._limits, self.seconds, time.monotonic()
        try:
            while (decision := self._poll(nonce, self_blocked=self_blocked)).began is None:
                self._record_wait(before + time.monotonic() - start, decision)
                if decision.is_hopeless or self.remaining <= 0:
                    raise AnchorLimitError(self._describe_failure(decision))
                if self.seconds > REPORT_AFTER:
                    self._report_wait(f"{self.test} waits for {describe(decision, limits.cap, limits.holders.run)}")
                between_polls(waits_for_slot=decision.waits_for_slot)
                time.sleep(min(decision.poll_in, max(self.remaining, 0.0)))
                self._record_wait(before + time.monotonic() - start, decision)
            self.began = decision.began
        except BaseException:
            limits.leave_queue(self.ticket, nonce)
            raise

    def _record_wait(self, seconds: float, decision: AdmissionDecision) -> None:
        if decision.blocked_by == "slot":
            self.slot_seconds += seconds - self.seconds
        if decision.waits_for_others(self._limits.holders.run):
            self.elsewhere_seconds += seconds - self.seconds
        self.seconds = seconds

    def _poll(self, nonce: str, *, self_blocked: bool) -> AdmissionDecision:
        limits = self._limits
        decision = limits.try_admit(limits.applicant(self, nonce, self_blocked=self_blocked))
        self.number = decision.number
        self.quota, self.window = decision.quota, decision.window
        return decision

    def _describe_failure(self, decision: AdmissionDecision) -> str:
        waited = f"waited {self.seconds:.0f} s" if self.seconds >= 1 else "would have to wait"
        reason = describe(decision, self._limits.cap, self._limits.holders.run)
        text = f"no session was created for {printable(self.test)}: it {waited} for {reason}"
        if self.refusal:
            text += f" (the API answered {self.refusal})"
        if decision.deadlock:
            return f"{text}; {_describe_deadlock(decision)}"
        if decision.is_too_late:
            return (
                f"{text}; the next may begin in {math.ceil(decision.starts_in)} s at the earliest, and the limit that "
                f"--anchor-create-timeout sets leaves {self.remaining:.0f} s. {_REMEDY}"
            )
        held = f" ({self._limits.holders.describe(decision.slots, decision.leases)})" if decision.waits_for_slot else ""
        return f"{text}{held}; --anchor-create-timeout allows no more than {self._limits.timeout:g} s. {_REMEDY}"


def describe(decision: AdmissionDecision, cap: int, run: str) -> str:
    """What a creation of a *run* waits for, in words."""
    if decision.blocked_by == "slot":
        elsewhere = [slot.run for slot in decision.slots.values() if slot.run != run and slot.run in decision.leases]
        others = f", {len(elsewhere)} of them of {_count_runs(set(elsewhere), decision)}" if elsewhere else ""
        return f"a session to end: {len(decision.slots)} of at most {cap} are open{others}"
    if decision.blocked_by == "queue":
        return f"its turn: {decision.others_before} of other runs come first" if decision.others_before else "its turn"
    if not decision.quota:
        return "its turn: the API asked to wait"
    creations = "creation" if decision.quota == 1 else "creations"
    return f"its turn: the API allows {decision.quota} {creations} in {decision.window:g} s"


def _count_runs(runs: set[str], decision: AdmissionDecision) -> str:
    machines = sorted({printable(decision.leases[run].machine, 40) for run in runs})
    return (
        f"another run, on {machines[0]}" if len(runs) == 1 else f"{len(runs)} other runs, on {', '.join(machines[:3])}"
    )


def _describe_deadlock(decision: AdmissionDecision) -> str:
    if decision.deadlock == "own":
        (holding,) = decision.holdings
        them = "the only one" if holding.sessions == 1 else f"all {holding.sessions} of them"
        return (
            f"the test itself, or a fixture around it, holds {them}, and would wait for itself: end one first, or "
            "raise --anchor-max-sessions if the plan allows more."
        )
    tests = ", ".join(f"{printable(test)} [{owner}] holds {sessions}" for test, owner, sessions in decision.holdings)
    return (
        f"they are held by tests that wait for each other, so this one gives way: {tests}. Run fewer workers, "
        "let each test hold fewer sessions at once, or raise --anchor-max-sessions if the plan allows more."
    )
