"""The handle of a session and the factory that makes it: intent, create, record, end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from .errors import (
    AnchorAPIError,
    AnchorConfigError,
    AnchorError,
    AnchorLostCreateError,
    AnchorRegistryError,
    printable,
)
from .locks import CAN_TELL
from .settings import KEYWORDS, check_key
from .tags import TAG, new_nonce, new_tag, run_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from .api import AnchorAPI
    from .background import Pool
    from .limits import Limits
    from .prefetch import Prefetch, Wanted
    from .registry import Record, Run
    from .settings import Settings

END_TIMEOUT = 30.0  # seconds for an end() that a test asks for itself, or that goes on in the background
END_AGAIN = 2.0  # seconds between attempts to end what a teardown could not, while somebody waits for its slot
LOOK_AGAIN = 0.25  # seconds between looks at whether anybody does
ENDS_AT_ONCE = 16  # sessions that are ended in the background at the same time
WORTH_TELLING = 0.1  # seconds of waiting


class AnchorSession:
    """A browser session in Anchor's cloud, from its creation until it is ended.

    Use it as it is, or as a context manager that ends it.
    """

    def __init__(self, owner: Owner, record: Record, cdp_url: str, live_view_url: str) -> None:
        self._owner = owner
        self._record = record
        self._lock = threading.RLock()
        self._created_at = datetime.now(timezone.utc)
        self._cdp_url = _SecretURL(cdp_url)
        self._live_view_url = _SecretURL(live_view_url)

    @property
    def id(self) -> str:
        """The session's id: letters, digits, ``-`` and ``_``."""
        return str(self._record.id)

    @property
    def cdp_url(self) -> str:
        """The WebSocket URL for the Chrome DevTools Protocol.

        It contains the API key: its ``repr`` hides it, printing it does not.
        """
        return self._cdp_url

    @property
    def live_view_url(self) -> str:
        """The URL at which a person can watch the session, ``""`` if there is none."""
        return self._live_view_url

    @property
    def created_at(self) -> datetime:
        """When the API's answer arrived, by this machine's clock, in UTC."""
        return self._created_at

    @property
    def ended(self) -> bool:
        """Whether the session is confirmed to be over."""
        return self._record.state == "ended"

    def end(self) -> None:
        """End the session. Ending it again does nothing; teardown does it anyway.

        :raises AnchorAPIError: it may still be running. It stays recorded, and teardown and the
            final sweep try again.
        """
        __tracebackhide__ = True
        with self._lock:
            if self.ended:
                return
            error = self._owner.end([self], how="test", timeout=END_TIMEOUT).get(self)
        if error is not None:
            raise error.with_traceback(None)  # that of the thread that asked tells nothing

    def __enter__(self) -> AnchorSession:  # noqa: PYI034 - not made to be inherited from
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        try:
            self.end()
        except AnchorError:
            if error is None:
                raise

    def __repr__(self) -> str:
        return f"<AnchorSession {self.id} {'ended' if self.ended else 'open'}>"


