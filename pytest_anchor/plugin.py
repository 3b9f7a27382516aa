"""Options, hooks and fixtures: the only module that knows pytest's hooks."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# What creates and ends sessions is imported where it is used: a run without a session does not pay for it.
from .errors import AnchorConfigError, AnchorError
from .settings import (
    BASE_URL_VARIABLE,
    DEFAULT_BASE_URL,
    KEY_VARIABLES,
    KEYWORDS,
    ON_LEAK,
    REGISTRY_NAME,
    Settings,
    check_base_url,
    check_choice,
    check_seconds,
    key_from_environment,
    new_run_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .report import Report
    from .session import AnchorSessionFactory, Owner

TEARDOWN_TIMEOUT = 4.5  # seconds; xdist cuts an interrupted worker's teardown off after about 5
CRASH_TIMEOUT = 20.0  # seconds for the sessions of a worker that died, while the run goes on

_OPTIONS = {
    "base_url": (f"URL of Anchor's API (environment: {BASE_URL_VARIABLE}; default: {DEFAULT_BASE_URL})", "URL"),
    "registry": (f"folder for the record of created sessions (default: {REGISTRY_NAME} in pytest's rootdir)", "DIR"),
    "on_leak": ("what a session that could not be ended does to the exit status: fail (default) or warn", "fail|warn"),
    "sweep_timeout": ("seconds that the final sweep may take (default: 60)", "SECONDS"),
    "chromium": ("the Chromium for --anchor-local (default: looked for on PATH and in the usual places)", "PATH"),
}
_LOCAL_HELP = "serve Anchor's API on this machine with local Chromium: free, offline, needs pytest-anchor[local]"


class _Plugin:
    """What one process of a run keeps between hooks."""

    def __init__(self, settings: Settings, *, worker: bool) -> None:
        self.settings = settings
        self.worker = worker
        self.item: pytest.Item | None = None
        self.crash_sweeps: list[threading.Thread] = []
        self.report: Report | None = None

    @cached_property
    def owner(self) -> Owner:
        from .session import Owner

        return Owner(self.settings)

    @property
    def secret(self) -> str | None:
        """The API key if this process has had a use for it."""
        return self.settings.api_key if "owner" in vars(self) else None

    def test(self) -> str:
        return self.item.nodeid if self.item is not None else "?"

    def active(self) -> bool:
        """Whether any process of the run has asked for a session."""
        return self.settings.folder.is_dir()


_KEY = pytest.StashKey[_Plugin]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup(
        "anchor",
        f"Anchor Browser sessions (pytest-anchor); the API key is read from {' or '.join(KEY_VARIABLES)}",
    )
    for name, (text, metavar) in _OPTIONS.items():
        group.addoption(f"--anchor-{name.replace('_', '-')}", dest=f"anchor_{name}", metavar=metavar, help=text)
        parser.addini(f"anchor_{name}", text)
    group.addoption("--anchor-local", action="store_true", dest="anchor_local", help=_LOCAL_HELP)
    parser.addini("anchor_local", _LOCAL_HELP, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.is_blocked("pytest_anchor"):  # -p no:pytest_anchor came after -p pytest_anchor
        config.pluginmanager.unregister(name=__name__)
        return
    config.addinivalue_line(
        "markers",
        f"anchor({', '.join(f'{name}=…' for name in KEYWORDS)}): configuration of the Anchor sessions that a test, "
        "class or module creates; merged over anchor_session_defaults, under the call's own keywords.",
    )
    values = getattr(config, "workerinput", {}).get("pytest_anchor")
    try:
        settings = Settings.of_worker(values) if values else _settings(config)
    except AnchorConfigError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_KEY] = _Plugin(settings, worker=bool(values))


def _settings(config: pytest.Config) -> Settings:
    def value(name: str, variable: str = "", default: str = "") -> str:
        given = config.getoption(f"anchor_{name}")
        return str(given or os.environ.get(variable) or config.getini(f"anchor_{name}") or default)

    def folder() -> Path:
        if given := config.getoption("anchor_registry"):
            return Path(config.invocation_params.dir, given)
        beside = config.inipath.parent if config.inipath else config.rootpath
        return Path(beside, ini) if (ini := config.getini("anchor_registry")) else config.rootpath / REGISTRY_NAME

    base_url = config.getoption("anchor_base_url")
    if base_url and config.getoption("anchor_local"):
        raise AnchorConfigError("--anchor-local and --anchor-base-url exclude each other: give one of them")
    local = bool(config.getoption("anchor_local") or (config.getini("anchor_local") and not base_url))
    run_id = new_run_id()
    return Settings(
        run_id=run_id,
        folder=folder() / run_id,
        owner="main",
        base_url="" if local else check_base_url(value("base_url", BASE_URL_VARIABLE, DEFAULT_BASE_URL)),
        api_key=f"local-{os.urandom(16).hex()}" if local else key_from_environment(),
        local=local,
        chromium=value("chromium"),
        on_leak=check_choice("--anchor-on-leak", value("on_leak", default="fail"), ON_LEAK),
        sweep_timeout=check_seconds("--anchor-sweep-timeout", value("sweep_timeout", default="60")),
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the controller's decisions to an xdist worker."""
    settings = node.config.stash[_KEY].settings
    node.workerinput["pytest_anchor"] = settings.for_worker(node.workerinput["workerid"])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """End a crashed xdist worker's sessions at once, while the run goes on."""
    plugin = node.config.stash[_KEY]
    if error and plugin.active():
        worker = node.workerinput["workerid"]
        thread = threading.Thread(target=_sweep_crashed, args=(plugin, worker), name="pytest-anchor-crash", daemon=True)
        thread.start()
        plugin.crash_sweeps.append(thread)


