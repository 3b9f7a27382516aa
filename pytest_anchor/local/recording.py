"""Recordings: pictures of a session while it runs, made into an MP4 once it is over."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..forwarding.cdp import CDPError
from .encoder import LARGEST, Picture, encode
from .screen import Screen

if TYPE_CHECKING:
    from .chromium import Chromium
    from .screen import Frame

INTERVAL = 0.25  # seconds between two pictures
MOST_BYTES = 256 << 20  # of a session's pictures; what follows them is not recorded
KEPT_BYTES = 1 << 30  # of all recordings; the oldest make room
_LAST_PICTURE = 1.0  # seconds that the end of a session waits for it


class Recording(Screen):
    """One session's recording, of which the files are in a folder of its own in *folder*."""

    def __init__(self, chromium: Chromium, folder: Path) -> None:
        super().__init__(chromium, interval=INTERVAL, quality=60, maxWidth=LARGEST, maxHeight=LARGEST)
        self.id = str(uuid.uuid4())
        self.secret = secrets.token_urlsafe(24)
        self.size = 0  # bytes of the MP4; 0 until there is one
        self.duration = 0.0  # seconds
        self.created = datetime.now(timezone.utc)
        self.state = "The session is not over yet: its recording is made after its end."
        self.failed = False
        self._folder = Path(tempfile.mkdtemp(dir=folder, prefix="recording-"))
        self._pictures: list[Picture] = []
        self._bytes = 0
        self._watching = asyncio.ensure_future(self.run())

    @property
    def path(self) -> Path:
        """The MP4, once :attr:`size` tells that there is one."""
        return self._folder / "recording.mp4"

    async def on_frame(self, frame: Frame) -> None:
        """Keep a picture.

        :raises OSError: it cannot be written; then the recording ends before the session does.
        """
        if self._bytes < MOST_BYTES:
            path = self._folder / f"{len(self._pictures)}.jpeg"
            path.write_bytes(frame.jpeg)
            self._bytes += len(frame.jpeg)
            self._pictures.append(Picture(time.monotonic(), path, frame.width, frame.height))

    async def stop(self) -> None:
        """Take the last picture, so that Chromium may go."""
        with suppress(CDPError, asyncio.TimeoutError, OSError):
            await asyncio.wait_for(self.take(), _LAST_PICTURE)
        await self.abandon()
        self.duration = time.monotonic() - self._pictures[0].time if self._pictures else 0.0
        self.state = "It is being made."

    async def abandon(self) -> None:
        """Watch no longer."""
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)

    async def make(self, given_up: threading.Event) -> None:
        """Make the MP4, unless that is *given_up*; whatever goes wrong is kept as :attr:`state`."""
        try:
            await asyncio.to_thread(encode, self._pictures, self.duration, self.path, given_up)
            self.size = self.path.stat().st_size
            self.created = datetime.now(timezone.utc)
        except Exception as error:  # noqa: BLE001 - a full disk, another encoder: the session itself went well
            self.failed = True
            self.state = f"It could not be made: {error}"
        finally:
            for picture in self._pictures:
                picture.path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove its files."""
        self.size = 0
        self.state = "It was removed to make room for later ones."
        shutil.rmtree(self._folder, ignore_errors=True)


class Recordings:
    """Those of one backend, in *folder*. They are made one after the other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._one_at_a_time = asyncio.Semaphore(1)
        self._given_up = threading.Event()
        self._making: set[asyncio.Task[None]] = set()
        self._made: list[Recording] = []

    def start(self, chromium: Chromium) -> Recording | None:
        """Begin to record; ``None`` where there is no encoder."""
        return Recording(chromium, self._folder) if is_available() else None

    async def finish(self, recording: Recording) -> None:
        """Stop recording, and make the MP4 in the background."""
        if self._given_up.is_set():
            await recording.abandon()
        else:
            await recording.stop()
            task = asyncio.ensure_future(self._make(recording))
            self._making.add(task)
            task.add_done_callback(self._making.discard)

    async def _make(self, recording: Recording) -> None:
        async with self._one_at_a_time:
            await recording.make(self._given_up)
        self._made.append(recording)
        while len(self._made) > 1 and sum(each.size for each in self._made) > KEPT_BYTES:
            self._made.pop(0).remove()

    def give_up(self) -> None:
        """Make no more of them."""
        self._given_up.set()

    async def close(self) -> None:
        """Wait until none is being made any more."""
        self.give_up()
        await asyncio.gather(*self._making, return_exceptions=True)


def is_available() -> bool:
    """Whether there is an encoder: the extra ``recording``."""
    return find_spec("av") is not None
