"""Sessions that are created in the background, while a test runs, for those that come next."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .background import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .session import AnchorSession

MAX_AGE = 120.0  # seconds for which a session is kept for whom it was made
LEAST_AGE = 5.0  # seconds; what may be kept for less is not worth it
IDLE_TIMEOUT, MAX_DURATION = 5.0, 20.0  # minutes; Anchor's defaults
LOOK = 0.5  # seconds between looks at whether what is ready may be kept


class Wanted(NamedTuple):
    """A session that a test is expected to ask for."""

    test: str
    config: Mapping[str, Any]


class _Ahead:
    """One creation ahead; changed under its prefetch's lock only."""

    def __init__(self, wanted: Wanted, key: str) -> None:
        self.wanted = wanted
        self.key = key
        self.begun = False
        self.done = False
        self.dropped = False
        self.session: AnchorSession | None = None
        self.good_until = 0.0


class Prefetch:
    """What one process has created ahead.

    :param at_most: how many at a time.
    :param create: creates one, in a thread of its own; ``None`` where it may not now. Where it raises, nothing more
        is created ahead with that configuration: the test will meet the same, and report it.
    :param end: has one ended that nobody took, and does not wait for that.
    :param is_crowded: whether anybody waits for a session.
    """

    def __init__(
        self,
        at_most: int,
        create: Callable[[Wanted], AnchorSession | None],
        end: Callable[[AnchorSession], object],
        is_crowded: Callable[[], bool],
    ) -> None:
        self._at_most = at_most
        self._create = create
        self._end = end
        self._is_crowded = is_crowded
        self._changed = threading.Condition()
        self._ahead: list[_Ahead] = []
        self._creating = 0
        self._refused = {""}  # keys of what nothing is to be made of
        self._closed = False
        self._creations = Pool(at_most, "pytest-anchor-ahead")
        self._keeper = Pool(1, "pytest-anchor-keeper")

    def plan(self, current: Wanted | None, coming: Sequence[Wanted]) -> None:
        """Create what the next tests will ask for, and end what they will not.

        :param current: what the test that begins will ask for; it goes first, so nothing is begun before it has its
            own, unless that is there already.
        :param coming: what the tests after it will ask for, the next first.
        """
        with self._changed:
            if self._closed:
                return
            missing = Counter(key for one in coming[: self._at_most] if (key := _key(one.config)) not in self._refused)
            own = _key(current.config) if current else ""
            served = not own
            for one in list(self._ahead):
                if one.key == own and not served:
                    served = True
                elif missing[one.key]:
                    missing[one.key] -= 1
                else:
                    self._drop(one)
            if not served:
                return
            for wanted in coming[: self._at_most]:
                key = _key(wanted.config)
                if missing[key]:
                    missing[key] -= 1
                    one = _Ahead(wanted, key)
                    self._ahead.append(one)
                    self._creations.submit(partial(self._make, one))

    def take(self, config: Mapping[str, Any]) -> AnchorSession | None:
        """A session with this *config*, if one is ready or under way; it belongs to the caller."""
        with self._changed:
            key = _key(config)
            same = [one for one in self._ahead if one.key == key]
            begun = sorted((one for one in same if one.begun), key=lambda one: not one.done)
            if not begun:
                for one in same[:1]:
                    self._drop(one)  # the caller's own request is as fast
                return None
            one = begun[0]
            self._ahead.remove(one)
            try:
                while not one.done:
                    self._changed.wait(LOOK)
            except BaseException:
                self._drop(one)
                raise
            return one.session

    def drop_ready(self) -> None:
        """End what nobody has taken yet: somebody needs the slots more."""
        with self._changed:
            for one in [one for one in self._ahead if one.done]:
                self._drop(one)

    def close(self, timeout: float) -> None:
        """Begin nothing more, and end what nobody took.

        :param timeout: seconds to wait for what is under way; the rest is on record.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            for one in list(self._ahead):
                self._drop(one)
            while self._creating and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _drop(self, one: _Ahead) -> None:
        if one in self._ahead:
            self._ahead.remove(one)
        one.dropped = True
        self._changed.notify_all()
        if one.session is not None:
            self._end(one.session)

    def _make(self, one: _Ahead) -> None:
        with self._changed:
            if one.dropped:
                return
            one.begun = True
            self._creating += 1
        session = None
        try:
            session = self._create(one.wanted)
        except Exception:
            with self._changed:
                self._refused.add(one.key)
            raise
        finally:
            with self._changed:
                self._creating -= 1
                one.done, one.session = True, session
                one.good_until = time.monotonic() + _age(one.wanted.config)
                if one.dropped:
                    self._drop(one)
                elif session is None and one in self._ahead:
                    self._ahead.remove(one)
                self._changed.notify_all()
        self._keeper.submit(self._keep)

    def _keep(self) -> None:
        """Look after what is ready, until nothing is."""
        while True:
            crowded = self._is_crowded()
            with self._changed:
                ready = [one for one in self._ahead if one.done]
                for one in ready:
                    if crowded or time.monotonic() > one.good_until:
                        self._drop(one)
                if not ready:
                    return
                self._changed.wait(LOOK)


def _key(config: Mapping[str, Any]) -> str:
    """What two configurations have in common if they are equal, ``""`` for one that nothing is made of ahead."""
    with suppress(TypeError, ValueError, RecursionError):
        if _age(config) >= LEAST_AGE:
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
