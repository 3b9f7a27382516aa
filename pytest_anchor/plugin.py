"""Options, hooks and fixtures: the only module that knows pytest's hooks."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import warnings
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# What creates and ends sessions is imported where it is used: a run without a session does not pay for it.
from .errors import AnchorConfigError, AnchorError, printable, redact
from .locks import has_owners, is_held, is_run, owner_lock
from .settings import (
    BASE_URL_VARIABLE,
    CHROMIUM_VARIABLE,
    DEFAULT_BASE_URL,
    END,
    KEY_VARIABLES,
    KEYWORDS,
    ON_LEAK,
    ON_OFF,
    REGISTRY_NAME,
    Settings,
    check_base_url,
    check_choice,
    check_max_sessions,
    check_number,
    check_run_id,
    check_seconds,
    ci_run_id,
    key_from_environment,
    new_invocation,
)
from .signals import Termination

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .coming import Coming
    from .prefetch import Wanted
    from .recover import Recovery
    from .report import Report
    from .session import AnchorSessionFactory, Owner
    from .tell import Teller

TEARDOWN_TIMEOUT = 4.5  # seconds; xdist cuts an interrupted worker's teardown off after about 5
WORKER_SWEEP_TIMEOUT = 20.0  # seconds that the end of a run waits for what is just being done about its workers
JOIN_LOOK = 0.1  # seconds between a controller's looks at whether a worker has asked for a session
JOIN_TIMEOUT = 1.5  # seconds that a worker's end waits for its controller
RECOVERY_TIMEOUT = 5.0  # seconds that the end of a run waits for what earlier runs left

_OPTIONS = {
    "base_url": (f"URL of Anchor's API (environment: {BASE_URL_VARIABLE}; default: {DEFAULT_BASE_URL})", "URL"),
    "registry": (f"folder for the record of created sessions (default: {REGISTRY_NAME} in pytest's rootdir)", "DIR"),
    "on_leak": ("what a session that could not be ended does to the exit status: fail (default) or warn", "fail|warn"),
    "sweep_timeout": ("seconds that the final sweep may take (default: 60)", "SECONDS"),
    "sweep_at_once": ("sessions that a sweep ends at the same time (default: 16)", "N"),
    "create_timeout": ("seconds that a creation waits for what the plan allows, at most (default: 300)", "SECONDS"),
    "max_sessions": (
        "sessions open at once, over all runs of this registry: a number, auto (default: the plan's) or off",
        "N|auto|off",
    ),
    "prefetch": ("sessions that each process creates ahead for its next tests (default: 0)", "N"),
    "end": (
        "when a teardown's sessions are ended: before the next test, inline (default), or meanwhile, in the background",
        "inline|background",
    ),
    "run_id": ("name of the run in its sessions' tags, which shards may share (default: the CI's, or random)", "ID"),
    "reaper": (
        "whether a process watches the run, and ends its sessions if it is killed: on (default) or off",
        "on|off",
    ),
    "chromium": ("the Chromium for --anchor-local (default: looked for on PATH and in the usual places)", "PATH"),
}
_LOCAL_HELP = "serve Anchor's API on this machine with local Chromium: free, offline, needs pytest-anchor[local]"


class _Plugin:
    """What one process of a run keeps between hooks."""

    def __init__(self, settings: Settings, config: pytest.Config, *, worker: bool) -> None:
        self.settings = settings
        self.config = config
        self.worker = worker
        self.pid = os.getpid()
        self.item: pytest.Item | None = None
        self.termination = Termination(self.active)
        self._owner: Owner | None = None
        self._lock = threading.RLock()
        self._over = threading.Event()
        self.elsewhere = False  # whether workers with a registry of their own may have left sessions
        self.worker_sweeps: dict[str, threading.Thread] = {}  # by the worker's id
        self.recovery: threading.Thread | None = None
        self.recovered: list[Recovery] = []
        self.report: Report | None = None

    @cached_property
    def teller(self) -> Teller:
        from .tell import Teller

        return Teller(self.config)

    @property
    def used(self) -> bool:
        """Whether this process has had to do with the run's sessions."""
        return self._owner is not None

    @property
    def owner(self) -> Owner:
        with self._lock:
            if self._owner is None:
                from .session import Owner

                self._owner = Owner(self.settings, self.termination.catch, self.teller)
            return self._owner

    @cached_property
    def coming(self) -> Coming | None:
        """The tests that come next, where anything is created ahead for them."""
        if not self.settings.prefetch:
            return None
        from .coming import Coming

        return Coming(self.settings.prefetch)

    def begin(self, item: pytest.Item, next_item: pytest.Item | None) -> None:
        """Take in that a test begins, and create ahead what those after it will ask for."""
        self.item = item
        if self.coming is not None:
            self.coming.begins(item, next_item)
            self.plan(self.coming.wanted_by(item))

    def plan(self, current: Wanted | None = None) -> None:
        """Create ahead, unless the test that runs still needs *current*."""
        if self.coming is not None and self.item is not None and self.used:
            self.owner.plan(current, self.coming.after(self.item))

    @property
    def secret(self) -> str | None:
        """The API key if this process has had a use for it."""
        return self.settings.api_key if self.used else None

    def test(self) -> str:
        return self.item.nodeid if self.item is not None else "?"

    def active(self) -> bool:
        """Whether any process of the run has asked for a session."""
        if self.elsewhere or (self._owner is not None and self._owner.has_open):
            return True
        return os.path.isdir(self.settings.folder)  # noqa: PTH112 - it may be forbidden to look

    def join(self) -> None:
        """Hold the owner's lock if the run has any: one without living owners counts as dead.

        Its local backend would be gone before the sweep, and its reaper would begin.
        """
        with self._lock:
            if not self.used and self.active():
                with suppress(AnchorError):  # the final sweep meets the same, and reports it
                    self.owner.join()

    def join_in_time(self) -> None:
        """Join the run as soon as a worker has begun it: its first test may take long, and crash."""

        def look() -> None:
            while not (self.used or self._over.wait(JOIN_LOOK)):
                self.join()

        if not self.used:
            threading.Thread(target=look, name="pytest-anchor-join", daemon=True).start()

    def goes_on(self) -> bool:
        """Whether the run has not come to its end."""
        return not self._over.is_set()

    def leave(self) -> None:
        """Stop what goes on beside the tests."""
        self._over.set()
        if "teller" in vars(self):
            self.teller.close()


