"""The handle of a session and the factory that makes it: what tests hold."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NoReturn

from .configuration import check_keywords, merge, with_tags
from .errors import AnchorError, rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from .client import Client

END_TIMEOUT = 30.0  # seconds for an end() that a test asks for itself
ANSWER_TIMEOUT = 150.0  # seconds that the API's answer to a creation may take


class _Life:
    """What a handle and its factory both know of a session."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.is_over = False
        self.is_ending = False  # in the background, or once it has been kept open for a while
        self.is_tests = True  # whether the test that runs has created or taken it
        self.ended_by_itself = False  # as it turned out when it was to be ended


class AnchorSession:
    """A browser session in Anchor's cloud, from its creation until it is ended.

    Use it as it is, or as a context manager that ends it; ``async with`` ends it by :meth:`aend`.
    """

    def __init__(self, client: Client, created: Mapping[str, Any], life: _Life, config: Mapping[str, Any]) -> None:
        self._client = client
        self._life = life
        self._config = config
        self._id: str = created["id"]
        self._created_at = datetime.fromtimestamp(created["created"], timezone.utc)
        hides = _SecretURL if client.settings.links else _HiddenURL
        self._cdp_url = hides(created["cdp_url"])
        self._live_view_url = hides(created["live_view_url"])

    @property
    def id(self) -> str:
        """The session's id: letters, digits, ``-`` and ``_``."""
        return self._id

    @property
    def nonce(self) -> str:
        """The name of the session's creation, by which the run's broker knows the session."""
        return self._life.nonce

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
        """When the API's answer arrived, by this machine's clock, in UTC; no test can freeze it."""
        return self._created_at

    @property
    def ended(self) -> bool:
        """Whether the session is confirmed to be over."""
        return self._life.is_over

    @property
    def is_open(self) -> bool:
        """Whether the session lives, as far as this process knows, and is not being ended in the background."""
        return not (self._life.is_over or self._life.is_ending)

    @property
    def configuration(self) -> Mapping[str, Any]:
        """What it was created with: the suite's defaults, the markers and the call's own keywords, merged."""
        return self._config

    @property
    def ended_by_itself(self) -> bool:
        """Whether it was over already when it was to be ended: by one of Anchor's timeouts, or a crash."""
        return self._life.ended_by_itself

    def end(self) -> None:
        """End the session. Ending it again does nothing; teardown does it anyway.

        :raises AnchorAPIError: it may still be running. It stays recorded, and teardown and the
            final sweep try again.
        """
        __tracebackhide__ = True
        if self._life.is_over:
            return
        for error in _end(self._client, [self._life], ended_by="test", timeout=END_TIMEOUT).values():
            raise error

    async def aend(self) -> None:
        """End the session as :meth:`end` does, from a task of asyncio or trio, whose event loop goes on meanwhile.

        Where the task is cancelled, the session is ended all the same.

        :raises AnchorAPIError: it may still be running. It stays recorded, and teardown and the
            final sweep try again.
        """
        __tracebackhide__ = True
        from .asynchronous import run_blocking

        await run_blocking(self.end)

    def end_later(self) -> None:
        """End the session in the background.

        :raises AnchorError: the broker cannot be asked.
        """
        if not self._life.is_over:
            self._client.request("end later", timeout=END_TIMEOUT, again=True, nonces=[self._life.nonce])
            self._life.is_ending = True

    def take(self) -> None:
        """Take in that the test which runs has it, though another has created it."""
        self._life.is_tests = True

    def __enter__(self) -> AnchorSession:  # noqa: PYI034 - not made to be inherited from
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        if error is not None and self._client.settings.keep:
            return  # the test may fail of it: teardown knows, and ends the session or leaves it open
        try:
            self.end()
        except AnchorError:
            if error is None:
                raise

    async def __aenter__(self) -> AnchorSession:  # noqa: PYI034 - as above
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        if error is not None and self._client.settings.keep:
            return
        try:
            await self.aend()
        except AnchorError:
            if error is None:
                raise

    @property
    def label(self) -> str:
        """What reports call the session: its id is left out where the links are."""
        return f"session {self.id}" if self._client.settings.links else "the session"

    def __repr__(self) -> str:
        shown = f"{self.id} " if self._client.settings.links else ""
        return f"<AnchorSession {shown}{'ended' if self.ended else 'open'}>"


class _SecretURL(str):
    """A URL with a key in it: pytest's ``--showlocals`` and assertions show the ``repr``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(f"{self.partition('?')[0]}?…") if "?" in self else super().__repr__()


class _HiddenURL(_SecretURL):
    """A URL of which the ``repr`` shows nothing."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr("…" if self else "")


