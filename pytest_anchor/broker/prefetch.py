"""Sessions that are created in the background, while a test runs, for the next tests."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..background import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..configuration import Wanted

Session = TypeVar("Session")

MAX_AGE = 120.0  # seconds for which a session is kept for its test
LEAST_AGE = 5.0  # seconds; a session that may be kept for less is not created ahead
IDLE_TIMEOUT, MAX_DURATION = 5.0, 20.0  # minutes; Anchor's defaults
MISSES = 2  # tests in a row that asked for something else, after which an expectation is no longer believed
POLL_INTERVAL = 0.5  # seconds between checks whether what is ready may be kept
PATIENCE = 20.0  # seconds for which a test waits for a creation under way; more where they take half as long


class _Prefetched(Generic[Session]):
    """One creation ahead; changed under its prefetch's lock only."""

    def __init__(self, wanted: Wanted, key: str) -> None:
        self.wanted = wanted
        self.key = key
        self.begun = 0.0  # in ``time.monotonic()`` seconds
        self.done = False
        self.dropped = False
        self.session: Session | None = None
        self.good_until = 0.0


class Prefetch(Generic[Session]):
    """What is created ahead for one process.

    :param at_most: how many at a time.
    :param create: creates one, in a thread of its own; ``None`` where it may not now. Where it raises, nothing more
        is created ahead with that configuration: the test will meet the same, and report it.
    :param end: starts the end of one that no test took, without waiting for it.
    :param is_crowded: whether a creation waits for a session to end.
    """

    def __init__(
        self,
        at_most: int,
        create: Callable[[Wanted], Session | None],
        end: Callable[[Session], object],
        is_crowded: Callable[[], bool],
    ) -> None:
        self._at_most = at_most
        self._create = create
        self._end = end
        self._is_crowded = is_crowded
        self._changed = threading.Condition()
        self._ahead: list[_Prefetched[Session]] = []
        self._creating = 0
        self._patience = PATIENCE
        self._refused = {""}  # keys of what nothing is to be made of
        self._expected = ""  # key of what the test that runs is to ask for
        self._asked: set[str] = set()  # keys of what it has asked for
        self._misses: Counter[str] = Counter()  # by the key of what was expected
        self._closed = False
        self._creations = DaemonThreadPool(at_most, "pytest-anchor-ahead")
        self._upkeep = DaemonThreadPool(1, "pytest-anchor-upkeep")

    def plan(self, current: Wanted | None, upcoming: Sequence[Wanted]) -> None:
        """Create what the next tests will ask for, and end what they will not.

        :param current: what the test that begins will ask for; it goes first, so nothing is begun before it has its
            own, unless that is there already.
        :param upcoming: what the tests after it will ask for, the next first.
        """
        with self._changed:
            if self._closed:
                return
            own = _key(current.config) if current else ""
            if current is not None:
                self._learn(own)
            missing = Counter(key for entry in upcoming[: self._at_most] if self._is_worth(key := _key(entry.config)))
            there = {entry.key for entry in self._ahead}
            missing[own] += own in there
            for entry in list(self._ahead):
                if missing[entry.key]:
                    missing[entry.key] -= 1
                else:
                    self._drop(entry)
            if current is not None and own not in there:
                return
            new: list[_Prefetched[Session]] = []
            for wanted in reversed(upcoming[: self._at_most]):  # what is there already is for the first
                key = _key(wanted.config)
                if missing[key]:
                    missing[key] -= 1
                    new.insert(0, _Prefetched(wanted, key))
            self._ahead += new
            for entry in new:
                self._creations.submit(partial(self._make, entry, threading.get_ident()))

    def take(self, config: Mapping[str, Any]) -> Session | None:
        """A session with this *config*, if one is ready or under way; it belongs to the caller."""
        key = _key(config)
        with self._changed:
            self._asked.add(key)
            self._drop_old()
            same = sorted(
                (entry for entry in self._ahead if entry.key == key),
                key=lambda entry: (not entry.done, not entry.begun),
            )
            if not same:
                return None
            entry = same[0]
            self._ahead.remove(entry)
            try:
                while not entry.done:
                    left = entry.begun + self._patience - time.monotonic()
                    if left <= 0 or not entry.begun:
                        self._drop(entry)  # the caller's own request is as fast
                        return None
                    self._changed.wait(left)
            except BaseException:
                self._drop(entry)
                raise
            return entry.session

    def drop_ready(self) -> None:
        """End what no test has taken yet: a test that waits needs the slots more."""
        with self._changed:
            for entry in [entry for entry in self._ahead if entry.done]:
                self._drop(entry)

    def close(self, timeout: float) -> None:
        """Begin nothing more, and end what no test took.

        :param timeout: seconds to wait for what is under way; the rest is on record.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for entry in list(self._ahead):
                self._drop(entry)
            while self._creating and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _learn(self, expected: str) -> None:
        """Take in whether the test before has asked for what was expected, and what to expect of the next."""
        if self._expected and self._asked:
            if self._expected in self._asked:
                del self._misses[self._expected]  # a Counter: it need not be there
            else:
                self._misses[self._expected] += 1
        self._expected = expected
        self._asked.clear()

    def _is_worth(self, key: str) -> bool:
        return key not in self._refused and self._misses[key] < MISSES

    def _drop_old(self) -> None:
        for entry in [entry for entry in self._ahead if entry.done and time.monotonic() > entry.good_until]:
            self._drop(entry)

    def _drop(self, entry: _Prefetched[Session]) -> None:
        if entry in self._ahead:
            self._ahead.remove(entry)
        entry.dropped = True
        self._changed.notify_all()
        if entry.session is not None:
            self._end(entry.session)

    def _make(self, entry: _Prefetched[Session], planner: int) -> None:
        with self._changed:
            if threading.get_ident() == planner:  # no thread could be started, and a test must not wait for this
                self._drop(entry)
            if entry.dropped:
                return
            entry.begun = time.monotonic()
            self._creating += 1
        session = None
        try:
            session = self._create(entry.wanted)
            self._patience = max(self._patience, 2 * (time.monotonic() - entry.begun))
        except Exception:
            with self._changed:
                self._refused.add(entry.key)
            raise
        finally:
            with self._changed:
                self._creating -= 1
                entry.done, entry.session = True, session
                entry.good_until = time.monotonic() + _age(entry.wanted.config)
                if entry.dropped:
                    self._drop(entry)
                elif session is None and entry in self._ahead:
                    self._ahead.remove(entry)
                self._changed.notify_all()
        self._upkeep.submit(self._keep_fresh)

    def _keep_fresh(self) -> None:
        """End what is too old or in the way, until nothing is ready."""
        while True:
            if self._is_crowded():
                self.drop_ready()
            with self._changed:
                self._drop_old()
                if not any(entry.done for entry in self._ahead):
                    return
                self._changed.wait(POLL_INTERVAL)


def _key(config: Mapping[str, Any]) -> str:
    """What two configurations have in common if they are equal, ``""`` for one that nothing is made of ahead."""
    with suppress(TypeError, ValueError, OverflowError, RecursionError):
        if _age(config) >= LEAST_AGE and not _has_profile(config):
            return json.dumps(config, sort_keys=True, allow_nan=False)
    return ""


def _age(config: Mapping[str, Any]) -> float:
    """Seconds for which a session may wait for its test without being worth less to it."""
    session = config.get("session")
    timeout = session.get("timeout") if isinstance(session, dict) else None
    ages = [MAX_AGE]
    for name, default, part in (("idle_timeout", IDLE_TIMEOUT, 2), ("max_duration", MAX_DURATION, 10)):
        minutes = timeout.get(name, default) if isinstance(timeout, dict) else default
        if not isinstance(minutes, (int, float)):
            return 0.0
        ages += [minutes * 60 / part] if minutes >= 0 else []  # -1 is no limit
    return min(ages)


def _has_profile(config: Mapping[str, Any]) -> bool:
    """Whether a session begins with what one before it saves at its end."""
    browser = config.get("browser")
    return isinstance(browser, dict) and bool(browser.get("profile"))