class _Redaction:
    """Keeps the key out of reports and warnings: a plugin of its own, since these hooks are not told of the config."""

    def __init__(self, plugin: _Plugin) -> None:
        self._plugin = plugin

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Clean what a test prints, raises and records, before anybody shows it or sends it to the controller."""
        if key := self._plugin.secret:
            _without_key(report, key)

    @pytest.hookimpl(tryfirst=True)
    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        key, text = self._plugin.secret, str(warning_message.message)
        if key and redact(text, key) != text:
            warning_message.message = Warning(redact(text, key))


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
        config.pluginmanager.unregister(sys.modules[__name__])
        return
    config.addinivalue_line(
        "markers",
        f"anchor({', '.join(f'{name}=…' for name in KEYWORDS)}): configuration of the Anchor sessions that a test, "
        "class or module creates; merged over anchor_session_defaults, under the call's own keywords.",
    )
    values = getattr(config, "workerinput", {}).get("pytest_anchor")
    try:
        settings = Settings.of_worker(values, config.rootpath) if values else _settings(config)
    except AnchorConfigError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_KEY] = plugin = _Plugin(settings, config, worker=bool(values))
    config.pluginmanager.register(_Redaction(plugin), "pytest_anchor_redaction")


def _settings(config: pytest.Config) -> Settings:
    def value(name: str, variable: str = "", default: str = "") -> str:
        given = config.getoption(f"anchor_{name}")
        return str(given or os.environ.get(variable) or config.getini(f"anchor_{name}") or default)

    def folder() -> Path:
        if given := config.getoption("anchor_registry"):
            return Path(config.invocation_params.dir, given)
        beside = config.inipath.parent if config.inipath else config.rootpath
        return Path(beside, ini) if (ini := config.getini("anchor_registry")) else config.rootpath / REGISTRY_NAME

    base_url = config.getoption("anchor_base_url") or os.environ.get(BASE_URL_VARIABLE)
    if config.getoption("anchor_base_url") and config.getoption("anchor_local"):
        raise AnchorConfigError("--anchor-local and --anchor-base-url exclude each other: give one of them")
    local = bool(config.getoption("anchor_local") or (config.getini("anchor_local") and not base_url))
    invocation = new_invocation()
    return Settings(
        run_id=check_run_id(value("run_id", default=ci_run_id() or invocation)),
        folder=folder() / invocation,
        owner="main",
        base_url="" if local else check_base_url(value("base_url", BASE_URL_VARIABLE, DEFAULT_BASE_URL)),
        api_key=f"local-{os.urandom(16).hex()}" if local else key_from_environment(),
        local=local,
        chromium=value("chromium", CHROMIUM_VARIABLE),
        on_leak=check_choice("--anchor-on-leak", value("on_leak", default="fail"), ON_LEAK),
        sweep_timeout=check_seconds("--anchor-sweep-timeout", value("sweep_timeout", default="60")),
        sweep_at_once=check_number("--anchor-sweep-at-once", value("sweep_at_once", default="16"), 1, 256),
        create_timeout=check_seconds("--anchor-create-timeout", value("create_timeout", default="300")),
        max_sessions=check_max_sessions("--anchor-max-sessions", value("max_sessions", default="auto")),
        prefetch=check_number("--anchor-prefetch", value("prefetch", default="0"), 0, 100),
        end_in_background=check_choice("--anchor-end", value("end", default="inline"), END) == "background",
        reaper=check_choice("--anchor-reaper", value("reaper", default="on"), ON_OFF) == "on",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """End what earlier runs left on record, in the background."""
    plugin = session.config.stash[_KEY]
    registry = plugin.settings.folder.parent
    if plugin.worker and not plugin.settings.own_registry:
        return
    with suppress(OSError):  # who creates a session is told that the registry cannot be used
        plugin.recovery = _start_recovery(plugin) if _has_dead_runs(registry) else None


def _has_dead_runs(registry: Path) -> bool:
    return registry.is_dir() and any(is_run(one) and not has_owners(one) for one in registry.iterdir())


def _start_recovery(plugin: _Plugin) -> threading.Thread:
    # Imported here and not in the thread: what requests sets up of warnings, pytest would undo now and then.
    from . import api, recover  # noqa: F401

    thread = threading.Thread(target=_recover, args=(plugin,), name="pytest-anchor-recovery", daemon=True)
    thread.start()
    return thread


def _recover(plugin: _Plugin) -> None:
    from .recover import recover_all

    with suppress(AnchorError):
        for recovered in recover_all(plugin.settings):
            plugin.recovered.append(recovered)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Hand the controller's decisions to an xdist worker."""
    plugin = node.config.stash[_KEY]
    plugin.termination.catch()  # the controller does not hear of a worker's first session in time
    shares_disk = _shares_disk(node)
    plugin.teller.watch(plugin.settings.folder)
    plugin.join_in_time()
    node.workerinput["pytest_anchor"] = plugin.settings.for_worker(
        node.workerinput["workerid"], shares_disk=shares_disk
    )


