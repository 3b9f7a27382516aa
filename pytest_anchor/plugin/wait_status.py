"""Says on the terminal, in the middle of a run, what tests wait for: once, not for each test and worker."""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ..errors import AnchorError, printable

if TYPE_CHECKING:
    import pytest

    from ..client import Client

FOREVER = 1e6  # seconds


class WaitStatusReporter:
    """The terminal of a run, for a line now and then; what is worth a line, the broker decides."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._watch: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        """Write *text*; pytest's capture can be set aside by the thread only that runs the tests."""
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or threading.current_thread() is not threading.main_thread():
            return
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext(), suppress(OSError, ValueError):
            self._write(text)

    def watch(self, client: Client) -> None:
        """Write what the workers of the run wait for, until the broker goes."""
        if self._watch is None and self._config.pluginmanager.has_plugin("terminalreporter"):
            self._watch = threading.Thread(target=self._follow, args=(client,), name="pytest-anchor-waits", daemon=True)
            self._watch.start()

    def _follow(self, client: Client) -> None:
        with suppress(AnchorError, OSError, ValueError):  # the broker has gone, or the terminal has
            client.request("watch waits", timeout=FOREVER, on_note=self._write)

    def _write(self, text: str) -> None:
        if sys.is_finalizing():
            return
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        reporter.ensure_newline()
        if reporter._tw.width_of_current_line:  # noqa: SLF001 - xdist's dots, which the line above does not know of
            reporter.write_line("")
        reporter.write_line(f"anchor: {printable(text)}")
