"""The broker of a run: it keeps the sessions of each process, and ends what a process leaves behind."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..api import AnchorAPI
from ..api.endpoints import PAGE
from ..budget.rules import MAX_CAP
from ..cleanup.policy import KILLED_GRACE, LONG_PAUSES, LOST_GRACE, SweepObserver, SweepPolicy
from ..cleanup.recovery import recover_all
from ..cleanup.sweep import SweepTarget, mark_all_ended, mark_lost_refused, sweep_run
from ..errors import AnchorAPIError, AnchorError, AnchorRegistryError, printable, redact
from ..registry.journal import Run
from ..registry.locks import forget_process, is_run, note_process, process_names, write_small
from ..registry.records import Record, RunFacts, State
from ..reporting.summary import KEPT_FILE, Report
from ..settings import check_key
from ..tags import run_tag
from .evidence import Evidence
from .forwarding import Forwarding
from .keeper import Keeper
from .observers import CrashSweep, LastSweep
from .outcome_tags import OutcomeTags
from .owner import Owner, Session
from .picture import PictureWriter
from .processes import Process, Processes
from .reaper import REAPER_LOG, Reaper
from .waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..cleanup.recovery import Recovery
    from ..settings import Settings
    from .evidence import Screenshot
    from .sharing import Sharing

PLAN_TIMEOUT = 5.0  # seconds for the one question after the plan's cap
CREDITS_TIMEOUT = 3.0  # seconds
RUN_LIMIT = 86_400.0  # seconds that a run takes at most
RECOVERY_TIMEOUT = 5.0  # seconds that the end of a run waits for what earlier runs left
OWNER_SWEEP_TIMEOUT = 20.0  # seconds that the end of a run waits for the sweeps of workers that are over


class LeavingError(Exception):
    """There is nothing left to do: a process that connects now has to start another broker."""


class Broker:
    """The sessions of one run on this machine.

    :param leave: called once, when the run is over and nothing of it is open that could still be ended.
    """

    def __init__(self, settings: Settings, leave: Callable[[], object]) -> None:
        self.settings = settings
        self.waits = Waits()
        self.processes = Processes(self._process_is_gone)
        self.forwarding = Forwarding(settings.forwarded_hosts, settings.folder)
        self._leave = leave
        self._lock = threading.RLock()
        self._sweeping = threading.RLock()  # the last sweep, or the reaper: one after the other
        self._run: Run | None = None
        self._api: AnchorAPI | None = None
        self._sharing: Sharing | None = None
        self._cap: int | None = settings.max_sessions
        self._has_noted_facts = False
        self._owners: dict[Process, Owner] = {}
        self._crash_sweeps: list[threading.Thread] = []
        self._picture = PictureWriter(settings)
        self._recovery: threading.Thread | None = None
        self._recovered: list[Recovery] = []
        self._evidence: Evidence | None = None
        self._keeper = Keeper(settings.keep_for)
        self._outcome_tags: OutcomeTags | None = None
        self._over = threading.Event()  # no session is created any more
        self._is_leaving = False
        self._has_listed = False  # whether the API's list was read after that
        self._has_reported = False  # whether a process has been told what is left, and what is kept
        self._is_done = False  # whether nothing is left: the record goes once no process may ask for it again

    # The processes of the run.

    def start(self, starter: Process) -> None:
        """Watch the run's main process, and the one that has started this; go on where another broker was killed."""
        with self._sweeping:  # where they die meanwhile, the run ends once its record has been taken over
            self.processes.add(starter)
            if self.settings.main_pid:
                self.processes.add(Process("main", self.settings.main_pid))
            if is_run(self.settings.folder):
                self._take_over()

    def _take_over(self) -> None:
        run = self._join()
        for name, pid in process_names(run.folder):
            self.processes.add(Process(name, pid))
        records = list(run.read().records.values())
        if not any(record.open or record.unresolved for record in records):
            return
        orphans: set[str] = set()
        for record in records:
            process = next((other for other in self.processes.living if other.name == record.owner), None)
            if record.open and process is not None:
                self.owner(process).sessions[record.nonce] = Session(record, "", "", record.time)
            elif record.open or record.unresolved:
                orphans.add(record.nonce)
        self._start_crash_sweep(orphans, KILLED_GRACE)

    def add(self, process: Process) -> bool:
        """Take in that a process has connected.

        :returns: whether it is a part of the run.
        :raises LeavingError: the broker is about to go.
        """
        with self._lock:
            if self._is_leaving:
                raise LeavingError
            if not self.processes.add(process):
                return False
            if self._run is not None:
                self._note(process)
            return True

    def remove(self, process: Process) -> None:
        """Remove a process that has left the run: what one of its threads asks for afterwards is refused."""
        if self.processes.remove(process):
            self._process_is_gone(process)

    def _process_is_gone(self, process: Process) -> None:
        with self._lock:
            owner = self._owners.get(process)
            if self._run is not None:
                forget_process(self._run.folder, *process)
                if self._is_done and not self.processes.living:
                    self._run.leave()
                    self._run.remove()
                    self._run = None
        if owner is not None:
            owner.stop()
        if not self.processes.living:
            threading.Thread(target=self._end_run, name="end-of-run", daemon=True).start()
        elif owner is not None:
            self._start_crash_sweep(owner.left, KILLED_GRACE, owner)

    def _note(self, process: Process) -> None:
        assert self._run is not None
        with suppress(OSError):  # it is only needed where this broker is killed as well
            note_process(self._run.folder, *process)

    # The record and the API.

    def _join(self) -> Run:
        """The run's record, with the broker's lock held.

        :raises AnchorRegistryError: the registry cannot be used.
        """
        with self._lock:
            if self._run is None:
                run = Run(self.settings.folder)
                run.join()
                self._run = run
                for process in self.processes.living:
                    self._note(process)
            return self._run

    def _open(self) -> tuple[Run, AnchorAPI]:
        """The run's record and the API.

        :raises AnchorConfigError: there is no usable key, or no local backend.
        :raises AnchorRegistryError: the registry cannot be used.
        """
        with self._lock:
            key = check_key(self.settings.api_key)
            run = self._join()
            if self._api is None:
                base_url = self.settings.base_url
                if self.settings.local:
                    from ..local.launch import local_base_url

                    base_url = local_base_url(run.folder, key, self.settings.chromium)
                self._api = AnchorAPI(base_url, key)
                self._keep_evidence(run, lambda: AnchorAPI(base_url, key))
                if self.settings.mark_outcome and not self.settings.local:  # which has no dashboard
                    self._outcome_tags = OutcomeTags(AnchorAPI(base_url, key))
                if self.settings.shared_limits and not self.settings.local:
                    from .sharing import Sharing

                    self._sharing = Sharing(self.settings, run, AnchorAPI(base_url, key))
            if self._cap is None:
                self._cap = self._api.max_sessions(deadline=time.monotonic() + PLAN_TIMEOUT) or 0
            if not self._has_noted_facts:
                self._has_noted_facts = True
                facts = RunFacts(min(self._cap, MAX_CAP), self.settings.prefetch, self.settings.end_in_background)
                with suppress(AnchorRegistryError):  # it is only of use to the picture of the run
                    run.append("run", "", **facts._asdict())
            return run, self._api

    def _keep_evidence(self, run: Run, open_api: Callable[[], AnchorAPI]) -> None:
        if self.settings.output and {self.settings.screenshot, self.settings.recording} != {"off"}:
            self._evidence = Evidence(self.settings, run, open_api)
            threading.Thread(target=self._evidence.clean, name="clean", daemon=True).start()

    def screenshots(
        self, nonces: Iterable[str], test: str, timeout: float, pages: Mapping[str, Sequence[bytes]]
    ) -> dict[str, list[Screenshot]]:
        """Take a screenshot of each of the sessions that live.

        :param timeout: seconds for all of them.
        :param pages: those that the test's process has taken of a session's pages, by nonce.
        """
        if self._evidence is None:
            return {}
        records = [session.record for session in self.sessions(nonces)]
        return self._evidence.screenshots(test, records, timeout, pages)

    def owner(self, process: Process) -> Owner:
        """The sessions of a process.

        :raises AnchorError: as :meth:`_open`, or the run is over.
        """
        with self._lock:
            if (owner := self._owners.get(process)) is None:
                run, api = self._open()
                owner = Owner(
                    process.name,
                    self.settings,
                    run,
                    api,
                    self._cap or 0,
                    lives=self.processes.lives,
                    keeper=self._keeper,
                    outcome_tags=self._outcome_tags,
                    find_lost=lambda nonce: self._start_crash_sweep({nonce}, LOST_GRACE, owner),
                    sharing=self._sharing,
                )
                if self._over.is_set() or process not in self.processes.living:
                    owner.stop()
                self._owners[process] = owner
            return owner

    def known_owner(self, process: Process) -> Owner | None:
        """The sessions of a process, ``None`` if it has never asked for one."""
        with self._lock:
            return self._owners.get(process)

    def forward(self, nonce: str, timeout: float) -> str:
        """Have a session's browser reach this machine's localhost.

        :returns: ``""``, or why that cannot be. A session that another broker has created is left as it is, since
            its URL went with that one.
        """
        for owner, _ in self._by_owner([nonce]):
            if url := owner.sessions[nonce].cdp_url:
                return self.forwarding.attach(nonce, url, timeout)
        return ""

    # Ends.

    def sessions(self, nonces: Iterable[str]) -> list[Session]:
        """Those of the sessions that are not known to be over."""
        by_owner = self._by_owner(nonces)
        return [session for owner, mine in by_owner for nonce in mine if (session := owner.sessions.get(nonce))]

    def end(self, nonces: Iterable[str], *, ended_by: str, timeout: float) -> dict[str, AnchorAPIError]:
        """End sessions within *timeout* seconds in all, and return the failures by nonce."""
        failures: dict[str, AnchorAPIError] = {}
        self.forwarding.drop(nonces)
        deadline = time.monotonic() + timeout
        for owner, mine in self._by_owner(nonces):
            left = max(deadline - time.monotonic(), 0.0)
            failures |= owner.end(mine, ended_by=ended_by, timeout=left)
        return failures

    def keep(self, nonces: Iterable[str]) -> None:
        """Have sessions stay open, when they would be ended, for a person to look at."""
        for owner, mine in self._by_owner(nonces):
            owner.keep(mine)

    def hurry(self) -> None:
        """End at once what is kept open; may be called by a handler of signals."""
        self._keeper.hurry()

    def end_later(self, nonces: Iterable[str]) -> None:
        """End sessions in the background; what cannot be ended stays recorded."""
        self.forwarding.drop(nonces)
        for owner, mine in self._by_owner(nonces):
            owner.end_later([session for nonce in mine if (session := owner.sessions.get(nonce))])

    def _by_owner(self, nonces: Iterable[str]) -> list[tuple[Owner, list[str]]]:
        nonces = set(nonces)
        with self._lock:
            owners = list(self._owners.values())
        return [(owner, mine) for owner in owners if (mine := [nonce for nonce in nonces if nonce in owner.sessions])]

    def finish_owner(self, process: Process, timeout: float) -> list[dict[str, Any]]:
        """Create nothing more for a process, and wait for its ends under way.

        :returns: its records, where it keeps a registry of its own, for its controller's.
        """
        if (owner := self.known_owner(process)) is None or self._run is None:
            return []
        owner.finish(timeout)
        if not self.settings.own_registry:
            return []
        return [vars(record) for record in list(self._run.read().records.values()) if record.owner == process.name]

    def take_records(self, records: list[dict[str, Any]]) -> None:
        """Take over what a worker with a registry of its own has on record."""
        run = self._join()
        for values in records:
            run.add(Record.from_values(values))

    def record_test(self, nonces: Sequence[str], *, seconds: float, **fields: Any) -> None:
        """Take in that a test is over, which had some sessions.

        :param seconds: how long it took.
        """
        ended = time.time()
        began = max(ended - seconds, 0.0)  # a clock that was set back meanwhile
        if (run := self._run) is not None:
            for nonce in nonces:
                with suppress(AnchorRegistryError):
                    run.append("tested", nonce, began=began, ended=ended, **fields)
            if self._evidence is not None:
                self._evidence.test_is_over(nonces)
            if self._outcome_tags is not None:
                self._outcome_tags.mark(record for nonce in nonces if (record := run.state.records.get(nonce)))

    def _start_crash_sweep(self, nonces: set[str], grace: float, owner: Owner | None = None) -> None:
        """Start a sweep while the run goes on: of what an ended process left, or for a lost creation."""
        if not nonces:
            return
        run, api = self._open()
        policy = SweepPolicy("sweep", LONG_PAUSES, grace, self.settings.sweep_at_once)

        def sweep() -> None:
            with suppress(AnchorError, OSError):  # the last sweep meets the same, and reports it
                target = SweepTarget(api, run, self.settings.run_id, nonces)
                sweep_run(target, policy, timeout=RUN_LIMIT, observer=CrashSweep(self, owner))

        thread = threading.Thread(target=sweep, name="crash-sweep", daemon=True)
        with self._lock:  # the run's end joins those in the list, which must have been started
            thread.start()
            self._crash_sweeps.append(thread)

    def release_slots(self, nonce: str) -> None:
        """Take in that a sweep has ended a session."""
        with self._lock:
            owners = list(self._owners.values())
        for owner in owners:
            if nonce in owner.sessions:
                owner.release_slots([nonce])

    @property
    def is_over(self) -> bool:
        """Whether no session is created any more."""
        return self._over.is_set()

    # The end of the run.

    def sweep(
        self,
        *,
        has_remote_workers: bool,
        verbose: bool,
        progress: Callable[[int, int], object],
        should_continue: Callable[[], bool],
        interrupted: bool = False,
    ) -> dict[str, Any]:
        """End all that is left of the run, and report on it.

        :param has_remote_workers: whether workers with a registry of their own may have left sessions.
        :param should_continue: whether the controller still waits for the report.
        :param interrupted: whether its tests were.
        """
        with self._sweeping:
            problem: AnchorError | None = None
            try:
                problem = self._end_all(has_remote_workers, LastSweep(self, progress, should_continue))
            except AnchorError as error:
                problem = error
            except Exception as error:  # noqa: BLE001 - whatever it is, the run fails and says what is open
                text = redact(f"{type(error).__name__}: {error}", self.settings.api_key or "\0")
                problem = AnchorError(f"an unexpected error, please report it: {printable(text)}")
            trouble = self._finish_evidence(should_continue)
            self._wait_for_recovery()
            report = self._make_report(problem)
            if trouble:
                report.remarks.append((trouble, True))
            report.credits = self._credits(report) if should_continue() else None
            if report.kept and not self.settings.links:
                write_small(self.settings.folder / KEPT_FILE, report.kept_text())
            values = report.as_values(verbose=verbose)
            self._picture.status = "interrupted" if interrupted or not should_continue() else "finished"
            if should_continue():  # else what is left is ended first
                self._has_reported = True
                values["lines"] += self._picture.write(report.state, report.credits)
            self._is_done = report.settled and problem is None and should_continue()
            return values

    def _finish_evidence(self, should_continue: Callable[[], bool]) -> str:
        """Wait for what the run leaves to look at, and return what went wrong: that fails no run."""
        try:
            self._mark_outcomes()
            if self._evidence is not None:
                self._evidence.finish(should_continue)
            if self._outcome_tags is not None and should_continue():
                self._outcome_tags.finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, the sweep has been done, and is reported
            text = redact(f"{type(error).__name__}: {error}", self.settings.api_key or "\0")
            return f"the evidence is incomplete, by an unexpected error, please report it: {printable(text)}"
        return ""

    def _mark_outcomes(self) -> None:
        if self._outcome_tags is not None and self._run is not None:
            self._outcome_tags.mark(self._run.state.records.values())

    def _credits(self, report: Report) -> float | None:
        """What the run has cost, if one question tells it; a run that has used next to nothing does not ask."""
        ids = [str(record.id) for record in report.created]
        if self._api is None or self.settings.local or not report.minutes or report.failed or len(ids) > PAGE:
            return None
        return self._api.credits(ids, run_tag(self.settings.run_id), deadline=time.monotonic() + CREDITS_TIMEOUT)

    def report(self, *, verbose: bool, interrupted: bool) -> dict[str, Any]:
        """Report on the run as it is, without waiting for anything."""
        if interrupted:
            self._picture.status = "interrupted"
        self._has_reported = True
        report = self._make_report(None)
        report.interrupted = interrupted and not report.settled
        return report.as_values(verbose=verbose)

    def _make_report(self, problem: AnchorError | None) -> Report:
        state = State()
        try:
            if self._run is not None:
                state = self._run.read()
        except AnchorError as error:
            problem = error
        report = Report(state, self.settings.folder, links=self.settings.links)
        report.problem = problem
        key = self.settings.api_key or "\0"
        report.kept = {
            # Whatever the clock has done since.
            nonce: (time.time() + kept.due - time.monotonic(), redact(kept.session.live_view_url, key))
            for nonce, kept in self._keeper.kept.items()
            if not kept.session.ended
        }
        report.keeper_pid = os.getpid() if self.settings.local else 0
        report.refused = sum(owner.refused for owner in self._owners.values())
        report.recovered = list(self._recovered)
        report.remarks = [line for one in (self._evidence, self._outcome_tags) if one for line in one.lines()]
        if self._sharing is not None:
            report.shared = list(self._sharing.lines())
        if self._run is not None and self._reaps:
            report.log = self._run.folder / REAPER_LOG
        return report

    @property
    def _reaps(self) -> bool:
        return self.settings.reaper and not self.settings.local  # a local backend goes with its run by itself

    def _end_all(self, has_remote_workers: bool, observer: SweepObserver) -> AnchorError | None:  # noqa: FBT001
        settings = self.settings
        self._over.set()
        with self._lock:
            owners, sweeps = list(self._owners.values()), list(self._crash_sweeps)
        for owner in owners:
            owner.stop()
        if self._run is None and not has_remote_workers:
            return None
        deadline = time.monotonic() + settings.sweep_timeout
        patience = time.monotonic() + min(OWNER_SWEEP_TIMEOUT, settings.sweep_timeout / 2)
        for owner in owners:
            owner.finish(max(patience - time.monotonic(), 0.0))
        for thread in sweeps:
            thread.join(max(patience - time.monotonic(), 0.0))
        run = self._join()
        run.restore()
        if settings.local:
            from ..local.launch import is_gone

            if is_gone(run.folder):
                mark_all_ended(run)
                return None
        records = run.read().records.values()
        if not (has_remote_workers or any(record.state != "refused" for record in records)):
            return None
        run, api = self._open()
        policy = SweepPolicy(
            grace=0.0 if settings.local else LOST_GRACE,
            at_once=settings.sweep_at_once,
            always_lists=True,
            ends_unrecorded=True,
        )
        problem = sweep_run(
            SweepTarget(api, run, settings.run_id, kept=self._keeper.kept),
            policy,
            timeout=max(deadline - time.monotonic(), settings.sweep_timeout / 2),
            observer=observer,
        )
        self._has_listed = problem is None
        if settings.local:  # what it creates too late goes with it
            mark_lost_refused(run)
        return problem

    def _end_run(self) -> None:
        """Reap what is left once no process of the run is, and leave."""
        if not self._has_reported:
            self._keeper.hurry()  # no person was told of what is kept
        self._reap()
        if self._keeper.kept:
            self._keeper.wait(lambda: not self.processes.living)  # meanwhile, other runs see that this one lives
            self._reap()
            with suppress(Exception):  # whatever it is, a broker that stayed would hold the run's lock
                self._mark_outcomes()
                if self._outcome_tags is not None:
                    self._outcome_tags.finish()
        with self._sweeping:
            if self._run is not None and not self.processes.living:
                self._picture.write_late(self._run.state)
            with self._lock:  # a process connects before this, and keeps the broker, or after it, and finds it gone
                if not self.processes.living:
                    self._over.set()
                    self._is_leaving = True
                    self._leave()

    def _reap(self) -> None:
        """End what is left and not kept, and forget the run once all of it is over."""
        with self._sweeping:
            if self._run is None or self.processes.living:
                return
            if self._reaps:
                reaper = Reaper(self._run, self.settings, self.processes, self.release_slots, self._keeper.kept)
                try:
                    reaper.reap(lambda: self._open()[1], is_swept=self._has_listed)
                except Exception as error:  # noqa: BLE001 - the next run goes on
                    text = f"an unexpected error, please report it: {error!r}"
                    reaper.log(redact(text, self.settings.api_key or "\0"))
            elif self._has_listed:
                with suppress(AnchorError):
                    if self._run.read().settled:
                        self._run.remove()

    def close(self) -> None:
        """Let go of the registry; what is open stays recorded."""
        self.forwarding.close()
        if self._sharing is not None:
            self._sharing.close()
        with self._lock:
            if self._run is not None:
                self._run.leave()

    # What dead runs left.

    def recover(self) -> None:
        """End in the background what the dead runs of the registry left."""
        with self._lock:
            if self._recovery is None:
                thread = threading.Thread(target=self._recover_all, name="recovery", daemon=True)
                thread.start()
                self._recovery = thread

    def _wait_for_recovery(self) -> None:
        if self._recovery is not None:
            self._recovery.join(RECOVERY_TIMEOUT)
        if self._sharing is not None:
            self._sharing.settle(RECOVERY_TIMEOUT)

    def _recover_all(self) -> None:
        with suppress(AnchorRegistryError, OSError):
            for recovered in recover_all(self.settings):
                self._recovered.append(recovered)