def _shares_disk(node: Any) -> bool:
    return bool(node.gateway.spec.popen and not node.gateway.spec.via)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """End what an xdist worker has left, if it has crashed or could not end it, while the run goes on.

    One that is interrupted goes down several times.
    """
    plugin = node.config.stash[_KEY]
    worker = node.workerinput["workerid"]
    told = getattr(node, "workeroutput", {})
    if not _shares_disk(node):
        _take_records(plugin, told.get("pytest_anchor"))
    elif plugin.active() and worker not in plugin.worker_sweeps and (error or told.get("pytest_anchor_has_left")):
        from . import api  # noqa: F401 - not in the thread, as above

        thread = threading.Thread(target=_sweep_worker, args=(plugin, worker), name="pytest-anchor-worker", daemon=True)
        thread.start()
        plugin.worker_sweeps[worker] = thread


def _take_records(plugin: _Plugin, records: list[dict[str, Any]] | None) -> None:
    """Take over what a worker with a registry of its own has on record; without one, only the API knows."""
    from .registry import Record

    if records is None:
        plugin.elsewhere = not plugin.settings.local  # a local backend there has gone with its worker
    elif records:
        with suppress(AnchorError):  # the final sweep meets the same, and reports it
            run = plugin.owner.join()
            for values in records:
                run.add(Record(**values))