class _SecretURL(str):
    """A URL with a key in it: pytest's ``--showlocals`` and assertions show the ``repr``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(f"{self.partition('?')[0]}?…") if "?" in self else super().__repr__()


class AnchorSessionFactory:
    """Creates sessions that are ended when the factory's fixture is torn down.

    Safe to call from several threads.
    """

    def __init__(
        self,
        owner: Owner,
        defaults: Mapping[str, Any],
        test: Callable[[], str],
        after_create: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._defaults = defaults
        self._test = test
        self._after_create = after_create
        self._sessions: list[AnchorSession] = []

    def __call__(
        self,
        *,
        session: Mapping[str, Any] | None = None,
        browser: Mapping[str, Any] | None = None,
        integrations: list[Mapping[str, Any]] | None = None,
        identities: list[Mapping[str, Any]] | None = None,
        **unknown: NoReturn,
    ) -> AnchorSession:
        """Create a session; blocks until its browser is ready.

        The keywords are those of Anchor's ``POST /v1/sessions`` and of the official SDK's
        ``create_session``. They win over the ``anchor`` marker, and that over the fixture
        ``anchor_session_defaults``; mappings merge deeply, ``tags`` are joined.

        :raises TypeError: an unknown keyword, or a value that JSON has no form for; so does ValueError.
        :raises AnchorConfigError: there is no usable API key.
        :raises AnchorRegistryError: the session could not be recorded, so there is none.
        :raises AnchorLimitError: the plan allows no further session in the time there is to wait.
        :raises AnchorLostCreateError: no usable answer came; a session may exist, and is looked for.
        :raises AnchorError: the run is over, and its last sweep has begun.
        :raises AnchorAPIError: the API refused, or was not reached; there is no session.
        """
        __tracebackhide__ = True
        check_keywords(unknown, "anchor_session()")
        given = {"session": session, "browser": browser, "integrations": integrations, "identities": identities}
        config = merge(self._defaults, {name: value for name, value in given.items() if value is not None})
        handle = self._owner.create(config, self._test())
        self._sessions.append(handle)
        self._after_create()
        return handle

    def __repr__(self) -> str:
        return f"<AnchorSessionFactory {len(self._sessions)} created>"

    def close(self, timeout: float) -> dict[AnchorSession, AnchorAPIError]:
        """End what is left of the factory's sessions, several at once.

        :param timeout: seconds for all together.
        :returns: those that could not be ended; they stay recorded.
        """
        left = [session for session in self._sessions if not session.ended]
        return self._owner.end(left, how="teardown", timeout=timeout) if left else {}

    def close_later(self) -> None:
        """End what is left of the factory's sessions in the background."""
        if left := [session for session in self._sessions if not session.ended]:
            self._owner.end_later(left)


