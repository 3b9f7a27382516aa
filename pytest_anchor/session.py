"""The handle of a session and the factory that makes it: intent, create, record, end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import AnchorAPIError, AnchorConfigError, AnchorError, AnchorLostCreateError, AnchorRegistryError
from .settings import KEYWORDS, check_key
from .tags import TAG, new_nonce, new_tag, run_tag

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .api import AnchorAPI
    from .registry import Record, Run
    from .settings import Settings

END_TIMEOUT = 30.0  # seconds for an end() that a test asks for itself, retries included


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

    def __init__(self, owner: Owner, defaults: Mapping[str, Any], test: Callable[[], str]) -> None:
        self._owner = owner
        self._defaults = defaults
        self._test = test
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
        :raises AnchorLostCreateError: no usable answer came; a session may exist, and is looked for.
        :raises AnchorAPIError: the API refused, or was not reached; there is no session.
        """
        __tracebackhide__ = True
        check_keywords(unknown, "anchor_session()")
        given = {"session": session, "browser": browser, "integrations": integrations, "identities": identities}
        config = merge(self._defaults, {name: value for name, value in given.items() if value is not None})
        handle = self._owner.create(config, self._test())
        self._sessions.append(handle)
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


class Owner:
    """One process of a run that creates sessions. Nothing is opened before the first is asked for.

    :param before_create: called before each creation.
    """

    def __init__(self, settings: Settings, before_create: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._before_create = before_create
        self._lock = threading.RLock()
        self._run: Run | None = None
        self._api: AnchorAPI | None = None
        self._unwatched = settings.local or not settings.reaper  # a local backend goes with its run by itself

    def join(self) -> Run:
        """The run's record, with this owner's lock held.

        :raises AnchorRegistryError: the registry cannot be used.
        """
        with self._lock:
            if self._run is None:
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

    def create(self, config: Mapping[str, Any], test: str) -> AnchorSession:
        """Record, create, record: see :class:`AnchorSessionFactory` for what is raised."""
        __tracebackhide__ = True
        from .registry import Record

        self._before_create()
        run, api = self.open()
        self._see_to_reaper(run, api)
        nonce = new_nonce(run.folder.name)
        config = with_tags(config, [TAG, run_tag(self.settings.run_id), new_tag(nonce)])
        json.dumps(config, allow_nan=False)
        run.append(
            "intent",
            nonce,
            owner=self.settings.owner,
            test=test,
            time=time.time(),
            base_url=api.base_url,
            fingerprint=api.fingerprint,
            run_id=self.settings.run_id,
            place=run.place,
        )
        try:
            created = api.create(config)
        except AnchorLostCreateError as error:
            run.append("lost", nonce, time=time.time(), error=error.fields())
            raise
        except AnchorAPIError:
            run.append("refused", nonce)
            raise
        seal = api.seal(nonce, created.id)
        record = Record(
            nonce, owner=self.settings.owner, test=test, id=created.id, seal=seal, place=run.place, state="open"
        )
        session = AnchorSession(self, record, created.cdp_url, created.live_view_url)
        try:
            run.append("created", nonce, id=created.id, seal=seal)
        except AnchorRegistryError:
            self.end([session], how="test", timeout=END_TIMEOUT)
            raise
        return session

    def _see_to_reaper(self, run: Run, api: AnchorAPI) -> None:
        if self._unwatched:
            return
        from . import reaper

        with self._lock:
            told = {"run_id": self.settings.run_id, "base_url": api.base_url, "key": check_key(self.settings.api_key)}
            self._unwatched = not reaper.ensure(run.folder, remove=self.settings.own_registry, **told)

    def end(self, sessions: list[AnchorSession], *, how: str, timeout: float) -> dict[AnchorSession, AnchorAPIError]:
        """End *sessions* within *timeout* seconds in all, and return those that failed."""
        from .sweep import end_session, end_sessions

        run, api = self.open()
        deadline = time.monotonic() + timeout
        if len(sessions) == 1:
            error = end_session(api, run, sessions[0]._record, how=how, deadline=deadline)
            return {sessions[0]: error} if error else {}
        by_nonce = {session._record.nonce: session for session in sessions}
        records = [session._record for session in sessions]
        failures = end_sessions(api, run, records, how=how, deadline=deadline)
        return {by_nonce[nonce]: error for nonce, error in failures.items()}

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
    if unknown := sorted(set(given) - set(KEYWORDS)):
        raise TypeError(f"{where} got an unknown keyword {unknown[0]!r}; the valid ones are {', '.join(KEYWORDS)}")


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
    session = config.get("session", {})
    if not isinstance(session, Mapping) or not isinstance(session.get("tags", []), (list, tuple)):
        raise AnchorConfigError("'session' must be a mapping, and its 'tags' a list of strings")
    return merge(config, {"session": {"tags": tags}})
