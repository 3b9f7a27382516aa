"""The sessions of one process of the run: created in turn and on record, given to its tests, ended."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..background import DaemonThreadPool
from ..budget.admission import Limits
from ..budget.file_store import FileStore
from ..budget.holders import SlotHolders
from ..cleanup.ending import END_TIMEOUT, end_sessions
from ..cleanup.policy import SweepPolicy
from ..configuration import IDLE_TIMEOUT, MAX_DURATION, merge, with_tags
from ..errors import (
    AnchorAPIError,
    AnchorError,
    AnchorLimitError,
    AnchorLostCreateError,
    AnchorRegistryError,
    printable,
)
from ..registry.records import MOST
from ..tags import TAG, named_tag, new_nonce, new_tag, run_tag
from .keeper import Keeper
from .prefetch import Prefetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ..api import AnchorAPI
    from ..budget.admission import Admission
    from ..configuration import Wanted
    from ..errors import Limit
    from ..registry.journal import Run
    from ..registry.records import Record
    from ..settings import Settings
    from .outcome_tags import OutcomeTags
    from .sharing import Sharing

RETRY_PAUSE = 0.25  # seconds before a creation that failed is tried again; doubled each time
END_AGAIN = 2.0  # seconds between attempts to end what a teardown could not, while a test waits for its slot
POLL_INTERVAL = 0.25  # seconds between checks whether one does
ENDS_AT_ONCE = 16  # sessions that are ended in the background at the same time
WORTH_REPORTING = 0.1  # seconds of waiting


class CancelledError(AnchorError):
    """The test process has withdrawn its request, or is gone."""


class AdmissionExpiredError(Exception):
    """A process that has stood still since its creation was admitted has to ask again."""


@dataclass(eq=False)
class Session:
    """A session that was created, and its record; the URLs contain the key.

    :param created: when the API's answer arrived, in seconds since the epoch.
    """

    record: Record
    cdp_url: str = field(repr=False)
    live_view_url: str = field(repr=False)
    created: float
    keep: bool = False  # whether it is to stay open when it would be ended, as its test has failed
    kept_until: float = 0.0  # in seconds since the epoch
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)  # two that end it, end it once

    @property
    def ended(self) -> bool:
        """Whether it is confirmed to be over."""
        return self.record.state == "ended"


class Request:
    """A request for a session, as the process behind it sees it.

    :param test: the test that asks.
    :param is_self_blocked: whether its process can end no session while it waits.
    """

    def __init__(self, test: str, *, is_self_blocked: bool = False) -> None:
        self.test = test
        self.is_self_blocked = is_self_blocked

    def report_wait(self, text: str) -> None:
        """Take in what it waits for; called again and again."""

    @property
    def is_cancelled(self) -> bool:
        """Whether the process does not wait any more."""
        return False


class Owner:
    """One process of the run that creates sessions.

    :param name: ``main``, or an xdist worker's ``gw0``, ``gw1``…
    :param lives: whether the process of the run with a given name lives.
    :param keeper: keeps the sessions of failed tests open for a while.
    :param outcome_tags: marks sessions that are over with what became of their tests.
    :param find_lost: starts the search for the session of a creation, by its nonce, whose answer was lost.
    :param sharing: what the run shares with those of other machines, if it does.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        run: Run,
        api: AnchorAPI,
        cap: int,
        *,
        lives: Callable[[str], bool] = lambda _name: True,
        find_lost: Callable[[str], object] = lambda _nonce: None,
        keeper: Keeper | None = None,
        outcome_tags: OutcomeTags | None = None,
        sharing: Sharing | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self._run = run
        self._api = api
        self._find_lost = find_lost
        self._outcome_tags = outcome_tags
        self._keeper = keeper or Keeper(settings.keep_for)
        self._sharing = sharing
        folder = run.folder if settings.local else run.folder.parent
        self.limits = Limits(
            sharing.store if sharing else FileStore(folder, api.account, run.folder.name, name),
            SlotHolders(run.folder, name, api.base_url, lives, run=sharing.store.member.run if sharing else ""),
            cap=cap,
            timeout=settings.create_timeout,
        )
        self._lock = threading.RLock()
        self._prefetch: Prefetch[Session] | None = None
        self._ends = DaemonThreadPool(ENDS_AT_ONCE, "ends")
        self._failed_ends: list[Session] = []  # of teardowns
        self._next_attempt = 0.0  # when the failed ends may be tried again, in ``time.monotonic()`` seconds
        self._retry_thread: threading.Thread | None = None  # that tries them again
        self.sessions: dict[str, Session] = {}  # not confirmed to be over, by nonce
        self.refused = 0  # creations, as the budget was used up
        self._unconfirmed_creates: set[str] = set()  # nonces
        self._over = threading.Event()

    def create(self, config: Mapping[str, Any], request: Request) -> Session:
        """A session for a test, new or created ahead: see :class:`AnchorSessionFactory` for what is raised."""
        self._check_budget(request.test)
        asked = time.monotonic()
        if self._prefetch is not None and (session := self._prefetch.take(config)) is not None:
            self._give(session, request.test, time.monotonic() - asked)
            return session
        return self._create_in_turn(config, request)

    def _tags(self, nonce: str, test: str) -> list[str]:
        tags = [TAG, run_tag(self.settings.run_id), new_tag(nonce)]
        if self._outcome_tags is not None:
            tags += [named_tag("test", test), named_tag("owner", self.name)]
        return tags + (self._sharing.tags if self._sharing else [])

    @property
    def _own_defaults(self) -> dict[str, Any]:
        """What sessions need for what the run is to leave of them, unless they say otherwise."""
        session: dict[str, Any] = {}
        if self.settings.recording != "off":
            session["recording"] = {"active": True}
        if self.settings.keep:
            minutes = math.ceil(self.settings.keep_for / 60)
            idle = max(IDLE_TIMEOUT, minutes)
            session["timeout"] = {"idle_timeout": idle, "max_duration": MAX_DURATION + minutes}
        return {"session": session} if session else {}

    def _check_budget(self, test: str) -> None:
        if self._is_used_up:
            self.refused += 1
            raise AnchorLimitError(
                f"no session was created for {printable(test)}: the run's browsers have run for as long as "
                f"--anchor-budget {self.settings.budget:g} (minutes) allows. Raise it, or let tests share sessions."
            )

    @property
    def _is_used_up(self) -> bool:
        budget = self.settings.budget
        return bool(budget) and self._run.state.browser_seconds(time.time()) >= budget * 60

    def _give(self, session: Session, test: str, waited: float) -> None:
        record = session.record
        self.limits.mark_slots([record.nonce], "")
        taken: dict[str, Any] = {"test": test, "waited": round(waited, 3)}
        record.apply("taken", taken)
        with suppress(AnchorRegistryError):  # it is recorded, as created for the test before it
            self._run.append("taken", record.nonce, **taken)

    def _create_in_turn(self, config: Mapping[str, Any], request: Request) -> Session:
        run = self._run
        admission = self.limits.admission(request.test, request.report_wait)
        deadline = time.monotonic() + self.settings.create_timeout
        admitted: float | None = None  # in seconds since the epoch
        failures = 0
        nonce = new_nonce(run.folder.name)

        def check(*, waits_for_slot: bool = False) -> None:
            if request.is_cancelled or self._over.is_set():
                raise CancelledError(f"the request for {printable(request.test)} was withdrawn")
            if waits_for_slot and self._prefetch is not None:
                self._prefetch.drop_ready()

        try:
            while True:
                admission.wait(nonce, self_blocked=request.is_self_blocked, between_polls=check)
                admitted = time.time()
                try:
                    return self._create(nonce, config, request.test, retried=failures)
                except AdmissionExpiredError:
                    pass
                except AnchorLostCreateError as error:
                    error.tries = failures = failures + 1
                    if not self._wait_for_retry(nonce, error, deadline):
                        raise
                except AnchorAPIError as error:
                    if error.limit is None:
                        raise
                    admission.refusal = error.reason
                    self._record_rate_limited(nonce, admission.began, error.limit)
                check()
                admitted = None
                nonce = new_nonce(run.folder.name)
        finally:
            self._record_wait(nonce, admission, admitted or time.time())

    def _record_wait(self, nonce: str, admission: Admission, moment: float) -> None:
        tells_policy = bool(admission.quota) and not self._run.state.quota
        if admission.seconds >= WORTH_REPORTING or tells_policy:
            rate, slot = round(admission.seconds - admission.slot_seconds, 3), round(admission.slot_seconds, 3)
            policy: dict[str, float] = {"quota": min(admission.quota, MOST), "window": admission.window}
            if admission.elsewhere_seconds:
                policy["elsewhere"] = round(admission.elsewhere_seconds, 3)
            with suppress(AnchorRegistryError):
                self._run.append("waited", nonce, rate=rate, slot=slot, time=moment, **policy)

    def _record_rate_limited(self, nonce: str, began: float, limit: Limit) -> None:
        self.limits.record_rate_limited(nonce, began, limit)
        with suppress(AnchorRegistryError):
            self._run.append("limited", nonce, quota=limit.quota or 0, window=limit.window or 0.0)

    def _wait_for_retry(self, nonce: str, error: AnchorLostCreateError, deadline: float) -> bool:
        """Look for what was lost, and wait a moment.

        :returns: whether the creation is to be tried again.
        """
        is_redirect = error.status is not None and 300 <= error.status < 400  # it would be one again
        pause = RETRY_PAUSE * 2 ** (error.tries - 1)
        if is_redirect or error.tries > self.settings.create_retries or time.monotonic() + pause >= deadline:
            return False
        self._find_lost(nonce)
        return not self._over.wait(pause)

    def _create(self, nonce: str, config: Mapping[str, Any], test: str, **marks: Any) -> Session:
        """Record, create, record: a creation that has its turn."""
        limits, run, api = self.limits, self._run, self._api
        try:
            self._check_budget(test)
            config = with_tags(config, self._tags(nonce, test))
            config = merge(self._own_defaults, config)
            intent = {
                "owner": self.name,
                "test": test,
                "base_url": api.base_url,
                "fingerprint": api.fingerprint,
                "run_id": self.settings.run_id,
                **marks,
            }
            with self._lock:  # once `finish` has had it, all intents of this process are on record
                if self._over.is_set():
                    raise AnchorError(f"no session was created for {printable(test)}: the run is over, and sweeps")
                run.append("intent", nonce, **intent)
                self._unconfirmed_creates.add(nonce)
            if not limits.is_current:
                self._unconfirmed_creates.discard(nonce)
                run.append("refused", nonce)
                raise AdmissionExpiredError
            try:
                created = api.create(config)
            except AnchorLostCreateError as error:
                run.append("lost", nonce, error=error.fields())
                raise
            except AnchorAPIError:
                self._unconfirmed_creates.discard(nonce)
                run.append("refused", nonce)
                raise
        except BaseException:
            # What may live nevertheless is the sweep's; the API's own limit is what others meet then.
            limits.release_slots([nonce])
            raise
        limits.record_success()
        signature = api.sign(nonce, created.id)
        record = run.known(nonce)
        record.apply("created", {"id": created.id, "signature": signature})
        if self._outcome_tags is not None:
            self._outcome_tags.created(nonce, list(config["session"]["tags"]))
        session = Session(record, created.cdp_url, created.live_view_url, time.time())
        with self._lock:
            self.sessions[nonce] = session
            self._unconfirmed_creates.discard(nonce)
        try:
            run.append("created", nonce, id=created.id, signature=signature)
        except AnchorRegistryError:
            self._end([session], "test", END_TIMEOUT)
            raise
        return session

    def plan(self, current: Wanted | None, upcoming: Sequence[Wanted]) -> None:
        """Create ahead what the next tests will ask for.

        :param current: what the test that begins will ask for; ``None`` if it needs nothing more.
        :param upcoming: what the tests after it will ask for.
        """
        with self._lock:
            if self._prefetch is None:
                end, is_crowded = self.end_later, self.limits.is_crowded
                self._prefetch = Prefetch(
                    self.settings.prefetch, self._create_ahead, lambda one: end([one]), is_crowded
                )
        self._prefetch.plan(current, upcoming)

    def _create_ahead(self, wanted: Wanted) -> Session | None:
        if self._is_used_up:
            return None
        nonce = new_nonce(self._run.folder.name)
        began = self.limits.try_admit_ahead(nonce)
        if began is None:
            return None
        try:
            return self._create(nonce, wanted.config, wanted.test, ahead=True)
        except AdmissionExpiredError:
            return None
        except AnchorAPIError as error:
            if error.limit is None:
                raise
            self._record_rate_limited(nonce, began, error.limit)
            return None

    def end(self, nonces: Iterable[str], *, ended_by: str, timeout: float) -> dict[str, AnchorAPIError]:
        """End sessions within *timeout* seconds in all, and return the failures by nonce."""
        sessions = [session for nonce in nonces if (session := self.sessions.get(nonce))]
        if len(sessions) != 1:
            return self._end(sessions, ended_by, timeout) if sessions else {}
        with sessions[0].lock:
            return {} if sessions[0].ended else self._end(sessions, ended_by, timeout)

    def _end(self, sessions: list[Session], ended_by: str, timeout: float) -> dict[str, AnchorAPIError]:
        sessions = [session for session in sessions if not self._is_kept(session)]
        failures = end_sessions(
            self._api,
            self._run,
            [session.record for session in sessions],
            policy=SweepPolicy(ended_by),
            deadline=time.monotonic() + timeout,
        )
        self.release_slots([session.record.nonce for session in sessions if session.ended])
        if failures and ended_by == "teardown" and self.limits.cap:
            self.limits.mark_slots(failures, "ending")
            self._retry_later([session for session in sessions if session.record.nonce in failures])
        return failures

    def keep(self, nonces: Iterable[str]) -> None:
        """Have sessions stay open, when they would be ended, for a person to look at."""
        for nonce in nonces:
            if (session := self.sessions.get(nonce)) is not None:
                session.keep = True

    def _is_kept(self, session: Session) -> bool:
        if not session.keep or session.ended:
            return False
        if not session.kept_until:
            nonce = session.record.nonce
            session.kept_until = self._keeper.keep(self, session)
            if not session.kept_until:
                return False
            self.limits.mark_slots([nonce], "kept")
            with suppress(AnchorRegistryError):
                self._run.append("kept", nonce, until=session.kept_until)
        return True

    def end_kept(self, session: Session, timeout: float) -> dict[str, AnchorAPIError]:
        """End a session that was kept, and return the failure."""
        session.keep = False
        with session.lock:
            return {} if session.ended else self._end([session], "keeper", timeout)

    def release_slots(self, nonces: Sequence[str]) -> None:
        """Release the slots of sessions that are over."""
        self.limits.release_slots(nonces)
        with self._lock:
            for nonce in nonces:
                self.sessions.pop(nonce, None)

    def _retry_later(self, failed: list[Session]) -> None:
        with self._lock:
            self._failed_ends += failed
            if self._retry_thread is None:
                self._retry_thread = threading.Thread(target=self._retry_ends, name="retry-ends", daemon=True)
                self._retry_thread.start()

    def _retry_ends(self) -> None:
        """End what a teardown could not, whenever a test waits for a slot."""
        while not self._over.wait(POLL_INTERVAL):
            with self._lock:
                self._failed_ends = [session for session in self._failed_ends if not session.ended]
                if not self._failed_ends:
                    self._retry_thread = None
                    return
            if time.monotonic() >= self._next_attempt and self.limits.is_crowded():
                self._next_attempt = time.monotonic() + END_AGAIN
                with self._lock:
                    failed, self._failed_ends = self._failed_ends, []
                self.end_later(failed)

    def end_later(self, sessions: Iterable[Session]) -> None:
        """End *sessions* in the background; what cannot be ended stays recorded."""
        sessions = list(sessions)
        self.limits.mark_slots([session.record.nonce for session in sessions], "ending")
        for session in sessions:
            self._ends.submit(partial(self._end_one, session))

    def _end_one(self, session: Session) -> None:
        with session.lock:  # a test that ends it just now does it once
            if not session.ended:
                self._end([session], "teardown", END_TIMEOUT)

    @property
    def left(self) -> set[str]:
        """The nonces of the sessions that may still run."""
        with self._lock:
            kept = {nonce for nonce, session in self.sessions.items() if session.kept_until}
            return (self.sessions.keys() - kept) | self._unconfirmed_creates

    def stop(self) -> None:
        """Begin nothing more."""
        with self._lock:
            self._over.set()

    def finish(self, timeout: float) -> None:
        """Begin nothing more, end what no test took, and wait for the ends under way; the sweep does the rest.

        :param timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        self.stop()
        if self._prefetch is not None:
            self._prefetch.close(timeout)
        self._ends.wait(max(deadline - time.monotonic(), 0.0))
        self._ends.stop()
