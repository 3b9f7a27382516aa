"""Says on the terminal, in the middle of a run, what tests wait for: once, not for each test and worker."""

from __future__ import annotations

import _thread
import sys
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

from ..errors import AnchorError, printable
from ..reporting.progress import begin_line

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from ..client import Client

# Bound before any test runs; a thread that waits in the kernel must be one of the kernel's.
_start_new_thread = _thread.start_new_thread


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
        """Write what the workers of the run wait for, until the broker goes.

        Where the run shares its limits with other machines, another broker is started then.
        """
        if not self._config.pluginmanager.has_plugin("terminalreporter"):
            if client.settings.shared_limits:
                keep_broker(client)
        elif self._watch is None:
            self._watch = threading.Thread(
                target=_follow, args=(client, self._write), name="pytest-anchor-waits", daemon=True
            )
            self._watch.start()

    def _write(self, text: str) -> None:
        if sys.is_finalizing():
            return
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        begin_line(reporter)
        reporter.write_line(f"anchor: {printable(text)}")


def keep_broker(client: Client) -> None:
    """See to it that the run always has a broker, as a thread that is none of the test process's own."""
    _start_new_thread(_follow, (client, _drop))


def _follow(client: Client, write: Callable[[str], object]) -> None:
    with suppress(AnchorError, OSError, ValueError):  # the broker has gone, or the terminal has
        client.watch(write, restarts=bool(client.settings.shared_limits))


def _drop(_text: str) -> None:
    """What a creation waits for, the thread of its test says."""
