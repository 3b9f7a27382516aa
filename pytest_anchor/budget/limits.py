"""How many creations may begin, and how many sessions may live, over all that share a registry and an account.

One small file for each account, rewritten as a whole under a lock::

    .pytest_anchor/limits-<account>.json

It holds what the API's last 429 told, when creations began since, who holds a slot under the cap, and
who waits, in the order in which they asked. Whatever is wrong with it costs speed at most: the API
keeps its own limits. What this process learned itself it knows without the file, too.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from filelock import Timeout

from ..errors import AnchorLimitError, AnchorRegistryError, printable
from ..registry.journal import LOCK_TIMEOUT, Run, guarded
from ..registry.locks import is_live, open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from ..errors import Limit

KNOWN_FOR = 3600.0  # seconds for which what the API told of its limits is believed
MARGIN = 0.05  # seconds by which a request may reach the API sooner after it was sent than the one before it
BACKOFF = 0.5  # seconds after the first 429 at least; doubled with each that follows
MAX_BACKOFF = 30.0  # seconds
HEARTBEAT_TIMEOUT = 3.0  # seconds after which who waits and does not look again is taken for dead or stopped
POLL_INTERVAL = 0.25  # seconds between looks, at most
FIRST_POLL_INTERVAL = 0.02  # seconds between those of the first in the queue
REPORT_AFTER = 2.0  # seconds of waiting before anything is said of it
MAX_FILE = 4 << 20  # bytes
MAX_CAP = 100_000  # sessions
MAX_WINDOW = 86_400.0  # seconds

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)

_REMEDY = "Raise that limit, run fewer workers, end sessions that are not needed, or take a larger plan."


@dataclass
class _Slot:
    """A session that counts under the cap.

    :param use: ``""``, or why nobody needs to wait for a test to let it go: ``ahead`` or ``ending``.
    """

    run: str
    owner: str
    use: str = ""

    def __post_init__(self) -> None:
        _check(_is_name(self.run) and _is_name(self.owner) and self.use in ("", "ahead", "ending"))


@dataclass
class QueueEntry:
    """Somebody in the queue; moments in seconds since the epoch."""

    number: int
    ticket: str
    run: str
    owner: str
    test: str
    asked: float
    seen: float
    cap: int = 0
    waits_for_slot: bool = False  # whether it is a slot that it waits for
    self_blocked: bool = False  # whether its process cannot let a slot go meanwhile
    why: str = ""

    def __post_init__(self) -> None:
        _check(_is_name(self.ticket) and _is_name(self.run) and _is_name(self.owner))
        _check(all(isinstance(text, str) for text in (self.test, self.why)))
        _check(all(map(_is_number, (self.number, self.asked, self.seen, self.cap))))

    @property
    def present(self) -> bool:
        """Whether it still looks for its turn."""
        return abs(time.time() - self.seen) < HEARTBEAT_TIMEOUT


@dataclass
class _State:
    """What the file says; moments in seconds since the epoch."""

    until: float = 0.0  # no creation begins before
    set_at: float = 0.0  # when that was written down
    misses: int = 0  # answers of 429 since a creation succeeded
    quota: int = 0  # creations in a window, 0 where no policy is known
    window: float = 0.0  # seconds
    learned: float = 0.0  # when the policy was
    last: int = 0  # number given to who asked last
    starts: list[float] = field(default_factory=list)
    slots: dict[str, _Slot] = field(default_factory=dict)  # by nonce
    queue: list[QueueEntry] = field(default_factory=list)

    @classmethod
    def of(cls, text: bytes) -> _State:
        """What :meth:`dump` wrote.

        :raises ValueError: it is something else; so do TypeError, AttributeError and RecursionError say.
        """
        values = json.loads(text)
        state = cls(
            **{
                **values,
                "slots": {nonce: _Slot(*slot) for nonce, slot in values["slots"].items()},
                "queue": [QueueEntry(**waiter) for waiter in values["queue"]],
            }
        )
        _check(all(map(_is_number, (state.until, state.set_at, state.window, state.learned, *state.starts))))
        _check(all(isinstance(one, int) and _is_number(one) for one in (state.misses, state.quota, state.last)))
        _check(all(map(_is_name, state.slots)) and state.window <= MAX_WINDOW)
        return state

    def dump(self) -> bytes:
        values = {
            **vars(self),
            "slots": {nonce: [slot.run, slot.owner, slot.use] for nonce, slot in self.slots.items()},
            "queue": [asdict(waiter) for waiter in self.queue],
        }
        return json.dumps(values, separators=(",", ":")).encode()

    def forget(self, now: float) -> None:
        """Drop what is too old to matter, or was written by a clock that has been set back since."""
        if not 0 <= now - self.set_at < KNOWN_FOR or self.until - self.set_at > 1.1 * KNOWN_FOR:
            self.until, self.misses = 0.0, 0
        if not 0 <= now - self.learned < KNOWN_FOR:
            self.quota, self.window = 0, 0.0
        since = now - self.window - MARGIN
        self.starts = [one for one in self.starts if since < one <= now][-self.quota :] if self.quota else []
        self.queue = [one for one in self.queue if abs(now - one.seen) < 10 * HEARTBEAT_TIMEOUT]

    @property
    def next_start(self) -> float:
        """When the next creation may begin, as far as the rate goes."""
        if not self.quota or len(self.starts) < self.quota:
            return self.until
        return max(self.until, self.starts[-self.quota] + self.window + MARGIN)

    def is_full(self, cap: int) -> bool:
        return bool(cap) and len(self.slots) >= cap


class AdmissionDecision(NamedTuple):
    """How a look at the queue came out.

    :param wait: seconds until it is worth to look again; ``None`` if the creation has begun.
    :param why: what it is that has to be waited for.
    :param full: whether that is a slot.
    :param error: why there is no use in waiting.
    """

    wait: float | None
    why: str = ""
    waits_for_slot: bool = False
    error: str = ""


class Limits:
    """One owner's view of what its account may do. Safe to use from several threads.

    :param folder: where the file lies: the registry, or the run's own folder for a backend of its own.
    :param run: the run's folder.
    :param account: names the account: :attr:`AnchorAPI.account`.
    :param cap: most sessions at once, 0 for no cap.
    :param timeout: seconds that a creation may wait.
    :param base_url: where the account's API is.
    :param lives: whether the process of this run with a given name lives.
    """

    def __init__(
        self,
        folder: Path,
        run: Path,
        owner: str,
        *,
        account: str,
        cap: int,
        timeout: float,
        base_url: str = "",
        lives: Callable[[str], bool] = lambda _owner: True,
    ) -> None:
        self.cap = min(cap, MAX_CAP)
        self._lives = lives
        self._base_url = base_url
        self._registry = run.parent
        self._run = run.name
        self._owner = owner
        self._timeout = timeout
        self._path = os.fspath(folder / f"limits-{account}.json")
        self._memory = _State()
        self._saved = True
        self._patience = LOCK_TIMEOUT
        self._dead: dict[str, Run] = {}
        self._mutex = threading.RLock()
        self._begun: set[str] = set()  # nonces

    def admission(self, test: str, tell: Callable[[str], None]) -> Admission:
        """A creation that is to begin when the limits allow.

        :param tell: told again and again what is waited for, once that has taken two seconds.
        """
        return Admission(self, test, self._timeout, tell)

    def begin_now(self, nonce: str) -> float | None:
        """Count a creation that nobody waits for as begun, if it keeps nobody from anything.

        Half of what a window allows is left to the tests' own.

        :returns: when it began, in seconds since the epoch; ``None`` if it may not.
        """
        with self._changing() as state:
            now = time.time()
            state.forget(now)
            if any(one.present for one in state.queue) or state.next_start > now or state.is_full(self.cap):
                return None
            if state.quota and len(state.starts) >= state.quota // 2:
                return None
            self._begin(state, nonce, "ahead", now)
        return now

    def is_crowded(self) -> bool:
        """Whether anybody waits for a session to end."""
        return any(one.waits_for_slot and one.present for one in self._look().queue)

    def record_rate_limited(self, nonce: str, began: float, limit: Limit) -> None:
        """Take in that the API answered 429 to the creation *nonce*: there is no session, and others are to wait.

        :param began: when the creation did, in seconds since the epoch.
        """
        with self._changing() as state:
            now = time.time()
            state.forget(now)
            state.slots.pop(nonce, None)
            state.starts = [one for one in state.starts if one != began]
            if limit.quota and limit.window:
                state.quota, state.window, state.learned = limit.quota, limit.window, now
            if now >= state.until:  # the answers to what was under way at the first are no news
                state.misses += 1
            wait = limit.retry_after if limit.retry_after is not None else limit.window or 0.0
            wait = max(min(wait, KNOWN_FOR), min(BACKOFF * 2 ** min(state.misses - 1, 10), MAX_BACKOFF))
            if now + wait > state.until:
                state.until = now + wait + random.uniform(0, min(0.1 * wait, 1.0))  # noqa: S311 - no secret
                state.set_at = now

    def succeeded(self) -> None:
        """Take in that the API created a session."""
        if self._memory.misses:
            with self._changing() as state:
                state.misses = 0

    def mark_slots(self, nonces: Iterable[str], use: str) -> None:
        """Say what the sessions are there for."""
        self._change_slots(nonces, lambda state, nonce: setattr(state.slots[nonce], "use", use))

    def release_slots(self, nonces: Iterable[str]) -> None:
        """Free the slots of sessions that are over, or that never came to be."""
        self._change_slots(nonces, lambda state, nonce: state.slots.pop(nonce))

    def _change_slots(self, nonces: Iterable[str], change: Callable[[_State, str], object]) -> None:
        nonces = list(nonces)
        if self.cap and nonces:
            with self._changing() as state:
                for nonce in nonces:
                    if nonce in state.slots:
                        change(state, nonce)

    def _begin(self, state: _State, nonce: str, use: str, now: float) -> None:
        if state.quota:
            state.starts.append(now)
        if self.cap:
            state.slots[nonce] = _Slot(self._run, self._owner, use)
            self._begun = {nonce, *(self._begun & state.slots.keys())}

    def try_admit(self, waiting: Admission, nonce: str, *, self_blocked: bool) -> AdmissionDecision:
        """Begin the creation *nonce* if it is its turn, else stand in the queue."""
        with self._changing() as state:
            now = time.time()
            state.forget(now)
            me = waiting.queue_entry(state, self._run, self._owner, now)
            if state.is_full(self.cap):
                self._free_the_dead(state)
            full = state.is_full(self.cap)
            before = [one for one in state.queue if one.number < me.number and one.present]
            # Who waits for a smaller cap of his own does not hold up the others.
            first = all(state.is_full(one.cap) and not full for one in before)
            if first and not full and state.next_start <= now:
                state.queue = [one for one in state.queue if one.ticket != me.ticket]
                self._begin(state, nonce, "", now)
                waiting.began = now
                return AdmissionDecision(None)
            me.cap, me.waits_for_slot, me.seen = self.cap, full, now
            me.self_blocked = self_blocked and full and self._holds_its_own(state)
            if state.next_start > now:
                me.why = f"its turn: {_rate(state)}"
            else:
                me.why = f"a session to end: {len(state.slots)} of at most {self.cap} are open" if full else "its turn"
            if me.ticket not in [one.ticket for one in state.queue]:
                state.queue = sorted([*state.queue, me], key=lambda one: one.number)
            if full and (error := self._deadlock(state, me)):
                return AdmissionDecision(0.0, me.why, full, error)
            wait = state.next_start - now
            if wait > waiting.left:
                return AdmissionDecision(
                    0.0,
                    me.why,
                    full,
                    f"the next may begin in {math.ceil(wait)} s at the earliest, and the limit that "
                    f"--anchor-create-timeout sets leaves {waiting.left:.0f} s. {_REMEDY}",
                )
            return AdmissionDecision(
                min(max(wait, FIRST_POLL_INTERVAL * (1 + len(before))), POLL_INTERVAL), me.why, full
            )

    def leave(self, ticket: str, nonce: str) -> None:
        """Give up the place in the queue, and the slot of a creation that was interrupted as it began."""
        with self._changing() as state:
            state.queue = [one for one in state.queue if one.ticket != ticket]
            state.slots.pop(nonce, None)

    def _holds_its_own(self, state: _State) -> bool:
        """Whether it was this process that began all that its owner holds, and no fork of it."""
        me = self._run, self._owner
        return all(nonce in self._begun for nonce, slot in state.slots.items() if (slot.run, slot.owner) == me)

    def _deadlock(self, state: _State, me: QueueEntry) -> str:
        """Why no slot can become free while all wait, ``""`` if one can, or if another is to give way."""
        holders = Counter((slot.run, slot.owner) for slot in state.slots.values())
        stuck = [one for one in state.queue if one.self_blocked and one.present and (one.run, one.owner) in holders]
        if any(slot.use for slot in state.slots.values()) or not holders.keys() <= {(w.run, w.owner) for w in stuck}:
            return ""
        if holders.keys() == {(me.run, me.owner)}:
            return (
                f"the test itself, or a fixture around it, holds {_all(holders[me.run, me.owner])}, and would wait for "
                "itself: end one first, or raise --anchor-max-sessions if the plan allows more."
            )
        if stuck[-1].ticket != me.ticket:
            return ""
        tests = ", ".join(f"{printable(one.test)} [{one.owner}] holds {holders[one.run, one.owner]}" for one in stuck)
        return (
            f"they are held by tests that wait for each other, so this one gives way: {tests}. Run fewer workers, "
            "let each test hold fewer sessions at once, or raise --anchor-max-sessions if the plan allows more."
        )

    def _free_the_dead(self, state: _State) -> None:
        """Let go the slots of processes that are dead, and whose sessions are over."""
        alive: dict[tuple[str, str], bool] = {}
        for nonce, slot in list(state.slots.items()):
            who = slot.run, slot.owner
            if who not in alive:
                alive[who] = self._is_alive(slot.run, slot.owner)
            if not alive[who] and self._is_over(slot.run, nonce):
                del state.slots[nonce]

    def _is_alive(self, run: str, owner: str) -> bool:
        return self._lives(owner) if run == self._run else is_live(self._registry / run)

    def _is_over(self, run: str, nonce: str) -> bool:
        journal = self._dead.setdefault(run, Run(self._registry / run))
        if not journal.folder.is_dir():
            return True
        with suppress(AnchorRegistryError):
            record = journal.read().records.get(nonce)
            return record is None or not record.open
        return False  # a record that cannot be read tells of no end

    def holders(self) -> str:
        """Who holds the slots, in words."""
        from ..reporting.summary import sweep_command

        held = Counter((slot.run, slot.owner, slot.use) for slot in list(self._look().slots.values()))
        words = {"": "", "ahead": " for the next tests", "ending": ", which could not be ended so far"}

        def more(run: str, owner: str, use: str) -> str:
            if self._is_alive(run, owner):
                return words[use]
            if is_live(self._registry / run):
                return ", which is over; its run tries to end what it left"
            return f", which died: {sweep_command(self._registry, self._base_url)} ends what it left"

        return "; ".join(
            f"{count} by {'this run' if run == self._run else 'another run'} [{owner}]{more(run, owner, use)}"
            for (run, owner, use), count in held.items()
        )

    def _look(self) -> _State:
        return _read(self._path) if self._saved else self._memory

    @contextmanager
    def _changing(self) -> Iterator[_State]:
        """The state, to be changed; it is written at the end, and kept in memory where that fails."""
        with self._mutex, ExitStack() as stack:
            try:
                file = stack.enter_context(guarded(self._path, self._patience))
                state = _parse(os.pread(file, MAX_FILE, 0))
                self._patience = LOCK_TIMEOUT
            except (OSError, Timeout) as error:
                file, state = None, self._memory
                if not isinstance(error, Timeout):  # of the others nobody hears any more
                    state.slots = {nonce: slot for nonce, slot in state.slots.items() if self._is_mine(slot)}
                    state.queue = [one for one in state.queue if self._is_mine(one)]
                self._patience = 0.0  # who waited once in vain does not do so each time
            if not self._saved:
                self._merge(state)
            self._memory = state
            yield state
            self._saved = file is not None and _write(file, state)

    def _is_mine(self, one: _Slot | QueueEntry) -> bool:
        return (one.run, one.owner) == (self._run, self._owner)

    def _merge(self, state: _State) -> None:
        """Bring what was not written when it should have been into *state*."""
        known = self._memory
        if known.until > state.until:
            state.until, state.set_at, state.misses = known.until, known.set_at, known.misses
        if known.learned > state.learned:
            state.quota, state.window, state.learned, state.starts = (
                known.quota,
                known.window,
                known.learned,
                known.starts,
            )
        others = {nonce: slot for nonce, slot in state.slots.items() if not self._is_mine(slot)}
        state.slots = others | {nonce: slot for nonce, slot in known.slots.items() if self._is_mine(slot)}


class Admission:
    """One creation's place in the queue, for all its attempts.

    :ivar seconds: how long it has waited.
    :ivar began: when its last attempt began, in seconds since the epoch.
    :ivar refusal: what the API answered to it.
    """

    def __init__(self, limits: Limits, test: str, timeout: float, tell: Callable[[str], None]) -> None:
        self.seconds = self.began = 0.0
        self.refusal = ""
        self._limits = limits
        self._test = test
        self._timeout = timeout
        self._tell = tell
        self._ticket = os.urandom(8).hex()
        self._number = 0

    @property
    def left(self) -> float:
        """Seconds for which it may go on waiting."""
        return self._timeout - self.seconds

    def queue_entry(self, state: _State, run: str, owner: str, now: float) -> QueueEntry:
        """Its place in the queue, the last if it has none."""
        self._number = self._number or state.last + 1
        state.last = max(state.last, self._number)  # the file may have begun anew
        mine = (one for one in state.queue if one.ticket == self._ticket)
        return next(mine, None) or QueueEntry(
            self._number, self._ticket, run, owner, self._test, now - self.seconds, now
        )

    def begin(self, nonce: str, *, self_blocked: bool, meanwhile: Callable[..., None]) -> None:
        """Block until the creation *nonce* may begin, and count it as begun.

        :param self_blocked: whether the test's process can let go of none of its sessions while this waits.
        :param meanwhile: called between the looks, with *waits_for_slot*; what it raises ends the wait.
        :raises AnchorLimitError: it has waited for too long, or would.
        """
        __tracebackhide__ = True
        before, start = self.seconds, time.monotonic()
        try:
            while (turn := self._limits.try_admit(self, nonce, self_blocked=self_blocked)).wait is not None:
                self.seconds = before + time.monotonic() - start
                if turn.error or self.left <= 0:
                    raise self._error(turn)
                if self.seconds > REPORT_AFTER:
                    self._tell(f"{self._test} waits for {turn.why}")
                meanwhile(waits_for_slot=turn.waits_for_slot)
                time.sleep(min(turn.wait, max(self.left, 0.0)))
        except BaseException:
            self._limits.leave(self._ticket, nonce)
            raise

    def _error(self, turn: AdmissionDecision) -> AnchorLimitError:
        waited = f"waited {self.seconds:.0f} s" if self.seconds >= 1 else "would have to wait"
        head = f"no session was created for {printable(self._test)}: it {waited} for {turn.why}"
        if self.refusal:
            head += f" (the API answered {self.refusal})"
        if turn.error:
            return AnchorLimitError(f"{head}; {turn.error}")
        held = f" ({self._limits.holders()})" if turn.waits_for_slot else ""
        return AnchorLimitError(
            f"{head}{held}; --anchor-create-timeout allows no more than {self._timeout:g} s. {_REMEDY}"
        )


def _read(path: str | os.PathLike[str]) -> _State:
    try:
        with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
            return _parse(file.read(MAX_FILE))
    except OSError:
        return _State()


def _parse(text: bytes) -> _State:
    try:
        return _State.of(text.partition(b"\n")[0])  # a kill may have left what follows
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return _State()


def _write(file: int, state: _State) -> bool:
    """Write *state* in one piece, so that no kill can leave half of it."""
    text = state.dump() + b"\n"
    try:
        whole = os.pwrite(file, text, 0) == len(text)
        os.ftruncate(file, len(text))
    except OSError:
        return False
    return whole


def _all(number: int) -> str:
    return "the only one" if number == 1 else f"all {number} of them"


def _rate(state: _State) -> str:
    if not state.quota:
        return "the API asked to wait"
    return f"the API allows {state.quota} {'creation' if state.quota == 1 else 'creations'} in {state.window:g} s"


@lru_cache(maxsize=4096)  # each file that is read has the same hundreds of them
def _is_name(name: object) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def _is_number(value: object, most: float = 1e12) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


def _check(ok: bool) -> None:  # noqa: FBT001 - an assertion that -O leaves in
    if not ok:
        raise ValueError("nothing that this module has written")
