"""Ends what a run has left once none of its processes lives, and keeps a log of it."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..cleanup.policy import KILLED_GRACE, LONG_PAUSES, SweepObserver, SweepPolicy
from ..cleanup.sweep import SweepTarget, sweep_run
from ..errors import AnchorRegistryError, printable
from ..registry.locks import REAPER_LOCK, hold, open_file
from ..reporting.summary import describe, title, why

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..api import AnchorAPI
    from ..registry.journal import Run
    from ..settings import Settings
    from .processes import Processes

REAPER_BUDGET = 600.0  # seconds that the reaper goes on trying after the run's death
REAPER_LOG = "reaper.log"
CLAIM_INTERVAL = 1.0  # seconds between attempts to claim the run


class Reaper(SweepObserver):
    """The sweep after a run has lost its last process; it stops where the run gets a process again.

    :param release_slots: called with the nonce of each session that it has ended.
    :param kept: the creations that it leaves alone, as their sessions are kept open.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        processes: Processes,
        release_slots: Callable[[str], object],
        kept: Collection[str] = (),
    ) -> None:
        self._run = run
        self._settings = settings
        self._processes = processes
        self._release_slots = release_slots
        self._kept = kept
        self._logged: dict[str, str] = {}  # by nonce

    def reap(self, open_api: Callable[[], AnchorAPI], *, is_swept: bool) -> None:
        """End what is left, and remove the record where it is of no further use.

        :param open_api: called if there is something to end.
        :param is_swept: whether the run has had its last sweep, and the API's list was read in it.
        :raises AnchorError: the record cannot be read, or *open_api* raises it.
        """
        run = self._run
        state = run.read()
        has_created = any(record.state != "refused" for record in state.records.values())
        if has_created and not (state.settled_but(self._kept) and is_swept):
            run.restore()
            self._reap_alone(open_api, time.monotonic() + REAPER_BUDGET)
        # The next run reports on a run that was killed; what has had its last sweep, no process will read.
        if state.settled and (is_swept or self._settings.own_registry) and not self._processes.living:
            run.remove()

    def _reap_alone(self, open_api: Callable[[], AnchorAPI], deadline: float) -> None:
        run, lock = self._run, None
        with suppress(OSError):  # something odd is in its place: the next run then takes this one for alive
            lock = hold(run.folder / REAPER_LOCK)
        try:
            while not _claim(run):  # the next run, or a command line, is at it
                if not self.should_continue() or time.monotonic() > deadline:
                    return
                time.sleep(CLAIM_INTERVAL)
            self._sweep(open_api(), deadline)
        finally:
            if lock is not None:
                os.close(lock)
            run.release()  # last: who claims it now finds it live, as long as something is kept open

    def _sweep(self, api: AnchorAPI, deadline: float) -> None:
        run, settings = self._run, self._settings
        self.log(f"no process of the run is left: {describe(run.state)}")
        ends_unrecorded = not settings.own_registry
        problem = sweep_run(
            SweepTarget(api, run, settings.run_id, kept=self._kept),
            SweepPolicy("reaper", LONG_PAUSES, KILLED_GRACE, always_lists=True, ends_unrecorded=ends_unrecorded),
            timeout=deadline - time.monotonic(),
            observer=self,
        )
        self.after_round()
        if problem is not None:
            self.log(str(problem))
        if self._processes.living:
            self.log("the run has a process again")
        else:
            settled = run.state.settled_but(self._kept)
            self.log("done" if settled else f"given up, and left to the next run: {describe(run.state)}")

    def ended(self, nonce: str) -> None:
        """Release its slot."""
        self._release_slots(nonce)

    def should_continue(self) -> bool:
        """Whether the run is dead still."""
        return not self._processes.living

    def after_round(self) -> None:
        """Log what has changed."""
        for nonce, record in list(self._run.state.records.items()):
            if record.ended_by == "reaper":
                text = f"{title(record)}: {'already over' if record.already else 'ended'}"
            elif (record.open or record.unresolved) and record.error:
                text = f"{title(record)}: {why(record)}"
            else:
                continue
            if self._logged.get(nonce) != text:
                self._logged[nonce] = text
                self.log(text)

    def log(self, text: str) -> None:
        """Append a line with the time to the log in the run's folder."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {printable(text)}\n"
        with suppress(OSError):
            fd = open_file(self._run.folder / REAPER_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            try:
                os.write(fd, line.encode("utf-8", "backslashreplace"))
            finally:
                os.close(fd)


def _claim(run: Run) -> bool:
    """Claim the run, unless another process has; something odd in the lock's place can be held by none."""
    try:
        return run.claim()
    except AnchorRegistryError:
        return True
