"""What the plugin keeps in one process of a run."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import AnchorConfigError, AnchorError, redact
from ..launcher import elapsed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..client import Client
    from ..configuration import Wanted
    from ..session import AnchorSessionFactory
    from .outcomes import Outcomes
    from .signals import Termination
    from .upcoming import UpcomingTests
    from .wait_status import WaitStatusReporter

TEARDOWN_TIMEOUT = 4.5  # seconds; xdist cuts an interrupted worker's teardown off after about 5
PLAN_TIMEOUT = 10.0  # seconds
LEAST_SECRET = 8  # characters: what is shorter is a part of too many words

PLUGIN = pytest.StashKey["Plugin"]()


class Plugin:
    """What one process of a run keeps between hooks.

    :ivar session: pytest's own, once it has begun.
    :ivar item: the test that runs.
    :ivar runs_tests: whether this process does; an xdist controller does not.
    :ivar has_met_fixtures: whether a test was collected that uses a fixture of ours.
    :ivar has_remote_workers: whether workers with a registry of their own may have left sessions.
    :ivar remarks: sentences on what this run asked for in vain, for its end, in the order in which they came up.
    :ivar report: what the broker reports at the end of the run, until it is shown.
    """

    def __init__(self, client: Client, config: pytest.Config, *, is_worker: bool) -> None:
        self.client = client
        self.config = config
        self.is_worker = is_worker
        self._pid = client.pid
        self.session: pytest.Session | None = None
        self.item: pytest.Item | None = None
        self._test_began = 0.0
        self.photographers: list[Callable[[], dict[str, list[bytes]]]] = []  # take screenshots of pages, by nonces
        self.runs_tests = True
        self.has_met_fixtures = False
        self.has_remote_workers = False
        self.remarks: dict[str, None] = {}
        self.report: dict[str, Any] | None = None
        self._has_joined = False
        self._keeps_broker = False
        self._restore_logs: Callable[[], None] | None = None

    @property
    def is_interrupted(self) -> bool:
        """Whether the run ends by Ctrl-C or SIGTERM."""
        return self.session is not None and self.session.exitstatus == pytest.ExitCode.INTERRUPTED

    @property
    def is_child(self) -> bool:
        """Whether this process was forked by a test, and has gone on."""
        return self.client.pid != self._pid

    @cached_property
    def termination(self) -> Termination:
        """What makes of SIGTERM an end like that by Ctrl-C."""
        from .signals import Termination

        return Termination(lambda: self.client.is_active)

    @cached_property
    def wait_status(self) -> WaitStatusReporter:
        """Reports on the terminal what tests wait for."""
        from .wait_status import WaitStatusReporter

        return WaitStatusReporter(self.config)

    @cached_property
    def outcomes(self) -> Outcomes:
        """What becomes of the tests that have sessions."""
        from .outcomes import Outcomes

        outcomes = Outcomes(self)
        self.config.pluginmanager.register(outcomes, Outcomes.NAME)
        return outcomes

    def begins(self, item: pytest.Item) -> None:
        """Take in that a test begins."""
        self.item = item
        self._test_began = elapsed()

    def seconds_of_test(self) -> float:
        """How long the running test has taken; another run of it begins now."""
        began, self._test_began = self._test_began, elapsed()
        return max(self._test_began - began, 0.0)

    @cached_property
    def upcoming(self) -> UpcomingTests | None:
        """The tests that come next, where anything is created ahead for them."""
        if not self.client.settings.prefetch:
            return None
        from .upcoming import UpcomingTests

        return UpcomingTests(self.client.settings.prefetch)

    @property
    def secret(self) -> str | None:
        """The API key if this process has had a use for it."""
        return self.client.key if self.client.used else None

    @property
    def secrets(self) -> list[str]:
        """What no report of the running test may show: the key, and without links what leads to its sessions."""
        if (key := self.secret) is None:
            return []
        if self.item is None or self.client.settings.links or "outcomes" not in vars(self):
            return [key]
        sessions = self.outcomes.sessions(self.item)
        names = [str(name) for one in sessions for name in (one.live_view_url, one.id)]
        return [key, *(name for name in names if len(name) >= LEAST_SECRET)]

    def keep_key_out_of_logs(self) -> None:
        """Begin to; once a test has a key to write into one."""
        if self._restore_logs is None:
            from .redaction import clean_logs

            self._restore_logs = clean_logs(lambda: self.secret)

    def remark(self, text: str) -> None:
        """Have *text* said at the end of the run, once."""
        key = self.client.key
        self.remarks[redact(text, key) if key else text] = None

    def factory(
        self, node: pytest.Item | pytest.Collector, config: Mapping[str, Any], *, fixture: str = ""
    ) -> AnchorSessionFactory:
        """What a fixture of *node* gives to a test, or to several.

        :param fixture: its name, ``""`` if tests cannot request it.
        """
        from ..session import AnchorSessionFactory
        from .upcoming import source_of_defaults

        source = source_of_defaults(self.item)

        def check_defaults() -> None:
            self.termination.catch()
            self.keep_key_out_of_logs()
            if None not in (source, mine := source_of_defaults(self.item)) and mine is not source:
                raise AnchorConfigError(
                    f"{self.item and self.item.nodeid} has an anchor_session_defaults of its own, and shares a factory "
                    "with tests that have another: use anchor_session there, or a factory of a narrower scope."
                )

        factory = AnchorSessionFactory(
            self.client,
            config,
            # A test's own factory may be called by a thread of it that is still there when the next test runs.
            lambda: node.nodeid if isinstance(node, pytest.Item) else self.item.nodeid if self.item else "?",
            before_create=check_defaults,
            after_create=self._after_create,
            on_wait=self.wait_status,
        )
        self.outcomes.add(factory, node, fixture)
        return factory

    def _after_create(self) -> None:
        settings = self.client.settings
        if settings.shared_limits and not self._keeps_broker and (not self.is_worker or settings.own_registry):
            from .wait_status import keep_broker

            self._keeps_broker = True
            keep_broker(self.client)
        self.plan()

    def plan(self, current: Wanted | None = None) -> None:
        """Have created ahead what the next tests will ask for, unless the test that runs still needs *current*."""
        if self.upcoming is not None and self.item is not None and self.client.used:
            current = current and self._named(current)
            upcoming = [self._named(wanted) for wanted in self.upcoming.after(self.item)]
            with suppress(AnchorError):  # a test that asks for a session meets the same
                self.client.request("plan", timeout=PLAN_TIMEOUT, again=True, current=current, upcoming=upcoming)

    def _named(self, wanted: Wanted) -> Wanted:
        return wanted._replace(test=self.client.name_of(wanted.test))

    def join(self) -> None:
        """As an xdist controller, take a part in the run as soon as a worker has begun it."""
        if not self._has_joined and self.client.is_active:
            self._has_joined = True
            self.termination.catch()
            with suppress(AnchorError):  # a test may remove the socket's folder
                for _ in ("wait status", "last sweep"):
                    self.client.start()
            self.wait_status.watch(self.client)

    def set_status_of(self, error: BaseException) -> None:
        """Give an exception of another plugin that ends pytest a status other than 0, where a session is left."""
        if self.report is None or not self.report["failed"] or self.client.settings.on_leak != "fail":
            return
        if isinstance(error, pytest.exit.Exception):
            error.returncode = error.returncode or pytest.ExitCode.TESTS_FAILED
        elif isinstance(error, SystemExit):
            error.code = error.code or pytest.ExitCode.TESTS_FAILED

    def close(self) -> None:
        """Leave the run."""
        if "termination" in vars(self):
            self.termination.undo()
        if self._restore_logs is not None:
            self._restore_logs()
        self.client.leave()
