"""The hooks: what pytest calls. A suite that asks for no session loads little more than this.

PYTEST_DONT_REWRITE: every run with this plugin imports this, and it has no assertion.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from .. import find_first
from ..client import Client
from ..errors import AnchorConfigError, AnchorError
from ..settings import KEYWORDS, Settings
from .fixtures import (  # noqa: F401 - pytest finds them here
    FIXTURES,
    _anchor_playwright,
    anchor_browser,
    anchor_context,
    anchor_page,
    anchor_session,
    anchor_session_defaults,
    async_anchor_browser,
    async_anchor_context,
    async_anchor_page,
    async_anchor_session,
    async_class_anchor_session,
    async_module_anchor_session,
    async_package_anchor_session,
    async_session_anchor_session,
    class_anchor_session,
    module_anchor_session,
    package_anchor_session,
    session_anchor_session,
)
from .options import add_options, playwright_mode, read_settings
from .state import PLUGIN, Plugin

if TYPE_CHECKING:
    import warnings


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


@pytest.hookimpl(tryfirst=True)  # the suite's own fixtures are to win, and those of other plugins are not
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    early_config.add_cleanup(find_first())
    mode = playwright_mode(early_config)
    if mode != "off" and not early_config.pluginmanager.is_blocked("pytest_anchor"):
        from ..playwright.registration import register_fixtures

        register_fixtures(early_config.pluginmanager, per_test=mode == "test")


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.is_blocked("pytest_anchor"):  # -p no:pytest_anchor came after -p pytest_anchor
        config.pluginmanager.unregister(sys.modules[__name__])
        return
    config.addinivalue_line(
        "markers",
        f"anchor({', '.join(f'{name}=…' for name in KEYWORDS)}): configuration of the Anchor sessions that a test, "
        "class or module creates; merged over anchor_session_defaults, under the call's own keywords.",
    )
    values = getattr(config, "workerinput", {}).get("pytest_anchor")
    try:
        settings = Settings.of_worker(values, config.rootpath) if values else read_settings(config)
    except AnchorConfigError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[PLUGIN] = plugin = Plugin(Client(settings), config, is_worker=bool(values))
    config.pluginmanager.register(_Redaction(plugin), "pytest_anchor_redaction")
    if settings.playwright != "off":
        from ..playwright.registration import register_late
        from ..playwright.switch import Switch

        register_late(config.pluginmanager, per_test=settings.playwright == "test")
        config.pluginmanager.register(Switch(plugin), "pytest_anchor_switch")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Have ended what earlier runs left on record, in the background."""
    plugin = session.config.stash[PLUGIN]
    plugin.session = session
    settings = plugin.client.settings
    if plugin.is_worker and not settings.own_registry:
        return
    with suppress(OSError, AnchorError):  # a test that creates a session gets an error that the registry cannot be used
        if os.path.isdir(settings.folder.parent):
            from ..registry.locks import is_live, is_run

            folders = settings.folder.parent.iterdir()
            if any(is_run(folder) and not is_live(folder) for folder in folders):
                plugin.client.request("recover", timeout=0.0)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Start the broker while other tests are collected, which may take as long as its start."""
    plugin = item.config.stash[PLUGIN]
    if not plugin.has_met_fixtures and _uses_fixtures(item):
        plugin.has_met_fixtures = True
        option = item.config.option
        if not (option.collectonly or option.keyword or option.markexpr):  # it may be deselected
            _start_broker(plugin)


@pytest.hookimpl(tryfirst=True)  # a worker's controller learns of it afterwards, and finds the broker
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the broker while nothing waits for it, and no test has changed anything yet."""
    plugin = session.config.stash[PLUGIN]
    if session.config.option.collectonly or not plugin.runs_tests:
        return
    if any(map(_uses_fixtures, session.items)):
        # All that a test will need is imported now: under a test's patch, nothing may be importable any more.
        from .. import session as _session  # noqa: F401
        from . import finish, outcomes, redaction, signals, upcoming, wait_status  # noqa: F401

        if not sys.modules.keys().isdisjoint({"asyncio", "trio"}):  # without these, no test can be asynchronous
            from .. import async_session  # noqa: F401

        if not plugin.client.is_connected:
            _start_broker(plugin)


