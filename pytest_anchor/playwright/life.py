"""The life of a launched browser: its close, its death, and what must be torn down for another to take its place."""

from __future__ import annotations

from asyncio import get_running_loop
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import AnchorError
from . import apis
from .screenshots import take_screenshots

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Coroutine

    from .sessions import Holder, Lease, Sessions

T = TypeVar("T")

IDLE = 0.5  # seconds without a test after which a browser is asked whether it lives
ATTRIBUTE = "_anchor_launched"
DEATH_WORDS = ("closed", "crashed", "disconnected")  # in Playwright's messages when a browser has gone


class LaunchedBrowser:
    """A browser of Playwright's on a session, from its launch until it is closed.

    :param holder: what launched it, and is to be torn down where it must be replaced.
    """

    def __init__(self, browser: Any, lease: Lease, holder: Holder | None, sessions: Sessions) -> None:
        self.browser = browser
        self.lease = lease
        self.holder = holder
        self.is_closed = False
        self.is_kept = False  # beyond the teardown of its holder, since that is not the last to need it
        self._sessions = sessions
        self._loop: AbstractEventLoop | None = get_running_loop() if apis.is_async(browser) else None
        self._verdict = ""
        self._disconnect = browser.close
        browser.close = self._replaced_close
        sessions.prepare(browser, lease)
        setattr(browser, ATTRIBUTE, self)

    def _replaced_close(self, *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        return apis.run(self.browser, self._close(*args, **options))

    async def _close(self, *args: Any, **options: Any) -> None:
        __tracebackhide__ = True
        if self.is_closed:
            return
        is_usable = self.browser.is_connected() and not self.lease.is_due
        self.is_closed = True
        is_well = False
        try:
            is_well = await self._disconnect_for_good(*args, **options)
        finally:
            is_usable = is_usable and is_well
            await apis.without_blocking(self.browser, lambda: self._sessions.give_back(self.lease, is_usable=is_usable))

    async def disconnect(self) -> None:
        """Close the browser, and leave the session to its factory."""
        if not self.is_closed:
            self.is_closed = True
            await self._disconnect_for_good()

    async def _disconnect_for_good(self, *args: Any, **options: Any) -> bool:
        """Close the browser even where Playwright has an error to raise first; returns whether it had none.

        Playwright raises an error of an event at the next call, and does not do what was called for. Ctrl-C may leave
        such an error of Playwright's own, which would turn the end of the run into a crash of pytest.
        """
        __tracebackhide__ = True
        try:
            await apis.settle(self._disconnect(*args, **options))
        except Exception as error:
            with suppress(Exception):  # it may be gone, and the first error counts
                await apis.settle(self._disconnect(*args, **options))
            if self._sessions.is_interrupted and apis.is_error(error):
                return False
            raise
        return True

    def forget(self) -> None:
        """Take in that its holder is torn down, whether it has closed the browser or not."""
        if not (self.is_closed or self.is_kept):
            self.is_closed = True
            self._sessions.give_back(self.lease, is_usable=False)  # something may still be connected

    @property
    def is_alive(self) -> bool:
        """Whether the browser answers. Playwright hears of a death only while it waits for something."""
        if not self.browser.is_connected():
            return False
        try:
            self.complete(self._ask())
        except Exception:  # noqa: BLE001 - whatever it is, nothing more can be done with this browser
            return False
        return bool(self.browser.is_connected())

    def complete(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do some work with the browser, and wait for it; ``None`` where its event loop runs, or is closed."""
        if self._loop is None:
            result: T = apis.run(self.browser, work)
            return result
        if self._loop.is_running() or self._loop.is_closed():
            work.close()
            return None
        return self._loop.run_until_complete(work)

    async def _ask(self) -> None:
        session = await apis.settle(self.browser.new_browser_cdp_session())
        await apis.settle(session.detach())

    def verdict(self) -> str:
        """Say what has become of the session of a browser that is gone; asks the API, which blocks."""
        if not self._verdict:
            session = self.lease.session
            try:
                session.end()
            except AnchorError as error:
                self._verdict = f"The connection to {session.label} is lost, and it may still run: {error}"
            else:
                self._verdict = (
                    f"{session.label[:1].upper()}{session.label[1:]} was over: a timeout of Anchor's has "
                    "ended it, or its browser has crashed. "
                    "Its timeouts are set by session={'timeout': {'max_duration': …, 'idle_timeout': …}}, in minutes."
                    if session.ended_by_itself
                    else f"The connection to {session.label} was lost while it ran; it is over now."
                )
        return self._verdict


class Browsers:
    """The launched browsers of a process that are not closed yet."""

    def __init__(self) -> None:
        self._all: list[LaunchedBrowser] = []
        self._failed: list[Holder] = []
        self._last_used = monotonic()

    def failed(self, holder: Holder | None) -> None:
        """Take in that a launch has failed; pytest would tell every test that shares the holder of the same failure."""
        if holder is not None and holder.outlives_tests:
            self._failed.append(holder)

    def add(self, launched: LaunchedBrowser) -> None:
        """Take in a launched browser, which its holder's teardown ends at the latest."""
        self._all.append(launched)
        if launched.holder is not None:
            launched.holder.request.addfinalizer(launched.forget)

    @property
    def open(self) -> list[LaunchedBrowser]:
        """Those that are not closed."""
        self._all = [one for one in self._all if not one.is_closed]
        return self._all

    def after_test(self) -> None:
        """Take in that a test has used the browsers just now."""
        self._last_used = monotonic()

    def before_test(self) -> None:
        """Tear down what holds a browser that is dead, or due, or was not launched: the next test sets it up anew.

        Fixtures that depend on it are torn down with it, as by pytest's own rules.
        """
        while self._failed:
            _tear_down(self._failed.pop(), is_dead=True)
        idle = monotonic() - self._last_used > IDLE
        for one in list(self.open):
            if one.holder is None or not one.holder.outlives_tests or one.is_closed:
                continue
            is_dead = not (one.is_alive if idle else one.browser.is_connected())
            if is_dead or one.lease.is_due:
                _tear_down(one.holder, is_dead=is_dead)

    def screenshots(self) -> dict[str, list[bytes]]:
        """What the pages of the open browsers show: see :func:`.take_screenshots`."""
        return take_screenshots(self.open)

    def explain(self, error: BaseException) -> list[str]:
        """Say what has become of the sessions whose browsers are gone, if *error* may have come of that."""
        may_be = any(word in str(error) for word in DEATH_WORDS)
        gone = [one for one in self.open if not (one.is_alive if may_be else one.browser.is_connected())]
        return [one.verdict() for one in gone]


def _tear_down(holder: Holder, *, is_dead: bool) -> None:
    try:
        holder.fixture.finish(holder.request)
    except Exception as error:
        if not (is_dead and is_playwrights(error)):  # what is gone cannot be closed
            raise


def is_playwrights(error: BaseException) -> bool:
    """Whether an exception, or each of a group of them, is Playwright's."""
    inner = getattr(error, "exceptions", None)
    return all(map(is_playwrights, inner)) if inner else apis.is_error(error)


class Connection:
    """A test's browser, until the test is torn down."""

    def __init__(self) -> None:
        self._browser: Any = None

    def keep(self, browser: Any) -> Any:
        """Return *browser*, which is to be closed by this."""
        self._browser = browser
        if (launched := getattr(browser, ATTRIBUTE, None)) is not None:  # else the suite has launched it its own way
            launched.is_kept = True
        return browser

    def close(self) -> Any:
        """Disconnect Playwright; the session's end follows."""
        return apis.run(self._browser, self._close())

    async def _close(self) -> None:
        if self._browser is None:
            return
        launched: LaunchedBrowser | None = getattr(self._browser, ATTRIBUTE, None)
        if launched is None:
            await apis.settle(self._browser.close())
            return
        if self._browser.is_connected():
            await launched.disconnect()
            return
        with suppress(Exception):  # what is gone cannot be closed, and the test has failed of it already
            await launched.disconnect()