def _sweep_crashed(plugin: _Plugin, worker: str) -> None:
    from .sweep import sweep_owner

    with suppress(AnchorError):  # the final sweep meets the same, and reports it
        run, api = plugin.owner.open()
        sweep_owner(api, run, worker, timeout=CRASH_TIMEOUT)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Join a run in which an xdist worker has created a session, before the last worker leaves it.

    A run without living owners counts as dead: its local backend would be gone before the sweep.
    """
    if node := getattr(report, "node", None):
        plugin = node.config.stash[_KEY]
        if "owner" not in vars(plugin) and plugin.active():
            with suppress(AnchorError):  # the final sweep meets the same, and reports it
                plugin.owner.join()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    item.config.stash[_KEY].item = item


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Keep the key out of what a test prints, raises and records: a cdp_url contains it."""
    report = yield
    key = item.config.stash[_KEY].secret
    if key and key in f"{report.longrepr}{report.sections}{report.user_properties}{getattr(report, 'wasxfail', '')}":
        _without_key(report, key)
    return report


def _without_key(report: pytest.TestReport, key: str) -> None:
    def clean(value: Any) -> str:
        return str(value).replace(key, "***")

    if isinstance(report.longrepr, tuple):  # a skip: file, line and reason
        path, line, reason = report.longrepr
        report.longrepr = (path, line, clean(reason))
    elif report.longrepr:
        report.longrepr = clean(report.longrepr)
    if hasattr(report, "wasxfail"):
        report.wasxfail = clean(report.wasxfail)
    report.sections = [(name, clean(text)) for name, text in report.sections]
    report.user_properties = [
        (name, clean(value) if key in str(value) else value) for name, value in report.user_properties
    ]