def _uses_fixtures(item: pytest.Item) -> bool:
    return not FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def _start_broker(plugin: Plugin) -> None:
    with suppress(AnchorError):  # the first test that asks for a session meets the same
        plugin.client.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    plugin = item.config.stash[PLUGIN]
    plugin.begins(item)
    if plugin.upcoming is not None:
        plugin.upcoming.begins(item, nextitem)
        plugin.plan(plugin.upcoming.wanted_by(item))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Any:
    plugin = session.config.stash[PLUGIN]
    if plugin.is_worker and plugin.remarks:
        session.config.workeroutput["pytest_anchor_remarks"] = list(plugin.remarks)  # type: ignore[attr-defined]
    if plugin.is_worker and not plugin.client.used:
        session.config.workeroutput["pytest_anchor"] = []  # type: ignore[attr-defined]
        return (yield)
    if plugin.is_child or not (plugin.client.is_active or plugin.has_remote_workers):
        return (yield)
    from .finish import finish_run, finish_worker

    finish = finish_worker if plugin.is_worker else finish_run
    failure = finish(session, exitstatus, plugin)
    try:
        result = yield
    except BaseException as error:
        plugin.set_status_of(error)
        raise
    if failure is not None:
        raise failure
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    plugin = config.stash[PLUGIN]
    lines = [*(plugin.report["lines"] if plugin.report else ()), *((text, {"yellow": True}) for text in plugin.remarks)]
    if lines:
        terminalreporter.ensure_newline()
        terminalreporter.section("anchor")
        for text, markup in lines:
            terminalreporter.write_line(text, **markup)
        plugin.report = None


def pytest_unconfigure(config: pytest.Config) -> None:
    plugin = config.stash.get(PLUGIN, None)
    if plugin is None or plugin.is_child:
        return
    plugin.close()
    if plugin.report is not None and not plugin.report["settled"]:
        # No summary was shown: --no-summary, an internal error, or no terminal plugin.
        print("anchor:", *(text for text, _ in plugin.report["lines"]), sep="\n", file=sys.stderr)  # noqa: T201


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the controller's decisions to an xdist worker."""
    from .xdist import settings_for

    plugin = node.config.stash[PLUGIN]
    plugin.runs_tests = False
    node.workerinput["pytest_anchor"] = settings_for(node, plugin)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    node.config.stash[PLUGIN].join()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:  # noqa: ARG001 - the hook's
    from .xdist import take_records, take_remarks

    plugin = node.config.stash[PLUGIN]
    take_remarks(node, plugin)
    take_records(node, plugin)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take in that an xdist worker may have asked for the run's first session."""
    if node := getattr(report, "node", None):
        node.config.stash[PLUGIN].join()


class _Redaction:
    """Keeps secrets out of what other plugins see: a plugin of its own, since some hooks do not get the config."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    @pytest.hookimpl(wrapper=True, trylast=True)  # the innermost: other plugins' wrappers see what it returns
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        if not (secrets := self._plugin.secrets):
            return (yield)
        from .redaction import clean_exception, clean_report, clean_sections

        for secret in secrets:
            clean_sections(item, secret)
            if call.excinfo is not None:
                clean_exception(call.excinfo.value, secret)
        report = yield
        for secret in secrets:
            clean_report(report, secret)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Clean what other plugins have made themselves, as that for a subtest."""
        if key := self._plugin.secret:
            from .redaction import clean_report

            clean_report(report, key)

    @pytest.hookimpl(tryfirst=True)
    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        for secret in self._plugin.secrets:
            from .redaction import clean

            text = str(warning_message.message)
            if (cleaned := clean(text, secret)) != text:
                warning_message.message = Warning(cleaned)

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr: object) -> None:
        for secret in self._plugin.secrets:
            from .redaction import clean_tree

            clean_tree(excrepr, secret)

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        for secret in self._plugin.secrets:
            from .redaction import clean_exception

            clean_exception(excinfo.value, secret)
