"""The limits' state on a server, for runs on several machines; a file stands in for it where it cannot be used."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from . import leases, rules
from .redis_server import HEADER, ServerError
from .state import MAX_LABEL, State, dump, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .file_store import FileStore
    from .leases import Member
    from .redis_server import RedisServer
    from .state import QueueEntry, Slot
    from .store import Result

PATIENCE = 5.0  # seconds for which a change waits for the server
ATTEMPTS = 100  # at one change, where other runs are always faster
RETRY_INTERVAL = 2.0  # seconds between attempts to join again, at most
FRESH = 0.25  # seconds for which what was read is as good as new, for those who only look
MAX_TEST = 200  # characters of a test's name
TICK = 1e-6  # seconds between two changes that are made at once

_HIDDEN = "h."  # how the names of slots begin that another run, or an earlier broker of this one, has taken


def boot_time() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def account_key(account: str) -> str:
    """The name of an account's limits on a server."""
    return f"pytest-anchor:{account}:limits"


def hide(nonce: str) -> str:
    """The name of a slot on the server, which tells nothing of the nonce."""
    return nonce if nonce.startswith(_HIDDEN) else f"{_HIDDEN}{sha256(nonce.encode()).hexdigest()[:32]}"


def signed(state: State, sign: Callable[..., str]) -> bytes:
    """The value for the server: only who has the account's key can make it."""
    text = dump(state)
    return sign("limits", text.decode()).encode() + text


def verified(value: bytes, sign: Callable[..., str]) -> State:
    """The state that :func:`signed` put into *value*; an empty one for anything else."""
    signature, text = value[:HEADER], value[HEADER:]
    try:
        expected = sign("limits", text.decode()).encode()
    except UnicodeDecodeError:
        return State()
    return parse(text) if compare_digest(signature, expected) else State()


@dataclass(eq=False)
class _Change:
    """A change that a thread waits for."""

    rule: Callable[[State, float], tuple[State, Any]]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    is_made: bool = False
    is_given_up: bool = False


@dataclass
class Outage:
    """How long the server could not be used.

    :param why: what it answered, or did not, the last time.
    :param seconds: of all spells that are over.
    :param began: when the present one did, by :func:`boot_time`; ``None`` if there is none.
    """

    why: str = ""
    count: int = 0
    seconds: float = 0.0
    began: float | None = None

    @property
    def total(self) -> float:
        """Seconds of all spells, the present one included."""
        return self.seconds + (0.0 if self.began is None else boot_time() - self.began)


