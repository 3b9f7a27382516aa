"""Says on the terminal, in the middle of a run, what tests wait for: once, not for each test and worker."""

from __future__ import annotations

import os
import threading
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

EVERY = 30.0  # seconds between lines
LOOK = 0.5  # seconds between looks at what workers wait for


class Teller:
    """The terminal of a run, for a line now and then."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._next = 0.0
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def __call__(self, text: str) -> None:
        """Say *text*, if it is time to say something.

        pytest's capture can be set aside by the thread only that runs the tests.
        """
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or not self._is_time() or threading.current_thread() is not threading.main_thread():
            return
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext(), suppress(OSError, ValueError):
            self._write(text)

    def watch(self, run: Path) -> None:
        """Say what the workers of the run in the folder *run* wait for, until :meth:`close`."""
        if self._watch is None and self._config.pluginmanager.has_plugin("terminalreporter"):
            self._watch = threading.Thread(target=self._look, args=(run,), name="pytest-anchor-waits", daemon=True)
            self._watch.start()

    def close(self) -> None:
        """Say nothing more."""
        self._over.set()
        if self._watch is not None:
            self._watch.join(LOOK)

    def _look(self, run: Path) -> None:
        while not self._over.wait(LOOK):
            if not (self._is_time() and os.path.isdir(run)):  # noqa: PTH112 - it may be forbidden to look
                continue
            from .limits import waits_in

            with suppress(OSError, ValueError):  # nobody reads what the terminal shows, or a file is closed
                if waits := waits_in(run):
                    more = f", and {len(waits) - 1} more wait" if len(waits) > 1 else ""
                    self._write(f"{waits[0]}{more}")

    def _is_time(self) -> bool:
        return time.monotonic() >= self._next

    def _write(self, text: str) -> None:
        from .errors import printable

        self._next = time.monotonic() + EVERY
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        reporter.ensure_newline()
        if reporter._tw.width_of_current_line:  # noqa: SLF001 - xdist's dots, which the line above does not know of
            reporter.write_line("")
        reporter.write_line(f"anchor: {printable(text)}")
