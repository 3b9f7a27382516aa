"""Sessions of failed tests that stay open for a person to look at, and are then ended."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from ..background import DaemonThreadPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from .owner import Owner, Session

POLL_INTERVAL = 0.5  # seconds
ROOM_INTERVAL = 2.0  # seconds in which a test that waits takes in that a slot is free
END_TIMEOUT = 30.0  # seconds
END_AGAIN = 5.0  # seconds until an end that has failed is tried again
ATTEMPTS = 3  # after which it is left to the reaper
ENDS_AT_ONCE = 16  # sessions


class Kept(NamedTuple):
    """A session that is kept.

    :param until: in seconds since the epoch, for people.
    :param due: the same in ``time.monotonic()`` seconds.
    """

    owner: Owner
    session: Session
    until: float
    due: float


class Keeper:
    """Ends each kept session when its time is over, or when a test waits for its slot. Safe to use in several threads.

    :param seconds: for how long sessions are kept.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._kept: dict[str, Kept] = {}  # by nonce
        self._attempts: dict[str, int] = {}
        self._ending: set[str] = set()  # nonces
        self._ends = DaemonThreadPool(ENDS_AT_ONCE, "kept-ends")
        self._thread: threading.Thread | None = None
        self._hurries = False

    @property
    def kept(self) -> dict[str, Kept]:
        """What is kept, by nonce."""
        with self._changed:
            return dict(self._kept)

    def keep(self, owner: Owner, session: Session) -> float:
        """Keep a session from now on.

        :returns: until when, in seconds since the epoch; 0 if it is to be ended now, as no thread can be started that
            would end it then.
        """
        kept = Kept(owner, session, time.time() + self._seconds, time.monotonic() + self._seconds)
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="keeper", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return 0.0
                self._thread = thread
            return self._kept.setdefault(session.record.nonce, kept).until

    def hurry(self) -> None:
        """Have all ended at once; takes no lock, so that a handler of signals may call it."""
        self._hurries = True

    def wait(self, should_continue: Callable[[], bool]) -> None:
        """Wait until nothing is kept any more."""
        with self._changed:
            while self._kept and should_continue():
                self._changed.wait(POLL_INTERVAL)

    def _work(self) -> None:
        next_room = 0.0  # when another may be ended early, in ``time.monotonic()`` seconds
        while True:
            with self._changed:
                if not self._kept:
                    self._thread = None
                    return
                kept = [one for nonce, one in self._kept.items() if nonce not in self._ending]
            now = time.monotonic()
            due = [one for one in kept if one.due <= now or self._hurries or one.session.ended]
            if kept and not due and now >= next_room and _is_crowded(kept[0].owner):
                due = [min(kept, key=lambda one: one.due)]
                next_room = now + ROOM_INTERVAL
            for one in due:
                with self._changed:
                    self._ending.add(one.session.record.nonce)
                self._ends.submit(partial(self._end, one))
            time.sleep(POLL_INTERVAL)

    def _end(self, kept: Kept) -> None:
        nonce = kept.session.record.nonce
        try:
            has_failed = bool(kept.owner.end_kept(kept.session, END_TIMEOUT))
        except Exception:  # noqa: BLE001 - whatever it is, it is tried again, and then the reaper's
            has_failed = True
        with self._changed:
            self._ending.discard(nonce)
            self._attempts[nonce] = self._attempts.get(nonce, 0) + 1
            if has_failed and self._attempts[nonce] < ATTEMPTS and not self._hurries:
                self._kept[nonce] = kept._replace(due=time.monotonic() + END_AGAIN)
            else:
                del self._kept[nonce]
            self._changed.notify_all()


def _is_crowded(owner: Owner) -> bool:
    try:
        return owner.limits.is_crowded()
    except Exception:  # noqa: BLE001 - without it, each is ended in its time all the same
        return False