class Owner:
    """One process of a run that creates sessions. Nothing is opened before the first is asked for.

    :param before_create: called before each creation that a test asks for, in its thread.
    :param tell: told what a test waits for, again and again once that takes long.
    """

    def __init__(
        self,
        settings: Settings,
        before_create: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.settings = settings
        self._before_create = before_create
        self._tell = tell
        self._lock = threading.RLock()
        self._run: Run | None = None
        self._api: AnchorAPI | None = None
        self._limits: Limits | None = None
        self._prefetch: Prefetch[AnchorSession] | None = None
        self._ends: Pool | None = None
        self._unwatched = settings.local or not settings.reaper  # a local backend goes with its run by itself
        self._users: WeakSet[threading.Thread] = WeakSet()
        self._left: list[AnchorSession] = []  # that a teardown could not end
        self._left_again = 0.0  # when those may be tried again, in ``time.monotonic()`` seconds
        self._keeper: threading.Thread | None = None  # of those
        self._open: dict[str, Record] = {}  # of the sessions that are not known to be over, by nonce
        self._unsure: set[str] = set()  # nonces of creations that nobody knows the end of
        self._over = threading.Event()

    def join(self) -> Run:
        """The run's record, with this owner's lock held.

        :raises AnchorRegistryError: the registry cannot be used.
        """
        __tracebackhide__ = True
        with self._lock:
            if self._run is None:
                if not CAN_TELL:
                    raise AnchorRegistryError(
                        "this system cannot tell which processes live by the locks that they hold, so no session "
                        "that is created here would be safe: run on Linux or macOS, or in WSL on Windows."
                    )
                # Imported here and below: a run that creates no session pays for neither filelock nor requests.
                from .registry import Run

                run = Run(self.settings.folder, self.settings.owner)
                run.join()
                self._run = run
            return self._run

    def open(self) -> tuple[Run, AnchorAPI]:
        """The run's record and the API.

        :raises AnchorConfigError: there is no usable key, or no local backend.
        :raises AnchorRegistryError: the registry cannot be used.
        """
        __tracebackhide__ = True
        with self._lock:
            key = check_key(self.settings.api_key)
            run = self.join()
            if self._api is None:
                from .api import AnchorAPI

                base_url = self.settings.base_url
                if self.settings.local:
                    from .local.launch import local_base_url

                    base_url = local_base_url(run.folder, key, self.settings.chromium)
                self._api = AnchorAPI(base_url, key)
            return run, self._api

    @property
    def limits(self) -> Limits:
        """What the account allows, as far as is known; the first use asks the API for the plan's cap."""
        with self._lock:
            if self._limits is None:
                from .limits import Limits, account_of, plan_cap

                settings = self.settings
                run, api = self.open()
                self._limits = Limits(
                    run.folder if settings.local else run.folder.parent,
                    run.folder,
                    settings.owner,
                    account=account_of(api),
                    base_url=api.base_url,
                    cap=plan_cap(api, run) if settings.max_sessions is None else settings.max_sessions,
                    timeout=settings.create_timeout,
                )
            return self._limits

    def create(self, config: Mapping[str, Any], test: str) -> AnchorSession:
        """A session for *test*, new or created ahead: see :class:`AnchorSessionFactory` for what is raised."""
        __tracebackhide__ = True
        check_config(config)
        self._before_create()
        self._note_user()
        run, api = self.open()
        self._see_to_reaper(run, api)
        if self._prefetch is not None and (session := self._prefetch.take(config)) is not None:
            self._give(session, test)
            return session
        return self._create_in_turn(config, test)

    def _give(self, session: AnchorSession, test: str) -> None:
        record = session._record
        record.test, record.ahead = test, False
        self.limits.use([record.nonce], "")
        with suppress(AnchorRegistryError):  # it is recorded, as created for the test before it
            self.join().append("taken", record.nonce, test=test)

    def _create_in_turn(self, config: Mapping[str, Any], test: str) -> AnchorSession:
        __tracebackhide__ = True
        run = self.join()
        waiting = self.limits.waiting(test, self._tell)
        nonce = new_nonce(run.folder.name)
        try:
            while True:
                waiting.begin(nonce, stuck=self._is_stuck, meanwhile=self._free_slots)
                try:
                    return self._create(nonce, config, test)
                except AnchorAPIError as error:
                    if error.limit is None:
                        raise
                    waiting.refusal = error.reason
                    self.limits.met(nonce, waiting.began, error.limit)
                nonce = new_nonce(run.folder.name)
        finally:
            if waiting.seconds >= WORTH_TELLING:
                with suppress(AnchorRegistryError):
                    run.append("waited", nonce, seconds=round(waiting.seconds, 3))

    def _create(self, nonce: str, config: Mapping[str, Any], test: str, **marks: Any) -> AnchorSession:
        """Record, create, record: a creation that has its turn."""
        __tracebackhide__ = True
        from .registry import Record

        limits = self.limits
        try:
            run, api = self.open()
            config = with_tags(config, [TAG, run_tag(self.settings.run_id), new_tag(nonce)])
            intent = {
                "owner": self.settings.owner,
                "test": test,
                "time": time.time(),
                "base_url": api.base_url,
                "fingerprint": api.fingerprint,
                "run_id": self.settings.run_id,
                "place": run.place,
                **marks,
            }
            with self._lock:  # once `finish` has had it, all intents of this process are on record
                if self._over.is_set():
                    raise AnchorError(f"no session was created for {printable(test)}: the run is over, and sweeps")
                run.append("intent", nonce, **intent)
                self._unsure.add(nonce)
            try:
                created = api.create(config)
            except AnchorLostCreateError as error:
                run.append("lost", nonce, time=time.time(), error=error.fields())
                raise
            except AnchorAPIError:
                self._unsure.discard(nonce)
                run.append("refused", nonce)
                raise
        except BaseException:
            # What may live nevertheless is the sweep's; the API's own limit is what others meet then.
            limits.let_go([nonce])
            raise
        limits.succeeded()
        seal = api.seal(nonce, created.id)
        record = Record(nonce, id=created.id, seal=seal, state="open", **intent)
        with self._lock:
            self._open[nonce] = record
            self._unsure.discard(nonce)
        session = AnchorSession(self, record, created.cdp_url, created.live_view_url)
        try:
            run.append("created", nonce, id=created.id, seal=seal)
        except AnchorRegistryError:
            self._end(run, api, [session], "test", END_TIMEOUT)
            raise
        return session

    def _see_to_reaper(self, run: Run, api: AnchorAPI) -> None:
        if self._unwatched:
            return
        from . import reaper

        with self._lock:
            told = {"run_id": self.settings.run_id, "base_url": api.base_url, "key": check_key(self.settings.api_key)}
            self._unwatched = not reaper.ensure(run.folder, remove=self.settings.own_registry, **told)

    def _is_stuck(self) -> bool:
        """Whether no session of this process can be ended while the calling thread waits."""
        with self._lock:
            users = {one for one in self._users if one.is_alive()}
        return users == {threading.main_thread()}

    def _note_user(self) -> None:
        with self._lock:
            self._users.add(threading.current_thread())

    def _free_slots(self) -> None:
        """What can be done for a test that waits."""
        if self._prefetch is not None:
            self._prefetch.drop_ready()

    def let_go(self, nonce: str) -> None:
        """Free the slot of a session that a sweep has ended."""
        if self._limits is not None:
            self._limits.let_go([nonce])

    def plan(self, current: Wanted | None, coming: Sequence[Wanted]) -> None:
        """Create ahead what the next tests will ask for; nothing is before a test has created a session.

        :param current: what the test that begins will ask for; ``None`` if it needs nothing more.
        :param coming: what those after it will.
        """
        if not self.settings.prefetch or self._limits is None:
            return
        with self._lock:
            if self._prefetch is None:
                from .prefetch import Prefetch

                create = self._create_ahead
                end, is_crowded = self.end_later, self.limits.is_crowded
                self._prefetch = Prefetch(self.settings.prefetch, create, lambda one: end([one]), is_crowded)
        self._prefetch.plan(current, coming)

    def _create_ahead(self, wanted: Wanted) -> AnchorSession | None:
        limits, nonce = self.limits, new_nonce(self.join().folder.name)
        began = limits.begin_now(nonce)
        if began is None:
            return None
        try:
            return self._create(nonce, wanted.config, wanted.test, ahead=True)
        except AnchorAPIError as error:
            if error.limit is None:
                raise
            limits.met(nonce, began, error.limit)
            return None

    def end(self, sessions: list[AnchorSession], *, how: str, timeout: float) -> dict[AnchorSession, AnchorAPIError]:
        """End *sessions* within *timeout* seconds in all, and return those that failed."""
        self._note_user()
        return self._end(*self.open(), sessions, how, timeout)

    def _end(
        self, run: Run, api: AnchorAPI, sessions: list[AnchorSession], how: str, timeout: float
    ) -> dict[AnchorSession, AnchorAPIError]:
        from .sweep import end_session, end_sessions

        deadline = time.monotonic() + timeout
        if len(sessions) == 1:
            error = end_session(api, run, sessions[0]._record, how=how, deadline=deadline)
            failures = {sessions[0]: error} if error else {}
        else:
            by_nonce = {session._record.nonce: session for session in sessions}
            records = [session._record for session in sessions]
            failed = end_sessions(api, run, records, how=how, deadline=deadline)
            failures = {by_nonce[nonce]: error for nonce, error in failed.items()}
        limits = self.limits
        over = [one._record.nonce for one in sessions if one.ended]
        limits.let_go(over)
        with self._lock:
            for nonce in over:
                self._open.pop(nonce, None)
        if failures and how == "teardown" and limits.cap:
            limits.use((one._record.nonce for one in failures), "ending")
            self._keep(failures)
        return failures

    def _keep(self, failures: Iterable[AnchorSession]) -> None:
        with self._lock:
            self._left += failures
            if self._keeper is None or not self._keeper.is_alive():
                self._keeper = threading.Thread(target=self._try_again, name="pytest-anchor-again", daemon=True)
                with suppress(RuntimeError):  # no thread can be started: they are the sweep's
                    self._keeper.start()

    def _try_again(self) -> None:
        """End what a teardown could not, whenever anybody waits for a slot."""
        while not self._over.wait(LOOK_AGAIN):
            with self._lock:
                self._left = [one for one in self._left if not one.ended]
                if not self._left:
                    self._keeper = None
                    return
            if time.monotonic() >= self._left_again and self.limits.is_crowded():
                self._left_again = time.monotonic() + END_AGAIN
                with self._lock:
                    left, self._left = self._left, []
                self.end_later(left)

    def end_later(self, sessions: list[AnchorSession]) -> None:
        """End *sessions* in the background; what cannot be ended stays recorded."""
        with self._lock:
            run, api = self._run, self._api
            if run is None or api is None:
                return  # it is over, and the sweep's
            if self._ends is None:
                from .background import Pool

                self._ends = Pool(ENDS_AT_ONCE, "pytest-anchor-ends")
        self.limits.use((one._record.nonce for one in sessions), "ending")
        for session in sessions:
            self._ends.submit(partial(self._end_one, run, api, session))

    def _end_one(self, run: Run, api: AnchorAPI, session: AnchorSession) -> None:
        with session._lock:  # a test that ends it just now does it once
            if not session.ended:
                self._end(run, api, [session], "teardown", END_TIMEOUT)

    @property
    def has_open(self) -> bool:
        """Whether this process has created a session that is not known to be over."""
        return bool(self._open)

    @property
    def has_left(self) -> bool:
        """Whether it has, or does not know whether it has."""
        return bool(self._open or self._unsure)

    def restore(self) -> None:
        """Write down again what is open, where somebody has removed the record in the middle of the run.

        :raises AnchorRegistryError: the registry cannot be used any more.
        """
        with self._lock:
            if self._run is None or self._run.in_place or not (self._open or self.settings.folder.exists()):
                return
            api = self._api
            self.close()
            run = self.join()
            self._api = api
            for record in self._open.values():
                run.add(record)

    def finish(self, timeout: float) -> None:
        """Begin nothing more, end what nobody took, and wait for the ends under way; what is left is the sweep's.

        :param timeout: seconds.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._over.set()
        if self._prefetch is not None:
            self._prefetch.close(timeout)
        if self._ends is not None:
            self._ends.wait(max(deadline - time.monotonic(), 0.0))
            self._ends.stop()

    def close(self) -> None:
        """Let go of the registry; what is open stays recorded."""
        with self._lock:
            if self._run is not None:
                self._run.leave()
            self._run = self._api = None


def check_keywords(given: Mapping[str, Any], where: str) -> None:
    """Refuse keywords that Anchor's API does not have.

    :raises TypeError: with the valid ones.
    """
    __tracebackhide__ = True
    if unknown := sorted(set(given) - set(KEYWORDS)):
        raise TypeError(f"{where} got an unknown keyword {unknown[0]!r}; the valid ones are {', '.join(KEYWORDS)}")


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that cannot be sent.

    :raises AnchorConfigError: ``session`` or its ``tags`` have no such form.
    :raises TypeError: a value that JSON has no form for; so do ValueError and RecursionError say.
    """
    __tracebackhide__ = True
    try:
        json.dumps(with_tags(config, []), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"the session's configuration cannot be sent: {error}") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """*over* on top of *base*: mappings merge deeply, ``tags`` lists are joined, all else is replaced."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(value, Mapping):
            merged[name] = merge(below if isinstance(below, Mapping) else {}, value)
        elif name == "tags" and isinstance(below, (list, tuple)) and isinstance(value, (list, tuple)):
            merged[name] = [*below, *(tag for tag in value if tag not in below)]
        else:
            merged[name] = value
    return merged


def with_tags(config: Mapping[str, Any], tags: list[str]) -> dict[str, Any]:
    """*config* with *tags* added to the session's own.

    :raises AnchorConfigError: ``session`` or its ``tags`` have no such form.
    """
    __tracebackhide__ = True
    session = config.get("session", {})
    if not isinstance(session, Mapping) or not isinstance(session.get("tags", []), (list, tuple)):
        raise AnchorConfigError("'session' must be a mapping, and its 'tags' a list of strings")
    return merge(config, {"session": {"tags": tags}})
