"""Where a launched browser gets its session from: the factory of its own scope, or what its worker keeps."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from ..configuration import max_duration
from ..errors import AnchorError
from ..forwarding import forward
from .credentials import forward_credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pytest

    from ..plugin.state import Plugin
    from ..session import AnchorSession, AnchorSessionFactory

USABLE = 0.75  # of the time after which Anchor ends a session; a test that begins then has a quarter of it


class Holder(NamedTuple):
    """What a browser is launched in: a fixture, or a test."""

    fixture: Any  # a FixtureDef, which has no public finish() but the one that all know
    request: pytest.FixtureRequest

    @property
    def outlives_tests(self) -> bool:
        """Whether several tests may share what it holds."""
        scope: str = self.fixture.scope
        return scope != "function"

    @property
    def is_tests_browser(self) -> bool:
        """Whether it is the fixture of a test's own browser."""
        name: str = self.fixture.argname
        return name == "browser" and not self.outlives_tests


class Lease:
    """A session that a browser is connected to.

    :param key: what the sessions that may take its place have in common.
    :param begun: when the session was created, in ``monotonic()`` seconds.
    """

    def __init__(self, session: AnchorSession, key: str, begun: float, *, is_used: bool) -> None:
        self.session = session
        self.key = key
        self.begun = begun
        self.is_used = is_used

    @property
    def is_due(self) -> bool:
        """Whether the session is so old that Anchor might end it in the midst of the next test."""
        return monotonic() - self.begun > USABLE * max_duration(self.session.configuration)


class Sessions:
    """Gives sessions to browsers, and takes them back.

    :param is_shared: whether a session is kept for the worker's next browser.
    """

    def __init__(self, plugin: Plugin, *, is_shared: bool) -> None:
        self._plugin = plugin
        self._is_shared = is_shared
        self._lock = Lock()
        self._idle: dict[str, list[Lease]] = {}
        self._of_the_run: AnchorSessionFactory | None = None
        self.is_over = True  # whether no fixture can be asked for: nothing is set up yet, or it is being torn down

    @property
    def is_interrupted(self) -> bool:
        """Whether the run ends by Ctrl-C or SIGTERM."""
        return self._plugin.is_interrupted

    def source(self, holder: Holder | None) -> AnchorSessionFactory:
        """The factory that ends its sessions when *holder* is torn down, or with the worker where that keeps them."""
        if holder is None or self.is_over:
            if self._of_the_run is None:
                assert self._plugin.session is not None
                self._of_the_run = self._plugin.factory(self._plugin.session, {})
            return self._of_the_run
        scope = "session" if self._is_shared else holder.fixture.scope
        factory: AnchorSessionFactory = holder.request.getfixturevalue(
            "anchor_session" if scope == "function" else f"{scope}_anchor_session"
        )
        return factory

    def take(self, create: Callable[..., AnchorSession], keywords: Mapping[str, Any]) -> Lease:
        """A session for a browser; blocks until there is one."""
        __tracebackhide__ = True
        key = json.dumps(keywords, sort_keys=True, default=repr)
        while self._is_shared:
            with self._lock:
                idle = self._idle.get(key)
                lease = idle.pop() if idle else None
            if lease is None:
                break
            if not lease.is_due:
                lease.is_used = True
                lease.session.take()
                return lease
            self.end(lease)
        begun = monotonic()
        session = create(**keywords)
        if problem := forward(self._plugin.client, session):  # before Playwright connects, or it would be too late
            self._plugin.remark(problem)
        return Lease(session, key, begun, is_used=False)

    def prepare(self, browser: Any, lease: Lease) -> None:
        """Complete what a connected browser takes from the test machine."""
        forward_credentials(browser, self._plugin.client, lease.session)

    def give_back(self, lease: Lease, *, is_usable: bool) -> None:
        """Keep a session whose browser was closed for the next one, or end it."""
        if self._is_shared and is_usable and not lease.is_due:
            with self._lock:
                self._idle.setdefault(lease.key, []).append(lease)
        else:
            self.end(lease)

    def end(self, lease: Lease) -> None:
        """End a session; what cannot be ended now is tried again at teardown, and by the final sweep."""
        with suppress(AnchorError):
            if self._plugin.client.settings.end_in_background:
                lease.session.end_later()
            else:
                lease.session.end()


def discard(sessions: Sessions) -> Callable[[Lease], None]:
    """A function that disposes of a session which its cancelled task does not take."""
    return partial(sessions.give_back, is_usable=True)
