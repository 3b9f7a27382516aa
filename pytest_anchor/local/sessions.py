"""The sessions: what is known of each, when it ends, and which are asked for."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .errors import ChromiumError, Refused
from .recording import Recordings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence

    from .chromium import Chromium, Launcher
    from .config import Config
    from .limits import RateLimit
    from .recording import Recording

RUNNING = "running"
COMPLETED = "completed"

_DEATH_WATCH = 0.1  # seconds


def now() -> datetime:
    """Return the time as the API writes it: UTC, to the millisecond."""
    moment = datetime.now(timezone.utc)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def stamp(moment: datetime) -> str:
    """Return *moment* in ISO 8601 as the API writes it."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(eq=False)
class Session:
    """One session, running or over.

    :param view: the secret part of its live view's address, which takes no key.
    :param viewed: whether somebody has opened the live view.
    """

    config: Config
    chromium: Chromium | None = None
    recording: Recording | None = None
    tags: tuple[str, ...] = ()
    view: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    viewed: bool = False
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    created: datetime = field(default_factory=now)
    status: str = RUNNING
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    connections: int = 0
    timer: asyncio.TimerHandle | None = None

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return (self.ended or time.monotonic()) - self.started


class Sessions:
    """All sessions of one backend.

    :param launcher: starts a Chromium for each session; ``None`` where sessions are mere records.
    :param rate: limits creations.
    :param cap: how many may run at once; ``None`` for any number.
    :param create_latency: seconds that a creation takes longer.
    :param end_latency: seconds that an end takes longer.
    :param credits_per_hour: what a session costs.
    """

    def __init__(
        self,
        launcher: Launcher | None = None,
        *,
        rate: RateLimit | None = None,
        cap: int | None = None,
        create_latency: float = 0.0,
        end_latency: float = 0.0,
        credits_per_hour: float = 0.0,
    ) -> None:
        self.cap = cap
        self.browserless = launcher is None
        self._launcher = launcher
        self._rate = rate
        self._create_latency = create_latency
        self._end_latency = end_latency
        self._credits_per_hour = credits_per_hour
        self._recordings = Recordings(launcher.folder) if launcher else None
        self._views: dict[str, Session] = {}
        self._all: dict[str, Session] = {}
        self._running: dict[str, Session] = {}
        # A suite of thousands of sessions asks for its own by tag, over and over.
        self._tagged: dict[str, dict[str, Session]] = defaultdict(dict)
        self._starting: set[asyncio.Task[Session]] = set()
        # The event loop keeps weak references to tasks only.
        self._background: set[asyncio.Task[object]] = set()

    def create(self, config: Config) -> asyncio.Task[Session]:
        """Start a session; the task gives it when its browser is ready.

        :raises Refused: 429, a limit is reached. The task raises it with 500 if Chromium does not start.
        """
        starting = sum(not task.done() for task in self._starting)
        if self.cap is not None and len(self._running) + starting >= self.cap:
            raise Refused(429, f"Concurrent browsers limit reached: {self.cap} are running.")
        if self._rate:
            self._rate.admit()
        task = asyncio.get_running_loop().create_task(self._create(config))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        return task

    async def _create(self, config: Config) -> Session:
        if self._create_latency:
            await asyncio.sleep(self._create_latency)
        chromium = None
        if self._launcher:
            try:
                chromium = await self._launcher.start(config)
            except ChromiumError as error:
                raise Refused(500, str(error)) from error
        session = Session(config, chromium)
        if self._recordings and chromium and config.recording:
            session.recording = self._recordings.start(chromium)
        self._all[session.id] = self._running[session.id] = session
        self._views[session.view] = session
        self.tag(session, config.tags)
        self._arm(session)
        if chromium:
            self._spawn(self._end_with(session, chromium))
        return session

    async def end(self, session: Session) -> bool:
        """End *session* with its browser and profile; say whether it was running."""
        if self._end_latency:
            await asyncio.sleep(self._end_latency)
        return await self._end(session)

    async def end_all(self) -> None:
        """End every running session."""
        await asyncio.gather(*map(self.end, self._running.values()))

    async def _end(self, session: Session) -> bool:
        if session.status != RUNNING:
            return False
        session.status = COMPLETED
        session.ended = time.monotonic()
        del self._running[session.id]
        if session.timer:
            session.timer.cancel()
        if self._recordings and session.recording:
            await self._recordings.finish(session.recording)
        if session.chromium:
            await session.chromium.stop()
        return True

    async def close(self) -> None:
        """End everything without latency, creations under way included, and take no more."""
        self.cap = 0
        if self._recordings:
            self._recordings.give_up()
        for task in tuple(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*map(self._end, tuple(self._running.values())))
        if self._recordings:
            await self._recordings.close()
        if self._launcher:
            await self._launcher.close()

    def get(self, session_id: str) -> Session | None:
        """Return the session of that id, running or over."""
        return self._all.get(session_id)

    def viewed_at(self, view: str) -> Session | None:
        """Return the session with that live view."""
        return self._views.get(view)

    def tag(self, session: Session, tags: tuple[str, ...]) -> None:
        """Give *session* these tags instead of those it has."""
        for tag in session.tags:
            self._tagged[tag].pop(session.id, None)
        session.tags = tags
        for tag in tags:
            self._tagged[tag][session.id] = session

    def cost(self, session: Session) -> float:
        """Return the credits that *session* has used; they are counted at its end."""
        return 0 if session.status == RUNNING else round(session.seconds / 3600 * self._credits_per_hour, 6)

    def running(self, session_id: str) -> Session | None:
        """Return the session of that id if it runs."""
        return self._running.get(session_id)

    def find(
        self,
        tags: Sequence[str] = (),
        created_from: datetime | None = None,
        created_to: datetime | None = None,
    ) -> Iterator[Session]:
        """Yield the sessions with all of *tags* that were created in that time, oldest first."""
        # The rarest tag leaves the fewest to look at.
        pool = min((self._tagged.get(tag, {}) for tag in tags), key=len, default=self._all)
        for session in sorted(pool.values(), key=lambda session: session.started):  # tags may have come later
            if all(session.id in self._tagged[tag] for tag in tags) and (
                (created_from is None or created_from <= session.created)
                and (created_to is None or session.created <= created_to)
            ):
                yield session

    def connected(self, session: Session, change: int) -> None:
        """Count a CDP connection that came (1) or went (-1)."""
        session.connections += change
        self._arm(session)

    def _arm(self, session: Session) -> None:
        if session.timer:
            session.timer.cancel()
            session.timer = None
        config, limits = session.config, []
        if config.max_duration is not None:
            limits.append(session.started + config.max_duration - time.monotonic())
        if config.idle_timeout is not None and not session.connections:
            limits.append(config.idle_timeout)
        if limits and session.status == RUNNING:
            loop = asyncio.get_running_loop()
            session.timer = loop.call_later(min(limits), lambda: self._spawn(self._end(session)))

    def _spawn(self, work: Coroutine[object, object, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _end_with(self, session: Session, chromium: Chromium) -> None:
        while session.status == RUNNING:
            if not chromium.alive:
                await self._end(session)
            await asyncio.sleep(_DEATH_WATCH)