class SharedStore:
    """A :class:`~.store.Store` on a server, for all processes of a run. Safe to use from several threads.

    One thread speaks with the server, and makes all changes that have been asked for meanwhile at once: so a slow
    server delays a caller for a known time only, and a broker with many workers is one of few that compete.

    :param local: the store that stands in for the server.
    :param sign: makes a signature that takes the account's key: :meth:`AnchorAPI.sign`.
    :param nonces: of creations of this run that an earlier broker has begun.
    """

    def __init__(
        self,
        server: RedisServer,
        local: FileStore,
        member: Member,
        sign: Callable[..., str],
        nonces: Iterable[str] = (),
    ) -> None:
        self.member = member._replace(machine=member.machine[:MAX_LABEL], shard=member.shard[:MAX_LABEL])
        self.outage = Outage()
        self.taken_by = ""  # the run that has taken this one over while its lease was lost
        self.joins = 0
        self._server = server
        self._local = local
        self._sign = sign
        self._names = {hide(nonce): nonce for nonce in nonces}
        self._condition = threading.Condition()
        self._changes: deque[_Change] = deque()
        self._is_joined: bool | None = None  # ``None`` until the first attempt is over
        self._is_closed = False
        self._versions = 0  # of what is known locally
        self._writes = 0  # see Lease
        self._known = State()  # as of the last change on the server
        self._offset = 0.0  # seconds that the server's clock is ahead
        self._renewed = boot_time()  # when the last question was sent to which the server has answered
        self._thread = threading.Thread(target=self._work, name="shared-limits", daemon=True)
        self._thread.start()

    # For those that ask.

    def update(self, rule: Callable[[State, float], tuple[State, Result]]) -> Result:
        """Replace the state by what *rule* makes of it, in the local store where the server cannot be used."""
        change = _Change(rule)
        with self._condition:
            asks_server = self._is_joined is not False and not self._is_closed
            if asks_server:
                self._changes.append(change)
                self._condition.notify_all()
        if asks_server:
            change.done.wait(PATIENCE)
        with self._condition:
            if change.is_made:
                result: Result = change.result
                return result
            change.is_given_up = True
            if asks_server and self._is_joined is not False:
                self._go_local("no answer in time")
            self._versions += 1
            return self._local.update(rule)

    def read(self) -> tuple[State, float]:
        """The state as it was a moment ago, and the time by the server's clock."""
        with self._condition:
            if self._is_joined and boot_time() - self._renewed < FRESH:
                return self._known, time.time() + self._offset
        return self.update(lambda state, now: (state, (state, now)))

    @property
    def is_current(self) -> bool:
        """Whether what was decided last still holds: this run still has its lease, or does without."""
        lasts = self.member.lasts * (1 - leases.RENEW_SHARE)  # a lease is that much older than an answer, at most
        with self._condition:
            return not self._is_joined or boot_time() - self._renewed < lasts

    @property
    def known(self) -> State:
        """The state as of the last change on the server."""
        return self._known

    @property
    def silence(self) -> float:
        """Seconds since the server has answered, where the run has joined before; else 0."""
        return boot_time() - self._renewed if self.joins else 0.0

    @property
    def is_joined(self) -> bool:
        """Whether the state is the server's at the moment."""
        return bool(self._is_joined)

    def close(self) -> None:
        """Give up all that the run has on the server."""
        with self._condition:
            if self._is_joined:
                self._changes.append(_Change(lambda state, now: leases.leave(state, now, self.member.run)))
            self._is_closed = True
            self._condition.notify_all()
        self._thread.join(PATIENCE)

    # The thread that speaks with the server.

    def _work(self) -> None:
        is_closed = False
        while not is_closed:
            with self._condition:
                renew = self.member.lasts * leases.RENEW_SHARE
                pause = min(RETRY_INTERVAL, renew) if self._is_joined is False else renew
                if self._is_joined is not None:
                    self._condition.wait_for(lambda: self._changes or self._is_closed, pause)
                is_closed, batch = self._is_closed, list(self._changes)
                self._changes.clear()
            try:
                if not (self._is_joined or is_closed):
                    self._join()
                if self._is_joined:
                    self._change(batch)
            except ServerError as error:
                self._note_failure(str(error))
            except Exception as error:  # noqa: BLE001 - no caller may wait for a thread that is gone
                self._note_failure(f"an unexpected error, please report it: {error!r}")
            finally:
                for change in batch:
                    change.done.set()

    def _join(self) -> None:
        """Bring to the server what is known locally.

        :raises ServerError: it cannot be used.
        """
        for _ in range(ATTEMPTS):
            with self._condition:
                version, known = self._versions, self._local.known
            known = rules.keep_own(known, self._is_own)
            state, now, sent = self._transact([], known, joins=True)
            with self._condition:
                if version == self._versions:
                    self._take(state, now, sent)
                    self._is_joined = True
                    if self.outage.began is not None:
                        self.outage.seconds, self.outage.began = self.outage.total, None
                    return
        raise ServerError("this run changes faster than the server takes it in")

    def _change(self, batch: list[_Change]) -> None:
        """Make changes on the server.

        :raises ServerError: it cannot be used.
        """
        batch = [change for change in batch if not change.is_given_up]
        state, now, sent = self._transact(batch, self._known)
        with self._condition:
            if self._is_joined:  # no caller has given up meanwhile
                self._take(state, now, sent)
                for change in batch:
                    change.is_made = True

    def _take(self, state: State, now: float, sent: float) -> None:
        self._known, self._renewed = state, sent
        self._offset = now - time.time()

    def _transact(self, batch: list[_Change], known: State, *, joins: bool = False) -> tuple[State, float, float]:
        """Make one change of all in *batch*.

        :param known: what the server is told where it has lost this run.
        :param joins: whether it is told in any case, and *known* has times of this machine's clock.
        :returns: the state that it has now, its time, and when it was asked for that, by :func:`boot_time`.
        """
        for attempt in range(ATTEMPTS):
            sent = boot_time()
            value, now = self._server.read()
            stored = self._reveal(verified(value, self._sign))
            has_lost = self._has_lost(stored)
            state = leases.restore(stored, now, self._known) if has_lost else stored
            state, presence = leases.renew(state, now, self.member, self.joins)
            if joins or presence.has_joined or has_lost:
                state = self._merge(state, rules.shift(known, now - time.time()) if joins else known)
            for number, change in enumerate(batch):
                state, change.result = change.rule(state, now + number * TICK)
            if state != stored:
                state = self._stamp(state, now)
                if not self._replace(value, state):
                    time.sleep(random.random() * 0.002 * min(attempt, 25))  # noqa: S311 - no secret
                    continue
            self.joins = presence.joins
            self.taken_by = presence.taken_by or self.taken_by
            if lease := state.leases.get(self.member.run):
                self._writes = lease.writes
            return state, now, sent
        raise ServerError("other runs are always faster")

    def _has_lost(self, state: State) -> bool:
        """Whether the server's state lacks what this run has written last: it began anew, or is an earlier one."""
        mine = state.leases.get(self.member.run)
        if mine is None:
            return bool(self.joins) and self.member.run not in state.vanished
        return bool(self.joins) and mine.writes != self._writes

    def _merge(self, state: State, known: State) -> State:
        """Bring in what is known of the run's sessions; those that wait come back to their places by themselves."""
        if not self.joins:  # an earlier broker of the run may have left sessions that live
            known = known._replace(slots={**rules.keep_own(state, self._is_own).slots, **known.slots})
        state = rules.merge(state, known, self._is_own)
        return state._replace(
            slots={name: slot for name, slot in state.slots.items() if not self._is_forgotten(name, slot)},
            queue=tuple(entry for entry in state.queue if entry.run != self.member.run),
        )

    def _is_forgotten(self, name: str, slot: Slot) -> bool:
        """Whether a slot is one of this run's that it does not know of any more."""
        return slot.run == self.member.run and name.startswith(_HIDDEN)

    def _stamp(self, state: State, now: float) -> State:
        run = self.member.run
        mine = {run: lease._replace(writes=lease.writes + 1)} if (lease := state.leases.get(run)) else {}
        return state._replace(touched=now, leases={**state.leases, **mine})

    def _replace(self, before: bytes, state: State) -> bool:
        for nonce in state.slots:
            if not nonce.startswith(_HIDDEN):
                self._names[hide(nonce)] = nonce
        hidden = state._replace(
            slots={hide(nonce): slot for nonce, slot in state.slots.items()},
            queue=tuple(entry._replace(test=entry.test[:MAX_TEST]) for entry in state.queue),
        )
        return self._server.replace(before, signed(hidden, self._sign))

    def _reveal(self, state: State) -> State:
        return state._replace(slots={self._names.get(name, name): slot for name, slot in state.slots.items()})

    def _is_own(self, nonce: str, holder: Slot | QueueEntry) -> bool:
        return holder.run == self.member.run and not nonce.startswith(_HIDDEN)

    # Where the server cannot be used.

    def _note_failure(self, why: str) -> None:
        with self._condition:
            self._go_local(why)

    def _go_local(self, why: str) -> None:
        self.outage.why = why
        if self.outage.began is None:
            self.outage.began = boot_time()
            self.outage.count += 1
        if self._is_joined:
            own = rules.keep_own(self._known, self._is_own)
            self._local.adopt(rules.shift(own, -self._offset))
            self._versions += 1
        self._is_joined = False
