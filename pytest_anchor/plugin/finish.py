"""The end of a run: its teardown, the last sweep, and what that means for the exit status."""

from __future__ import annotations

import gc
import sys
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from ..errors import AnchorError, printable
from ..reporting.progress import Progress
from ..reporting.summary import sweep_command
from .leaks import report_leaks
from .redaction import clean_suite_properties
from .state import TEARDOWN_TIMEOUT

if TYPE_CHECKING:
    from .state import Plugin

REPORT_TIMEOUT = 5.0  # seconds for a report that waits for nothing
FIRST = ("runner", "dsession")  # pytest's last teardown, and xdist's wait for its workers


def finish_worker(session: pytest.Session, exitstatus: int, plugin: Plugin) -> BaseException | None:
    """Have what goes on in the background finished, and hand a remote worker's records to its controller.

    All that comes before xdist sends what this worker has to say.

    :returns: what the teardown raised, to be raised once it has.
    """
    failure: BaseException | None = None
    try:
        _tear_down(session, exitstatus)
    except BaseException as error:  # noqa: BLE001 - raised again
        failure = error
    timeout = TEARDOWN_TIMEOUT if plugin.is_interrupted else plugin.client.settings.sweep_timeout / 2
    with suppress(AnchorError):  # the final sweep meets the same, and reports it
        answer = plugin.client.request("finish", timeout=timeout, again=True)
        session.config.workeroutput["pytest_anchor"] = answer["records"]  # type: ignore[attr-defined]
    return failure


def finish_run(session: pytest.Session, exitstatus: int, plugin: Plugin) -> BaseException | None:
    """Tear down what is still set up, end what is left, and see to it that a leak fails the run.

    All that comes before other plugins write their reports, so that these know of it.

    :returns: what the teardown raised, to be raised once they have.
    """
    hurried = isinstance(sys.exc_info()[1], KeyboardInterrupt)  # a second Ctrl-C met pytest while it handled the first
    failure: BaseException | None = None
    try:
        _tear_down(session, exitstatus)
    except KeyboardInterrupt:
        hurried = True
    except BaseException as error:  # noqa: BLE001 - raised again
        failure = error
    plugin.report = report = _sweep(session, plugin, hurried=hurried)
    if report["interrupted"]:
        session.exitstatus = pytest.ExitCode.INTERRUPTED
    elif report["failed"] and plugin.client.settings.on_leak == "fail":
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if failure is not None:
            plugin.set_status_of(failure)
    if plugin.secret:
        clean_suite_properties(session.config, plugin.secret)
    if report["failed"] and plugin.client.settings.on_leak == "fail":
        report_leaks(session.config, report["leaks"])
    return failure


def _tear_down(session: pytest.Session, exitstatus: int) -> None:
    """Call the hooks that end the fixtures and the workers, which pytest would call among all others."""
    manager = session.config.pluginmanager
    first = [plugin for name in FIRST if (plugin := manager.get_plugin(name))]
    others = [plugin for plugin in manager.get_plugins() if plugin not in first]
    manager.subset_hook_caller("pytest_sessionfinish", others)(session=session, exitstatus=exitstatus)


def _sweep(session: pytest.Session, plugin: Plugin, *, hurried: bool) -> dict[str, Any]:
    client, verbose = plugin.client, session.config.get_verbosity() > 0
    progress = Progress(session.config.pluginmanager.get_plugin("terminalreporter"))
    try:
        if hurried:
            raise KeyboardInterrupt
        return client.request(
            "sweep",
            timeout=2 * client.settings.sweep_timeout + 60.0,
            on_note=lambda note: progress(*note),
            again=True,
            has_remote_workers=plugin.has_remote_workers,
            interrupted=plugin.is_interrupted,
            verbose=verbose,
        )
    except KeyboardInterrupt:
        # A connection that was cut off in the making belongs to no request; its warning could change the exit status.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        try:
            report = client.request("report", timeout=REPORT_TIMEOUT, again=True, slack=0.0, verbose=verbose)
        except (AnchorError, KeyboardInterrupt) as error:
            return _no_report(plugin, str(error) or "interrupted", interrupted=True)
        else:
            return {**report, "interrupted": True}
    except AnchorError as error:
        return _no_report(plugin, str(error), interrupted=False)


def _no_report(plugin: Plugin, why: str, *, interrupted: bool) -> dict[str, Any]:
    settings = plugin.client.settings
    lines = [
        (f"the sweep did not take place: {printable(why, 1000)}", {"red": True, "bold": True}),
        (f"what this run created is on record in {settings.folder}", {}),
        (f"the next run here ends it; so does: {sweep_command(settings.folder.parent, settings.base_url)}", {}),
    ]
    return {"lines": lines, "failed": True, "settled": False, "interrupted": interrupted, "leaks": []}