# Last, for two reasons: pytest's own last teardown is a pytest_sessionfinish too, and xdist's waits for its workers.
@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    plugin = session.config.stash[_KEY]
    if plugin.worker or not plugin.active():
        return
    plugin.report = _sweep(session.config, plugin)
    ok = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if plugin.report.failed and plugin.settings.on_leak == "fail" and session.exitstatus in ok:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _sweep(config: pytest.Config, plugin: _Plugin) -> Report:
    from .progress import Progress
    from .registry import State
    from .report import Report
    from .sweep import sweep_run

    for thread in plugin.crash_sweeps:
        thread.join(CRASH_TIMEOUT)
    settings = plugin.settings
    state, problem = State(), None
    try:
        run, api = plugin.owner.open()
        state = run.state
        progress = Progress(config.pluginmanager.get_plugin("terminalreporter"))
        problem = sweep_run(api, run, settings.run_id, timeout=settings.sweep_timeout, progress=progress)
    except AnchorError as error:
        return Report(state, error, str(settings.folder))
    report = Report(state, problem, str(settings.folder))
    if report.settled and problem is None:
        plugin.owner.close()
        run.remove()
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    plugin = config.stash[_KEY]
    if plugin.report:
        terminalreporter.ensure_newline()
        terminalreporter.section("anchor")
        for line in plugin.report.lines(verbose=config.get_verbosity() > 0):
            terminalreporter.write_line(line.text, **line.markup)
        plugin.report = None


def pytest_unconfigure(config: pytest.Config) -> None:
    if plugin := config.stash.get(_KEY, None):
        if "owner" in vars(plugin):
            plugin.owner.close()
        if plugin.report and not plugin.report.settled:
            # No summary was shown: --no-summary, an internal error, or no terminal plugin.
            print("anchor:", *(line.text for line in plugin.report.lines()), sep="\n", file=sys.stderr)  # noqa: T201


@pytest.fixture(scope="session")
def anchor_session_defaults() -> dict[str, Any]:
    """Configuration of every Anchor session of the suite; override it in a conftest.py.

    Return a dict with any of the keys session, browser, integrations and identities. The anchor
    marker and the factory's own keywords win over it; mappings merge deeply, tags are joined.
    """
    return {}


def _anchor_session(
    request: pytest.FixtureRequest, anchor_session_defaults: Mapping[str, Any]
) -> Iterator[AnchorSessionFactory]:
    """Create Anchor Browser sessions: session = anchor_session(browser={...}).

    Each is ended at teardown at the latest. session.cdp_url is for Playwright's connect_over_cdp;
    session.id, .live_view_url, .created_at, .end(). Twins for wider scopes: class_, module_,
    package_ and session_anchor_session.
    """
    from .report import teardown_section
    from .session import AnchorSessionFactory

    plugin = request.config.stash.get(_KEY, None)
    if plugin is None:
        pytest.fail("anchor_session is switched off: -p no:pytest_anchor comes after -p pytest_anchor", pytrace=False)
    factory = AnchorSessionFactory(plugin.owner, _defaults(request.node, anchor_session_defaults), plugin.test)
    yield factory
    failures = factory.close(TEARDOWN_TIMEOUT)
    if failures and plugin.item is not None:
        text = teardown_section([(session.id, error) for session, error in failures.items()])
        plugin.item.add_report_section("teardown", "anchor", text)


anchor_session = pytest.fixture(scope="function")(_anchor_session)
class_anchor_session = pytest.fixture(scope="class")(_anchor_session)
module_anchor_session = pytest.fixture(scope="module")(_anchor_session)
package_anchor_session = pytest.fixture(scope="package")(_anchor_session)
session_anchor_session = pytest.fixture(scope="session")(_anchor_session)


def _defaults(node: pytest.Item | pytest.Collector, suite: Mapping[str, Any]) -> dict[str, Any]:
    from .session import check_keywords, merge

    if not isinstance(suite, Mapping):
        raise TypeError(f"anchor_session_defaults must return a mapping, not {type(suite).__name__}")
    check_keywords(suite, "anchor_session_defaults")
    merged = merge({}, suite)
    for mark in reversed(list(node.iter_markers("anchor"))):  # from the module down to the test
        if mark.args:
            raise TypeError(f"the anchor marker takes keywords only: {', '.join(KEYWORDS)}")
        check_keywords(mark.kwargs, "the anchor marker")
        merged = merge(merged, mark.kwargs)
    return merged