class AnchorSessionFactory:
    """Creates sessions that are ended when the factory's fixture is torn down.

    Safe to call from several threads.
    """

    def __init__(
        self,
        client: Client,
        defaults: Mapping[str, Any],
        test: Callable[[], str],
        *,
        before_create: Callable[[], object] = lambda: None,
        after_create: Callable[[], object] = lambda: None,
        on_wait: Callable[[str], object] = lambda _text: None,
    ) -> None:
        self._client = client
        self._defaults = defaults
        self._test = test
        self._before_create = before_create
        self._after_create = after_create
        self._on_wait = on_wait
        self._sessions: list[tuple[_Life, AnchorSession]] = []
        self._of_test: list[tuple[_Life, AnchorSession]] = []  # and of the next ones, what is not ended by then
        self._closings = 0  # how often its sessions were ended

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
        :raises AnchorError: the run is over, or its broker cannot be started.
        :raises AnchorAPIError: the API refused, or was not reached; there is no session.
        """
        __tracebackhide__ = True
        check_keywords(unknown, "anchor_session()")
        given = {"session": session, "browser": browser, "integrations": integrations, "identities": identities}
        config = merge(self._defaults, {name: value for name, value in given.items() if value is not None})
        with_tags(config, [])  # refuses what has no such form, before anything is opened for it
        self._before_create()
        closings = self._closings
        created = self._create(config)
        life = _Life(created["nonce"])
        handle = AnchorSession(self._client, created, life, config)
        self._sessions.append((life, handle))
        self._of_test.append((life, handle))
        if self._closings != closings:  # a thread, or a task of a loop that outlives its test, has come too late
            handle.end_later()
        self._after_create()
        return handle

    def _create(self, config: Mapping[str, Any]) -> dict[str, Any]:
        __tracebackhide__ = True
        try:
            return self._client.request(
                "create",
                timeout=self._client.settings.create_timeout + ANSWER_TIMEOUT,
                on_note=self._on_wait,
                config=config,
                test=self._client.name_of(self._test()),
                is_self_blocked=self._client.is_self_blocked,
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise type(error)(f"the session's configuration cannot be sent: {error}") from None

    def __repr__(self) -> str:
        return f"<AnchorSessionFactory {len(self._sessions)} created>"

    @property
    def is_closed(self) -> bool:
        """Whether its fixture was torn down."""
        return self._closings > 0

    def of_test(self, *, requested: bool) -> list[AnchorSession]:
        """The sessions that the running test has, or has had.

        :param requested: whether it has requested this factory, and so all that was open when it began.
        """
        return [session for life, session in list(self._of_test) if requested or life.is_tests]

    def test_is_over(self) -> None:
        """Forget what the test has had, but for what the next one may have as well."""
        self._of_test = [(life, session) for life, session in list(self._of_test) if session.is_open]
        for life, _ in self._of_test:
            life.is_tests = False

    def close(self, timeout: float) -> dict[AnchorSession, Exception]:
        """End what is left of the factory's sessions, several at once.

        :param timeout: seconds for all together.
        :returns: those that could not be ended; they stay recorded.
        :raises AnchorError: the broker cannot be asked.
        """
        self._closings += 1
        left = {life: session for life, session in self._sessions if not life.is_over}
        failures = _end(self._client, list(left), ended_by="teardown", timeout=timeout) if left else {}
        return {left[life]: error for life, error in failures.items()}

    def close_later(self) -> None:
        """End what is left of the factory's sessions in the background.

        :raises AnchorError: the broker cannot be asked.
        """
        self._closings += 1
        if left := [life for life, _ in self._sessions if not life.is_over]:
            self._client.request("end later", timeout=END_TIMEOUT, again=True, nonces=[life.nonce for life in left])
        for life in left:
            life.is_ending = True


def _end(client: Client, lives: list[_Life], *, ended_by: str, timeout: float) -> dict[_Life, Exception]:
    """End sessions within *timeout* seconds in all, and return those that failed."""
    __tracebackhide__ = True
    answer = client.request(
        "end", timeout=timeout, again=True, nonces=[life.nonce for life in lives], ended_by=ended_by
    )
    failures = {life: rebuild(answer["failures"][life.nonce]) for life in lives if life.nonce in answer["failures"]}
    for life in lives:
        life.is_ending = life.nonce in answer["kept"]
        life.is_over = life not in failures and not life.is_ending
        life.ended_by_itself = life.nonce in answer["already"]
    return failures
