"""Which sessions each test has, and what becomes of the test: the broker keeps that on record."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import AnchorError
from .evidence import Evidence

if TYPE_CHECKING:
    from ..session import AnchorSession, AnchorSessionFactory
    from .state import Plugin

TELL_TIMEOUT = 5.0  # seconds


class Outcomes:
    """A plugin of its own, which a process gets with the first factory.

    :ivar _reports: of the phases of the test that runs; a failed one stays.
    """

    NAME = "pytest_anchor_outcomes"

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin
        self._factories: list[tuple[AnchorSessionFactory, pytest.Item | pytest.Collector, str]] = []
        self._reports: dict[str, pytest.TestReport] = {}
        self._item: pytest.Item | None = None
        self._rerun = 0
        self._evidence = Evidence(plugin, self)
        plugin.config.pluginmanager.register(self._evidence, Evidence.NAME)

    def add(self, factory: AnchorSessionFactory, node: pytest.Item | pytest.Collector, fixture: str) -> None:
        """Take in a factory.

        :param node: what it is torn down with.
        :param fixture: the name by which tests request it, ``""`` if none does.
        """
        self._factories.append((factory, node, fixture))

    def factories(self, item: pytest.Item) -> list[tuple[AnchorSessionFactory, bool]]:
        """Those from which *item* may have sessions, each with whether it has requested the factory itself."""
        chain, names = item.listchain(), getattr(item, "fixturenames", ())
        return [
            (factory, node is item or fixture in names)
            for factory, node, fixture in list(self._factories)
            if node in chain
        ]

    def sessions(self, item: pytest.Item) -> list[AnchorSession]:
        """Those that *item* has, or has had since it began."""
        return [one for factory, requested in self.factories(item) for one in factory.of_test(requested=requested)]

    def outliving(self, item: pytest.Item) -> set[str]:
        """The nonces of the sessions of *item* that are not ended with it: of factories that others share."""
        shared = [factory for factory, node, _ in list(self._factories) if node is not item]
        return {session.nonce for factory in shared for session in factory.of_test(requested=True)}

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # the outermost: others decide whether a failure was expected
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Take in what became of a phase of a test, and with the last of what became of the test."""
        report: pytest.TestReport = yield
        if self._item is not item:
            self._item, self._rerun, self._reports = item, 0, {}
        if report.when not in self._reports or not self._reports[report.when].failed:
            self._reports[report.when or ""] = report
        if report.failed:
            self._evidence.collect(item, report)
        if call.when == "teardown":
            self._test_is_over(item)
            self._evidence.test_is_over(item)
        return report

    def _test_is_over(self, item: pytest.Item) -> None:
        plugin = self._plugin
        if plugin.is_child:
            return
        seconds = plugin.seconds_of_test()
        if (sessions := self.sessions(item)) and not plugin.client.is_stuck:
            with suppress(AnchorError):  # the next request meets the same
                plugin.client.request(
                    "tested",
                    timeout=TELL_TIMEOUT,
                    slack=0.0,
                    again=True,
                    nonces=[session.nonce for session in sessions],
                    test=plugin.client.name_of(item.nodeid),
                    seconds=seconds,
                    outcome=outcome(self._reports),
                    rerun=self._rerun,
                )
        for factory, _ in self.factories(item):
            factory.test_is_over()
        self._factories = [one for one in self._factories if not one[0].is_closed]
        self._rerun += 1
        self._reports = {}


def outcome(reports: dict[str, pytest.TestReport]) -> str:
    """What pytest counts a test as, by the reports of its phases."""
    if "call" in reports and reports["call"].failed:
        return "failed"
    if any(report.failed for report in reports.values()):
        return "error"
    for report in reports.values():
        if report.skipped:
            return "xfailed" if hasattr(report, "wasxfail") else "skipped"
    return "xpassed" if any(hasattr(report, "wasxfail") for report in reports.values()) else "passed"