def _sweep_worker(plugin: _Plugin, worker: str) -> None:
    from .sweep import sweep_owner

    settings = plugin.settings
    with suppress(AnchorError, OSError):  # the final sweep meets the same, and reports it
        run, api = plugin.owner.open()
        sweep_owner(api, run.view(), settings.run_id, worker, goes_on=plugin.goes_on, at_once=settings.sweep_at_once)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Join a run in which an xdist worker has created a session, before the last worker leaves it."""
    if node := getattr(report, "node", None):
        node.config.stash[_KEY].join()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    item.config.stash[_KEY].begin(item, nextitem)


def _without_key(report: pytest.TestReport, key: str) -> None:
    """Keep the key out of a report: a cdp_url contains it."""

    def clean(value: Any) -> Any:
        text = str(value)
        cleaned = redact(text, key)
        # A handle's URL becomes a plain text, too: xdist sends nothing else.
        return cleaned if cleaned != text or isinstance(value, str) else value

    if isinstance(report.longrepr, tuple):  # a skip: file, line and reason
        path, line, reason = report.longrepr
        report.longrepr = (path, line, clean(reason))
    else:
        report.longrepr = clean(report.longrepr)
    if hasattr(report, "wasxfail"):
        report.wasxfail = clean(report.wasxfail)
    report.sections = [(name, clean(text)) for name, text in report.sections]
    report.user_properties = [(name, clean(value)) for name, value in report.user_properties]


# Innermost, but after all that is no wrapper: pytest's own last teardown is a pytest_sessionfinish too, xdist's waits
# for its workers, and the terminal's, a wrapper, writes the summary.
@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Any:
    plugin = session.config.stash[_KEY]
    if os.getpid() != plugin.pid:  # a child that a test forked, and that has gone on
        return (yield)
    plugin.leave()
    if plugin.worker:
        try:
            return (yield)
        finally:
            _finish_worker(session, plugin)
    hurried, result = isinstance(sys.exc_info()[1], KeyboardInterrupt), None  # a second met pytest at the first
    failure: BaseException | None = None  # of a fixture's end, or of somebody's own hook
    try:
        plugin.join()
        if plugin.used:
            from . import reaper, report  # noqa: F401 - a Ctrl-C meets this here, and not as the sweep begins
    except KeyboardInterrupt:
        hurried = True  # the second Ctrl-C: the prompt comes back at once
    try:
        result = yield
    except KeyboardInterrupt:
        if not plugin.active():
            raise
        hurried = True
    except BaseException as error:  # noqa: BLE001 - raised again
        failure = error
    _conclude(session, plugin, failure, hurried=hurried)
    if failure is not None:
        raise failure
    return result


def _conclude(session: pytest.Session, plugin: _Plugin, failure: BaseException | None, *, hurried: bool) -> None:
    """Sweep, and see to it that nobody leaves with status 0 where a session is left."""
    if not (plugin.active() or plugin.recovery):
        if plugin.used:
            plugin.owner.finish(0.0)
        return
    plugin.report = report = _sweep(session.config, plugin, hurried=hurried)
    if report.interrupted:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
    elif report.failed and plugin.settings.on_leak == "fail":
        failed = pytest.ExitCode.TESTS_FAILED
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = failed
        if isinstance(failure, pytest.exit.Exception):
            failure.returncode = failure.returncode or failed
        elif isinstance(failure, SystemExit):
            failure.code = failure.code or failed


def _finish_worker(session: pytest.Session, plugin: _Plugin) -> None:
    if plugin.used:
        interrupted = session.exitstatus == pytest.ExitCode.INTERRUPTED
        plugin.owner.finish(TEARDOWN_TIMEOUT if interrupted else plugin.settings.sweep_timeout / 2)
        with suppress(AnchorError):  # the final sweep meets the same, and reports it
            plugin.owner.restore()
    _hand_over(session.config, plugin)


def _hand_over(config: pytest.Config, plugin: _Plugin) -> None:
    """Tell the controller whether this worker has left anything, and what it has on record if it cannot read that."""
    records = []
    with suppress(AnchorError):
        if plugin.settings.own_registry and plugin.used:
            state = plugin.owner.join().read()
            records = [vars(one) for one in state.records.values() if one.owner == plugin.settings.owner]
    has_left = plugin.used and plugin.owner.has_left
    config.workeroutput |= {"pytest_anchor": records, "pytest_anchor_has_left": has_left}  # type: ignore[attr-defined]


def _sweep(config: pytest.Config, plugin: _Plugin, *, hurried: bool) -> Report:
    from . import reaper
    from .registry import State
    from .report import Report

    settings = plugin.settings
    report = Report(State(), settings.folder)
    try:
        if plugin.active():
            plugin.owner.restore()
            run = plugin.owner.join()
            report.state = run.read()
            if hurried:
                raise KeyboardInterrupt
            report.problem = _end_all(config, plugin)
        if plugin.recovery:
            plugin.recovery.join(RECOVERY_TIMEOUT)
    except AnchorError as error:
        report.problem = error
    except KeyboardInterrupt:
        report.interrupted = True
    except Exception as error:  # noqa: BLE001 - whatever it is, the run fails and tells what is open
        text = redact(f"{type(error).__name__}: {error}", plugin.secret or "\0")
        report.problem = AnchorError(f"an error that should not have come, please report it: {printable(text)}")
    if report.interrupted:
        # A connection that was cut off in the making is nobody's; as a warning it could change the exit status.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    report.recovered = list(plugin.recovered)
    report.unwatched = reaper.problem(settings.folder)
    report.log = settings.folder / reaper.LOG if reaper.is_watching(settings.folder) else None
    if plugin.active() and report.settled and report.problem is None:
        plugin.owner.close()
        run.remove()
    return report


def _end_all(config: pytest.Config, plugin: _Plugin) -> AnchorError | None:
    from .progress import Progress
    from .sweep import LOST_GRACE, sweep_run, write_off, write_off_lost

    settings = plugin.settings
    deadline = time.monotonic() + settings.sweep_timeout
    patience = time.monotonic() + min(WORKER_SWEEP_TIMEOUT, settings.sweep_timeout / 2)
    for thread in plugin.worker_sweeps.values():
        thread.join(max(patience - time.monotonic(), 0.0))
    plugin.owner.finish(settings.sweep_timeout / 2)
    if settings.local:
        from .local.launch import is_gone

        if is_gone(settings.folder):
            write_off(plugin.owner.join())
            return None
    if not plugin.elsewhere and all(one.state == "ended" for one in plugin.owner.join().read().records.values()):
        return None
    run, api = plugin.owner.open()
    problem = sweep_run(
        api,
        run,
        settings.run_id,
        timeout=max(deadline - time.monotonic(), settings.sweep_timeout / 2),
        at_once=settings.sweep_at_once,
        progress=Progress(config.pluginmanager.get_plugin("terminalreporter")),
        ended=plugin.owner.let_go,
        elsewhere=plugin.elsewhere,
        grace=0.0 if settings.local else LOST_GRACE,
    )
    if settings.local:  # what it creates too late goes with it
        write_off_lost(run)
    return problem


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    plugin = config.stash[_KEY]
    if plugin.report:
        terminalreporter.ensure_newline()
        terminalreporter.section("anchor")
        for line in plugin.report.lines(verbose=config.get_verbosity() > 0):
            terminalreporter.write_line(line.text, **line.markup)
        plugin.report = None


def _wait_for_controller(settings: Settings) -> None:
    """Leave the run only when its controller has joined it: a run without owners is the reaper's."""
    deadline = time.monotonic() + JOIN_TIMEOUT
    parent = os.getppid()
    while not (settings.own_registry or is_held(owner_lock(settings.folder, "main"))):
        if time.monotonic() > deadline or os.getppid() != parent:
            break
        time.sleep(0.01)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (plugin := config.stash.get(_KEY, None)) and os.getpid() == plugin.pid:
        plugin.termination.undo()
        if plugin.used:
            if plugin.worker:
                _wait_for_controller(plugin.settings)
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
    __tracebackhide__ = True
    from .coming import configuration
    from .report import teardown_section
    from .session import AnchorSessionFactory

    plugin = request.config.stash.get(_KEY, None)
    if plugin is None:
        pytest.fail("anchor_session is switched off: -p no:pytest_anchor comes after -p pytest_anchor", pytrace=False)
    config = configuration(request.node, anchor_session_defaults)
    if plugin.coming is not None:
        plugin.coming.saw(request.node, anchor_session_defaults)
    factory, pid = AnchorSessionFactory(plugin.owner, config, plugin.test, plugin.plan), os.getpid()
    yield factory
    if os.getpid() != pid:  # a child that the test forked, and that has gone on: they are its parent's
        return
    if plugin.settings.end_in_background and os.getpid() == plugin.pid:  # a fork that a test runs in may end any time
        factory.close_later()
        return
    failures = factory.close(TEARDOWN_TIMEOUT)
    if failures and plugin.item is not None:
        text = teardown_section([(session.id, error) for session, error in failures.items()])
        plugin.item.add_report_section("teardown", "anchor", text)


anchor_session = pytest.fixture(scope="function")(_anchor_session)
class_anchor_session = pytest.fixture(scope="class")(_anchor_session)
module_anchor_session = pytest.fixture(scope="module")(_anchor_session)
package_anchor_session = pytest.fixture(scope="package")(_anchor_session)
session_anchor_session = pytest.fixture(scope="session")(_anchor_session)
