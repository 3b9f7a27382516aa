"""Leaks in the reports that machines read: JUnit XML, JSON, Allure. The terminal has its own section."""

from __future__ import annotations

from contextlib import suppress
from time import time  # as it was before any test
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# What counts, repeats or shows tests, and would take a leak for one.
_NOT_REPORTS = ("terminalreporter", "session", "lfplugin", "nfplugin", "stepwiseplugin", "dsession")


def report_leaks(config: pytest.Config, leaks: list[dict[str, Any]]) -> None:
    """Add a failing entry for each session that was not confirmed to be over.

    Its name is the test's, with the session's id behind it; to pytest it is a test that failed in its call.
    """
    for leak in leaks:
        title = f"leaked session {leak['id']}" if leak["id"] else "unresolved creation of a session"
        text = f"{title} of {leak['test']} [{leak['owner']}]: {leak['why']}"
        if leak["command"]:
            text += f"\nend it by hand: {leak['command']}"
        report = pytest.TestReport(
            nodeid=f"{leak['test']}::{title}",
            location=(leak["test"].partition("::")[0], None, title),
            keywords={},
            outcome="failed",
            longrepr=text,
            when="call",
            start=time(),
            stop=time(),
        )
        for send in _receivers(config):
            with suppress(Exception):  # a plugin may know only tests that it has seen begin
                send(report=report)
        _report_to_allure(config, leak["test"], title, text)


def _receivers(config: pytest.Config) -> Iterator[Any]:
    manager = config.pluginmanager
    plugins = manager.get_plugins()
    left_out = {id(manager.get_plugin(name)) for name in _NOT_REPORTS}
    for plugin in plugins:
        if hasattr(plugin, "pytest_runtest_logreport") and id(plugin) not in left_out:
            yield manager.subset_hook_caller(
                "pytest_runtest_logreport", [other for other in plugins if other is not plugin]
            )


def _report_to_allure(config: pytest.Config, test: str, title: str, text: str) -> None:
    """Allure writes a result for each test that it has seen; one more is added by its own interface."""
    if not getattr(config.option, "allure_report_dir", None):
        return
    with suppress(ImportError, AttributeError):
        from allure_commons import plugin_manager
        from allure_commons.model2 import Status, StatusDetails, TestResult

        now = int(time() * 1000)
        result = TestResult(
            uuid=str(uuid4()),
            name=title,
            fullName=f"{test}::{title}",
            status=Status.FAILED,
            statusDetails=StatusDetails(message=text),
            start=now,
            stop=now,
        )
        plugin_manager.hook.report_result(result=result)
