"""Blocking calls from asyncio and trio, each in a thread of its own, so that no event loop ever waits for the broker.

As :mod:`.client` does, this uses only what was bound at import: a test may replace ``threading`` and freeze the clock.
"""

from __future__ import annotations

import sys
from _thread import get_ident, start_new_thread
from asyncio import CancelledError, current_task, get_running_loop, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .client import DELEGATION, Delegation, WithdrawnError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_blocking(function: Callable[[], T], *, discard: Callable[[T], object] = lambda _result: None) -> T:
    """Call *function* in a thread of its own, and wait for it as a task of asyncio or trio.

    Where the task is cancelled, the request that the function has sent to the broker is withdrawn; this returns when
    the thread is done, which that makes soon.

    :param discard: called in a thread with a result that the cancelled task can no longer take.
    :raises RuntimeError: it is awaited by neither.
    """
    __tracebackhide__ = True
    return await current_loop().run(_Call(function, discard))


def current_loop() -> AsyncioLoop | TrioLoop:
    """The event loop of the running task.

    :raises RuntimeError: there is none.
    """
    # Each of the two can run inside the other: the task that runs tells which is meant.
    with suppress(RuntimeError):
        if current_task() is not None:
            return AsyncioLoop()
    trio = sys.modules.get("trio")
    if trio is not None:
        with suppress(RuntimeError):
            return TrioLoop(trio)
    raise RuntimeError("this is to be awaited in a task of asyncio or trio: use the fixture without async_ elsewhere")


class _Call(Generic[T]):
    """A call in a thread of its own, and what has come of it."""

    def __init__(self, function: Callable[[], T], discard: Callable[[T], object]) -> None:
        self._function = function
        self._discard = discard
        self._delegation = Delegation(get_ident())
        self._values: list[T] = []
        self._error: BaseException | None = None
        self.withdraw = self._delegation.withdraw

    def start(self, on_done: Callable[[], object]) -> None:
        """Begin; *on_done* is called in the thread."""
        start_new_thread(self._run, (on_done,))

    def _run(self, on_done: Callable[[], object]) -> None:
        DELEGATION.set(self._delegation)
        try:
            self._values.append(self._function())
        except BaseException as error:  # noqa: BLE001 - the task raises it
            self._error = error
        with suppress(RuntimeError):  # the loop is closed, and the task gone with it
            on_done()

    @property
    def was_withdrawn(self) -> bool:
        """Whether the call ended because it was withdrawn."""
        return isinstance(self._error, WithdrawnError)

    def result(self) -> T:
        """Return or raise what the function did."""
        __tracebackhide__ = True
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        return self._values[0]

    def discard(self) -> None:
        """See to a result that nobody takes, without waiting for it."""
        if self._values:
            start_new_thread(self._discard, (self._values[0],))


class AsyncioLoop:
    """The running loop of asyncio."""

    def __init__(self) -> None:
        self._loop = get_running_loop()

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call a function; safe in any thread."""
        self._loop.call_soon_threadsafe(function, *args)

    async def run(self, call: _Call[T]) -> T:
        """Run *call* and wait for it."""
        __tracebackhide__ = True
        done = self._loop.create_future()
        call.start(lambda: self.call_soon(done.set_result, None))
        try:
            await wait({done})
        except CancelledError:
            call.withdraw()
            while not done.done():
                with suppress(CancelledError):  # anyio cancels again and again
                    await wait({done})
            call.discard()
            raise
        return call.result()


class TrioLoop:
    """The running loop of trio."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio.lowlevel
        self._token = self._trio.current_trio_token()
        self._task = self._trio.current_task()

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call a function; safe in any thread."""
        self._token.run_sync_soon(function, *args)

    async def run(self, call: _Call[T]) -> T:
        """Run *call* and wait for it."""
        __tracebackhide__ = True
        cancel: Callable[[], T] | None = None

        def abort(raise_cancel: Callable[[], T]) -> Any:
            nonlocal cancel
            cancel = raise_cancel
            call.withdraw()
            return self._trio.Abort.FAILED  # the task goes on when the thread is done

        call.start(lambda: self.call_soon(self._trio.reschedule, self._task))
        await self._trio.wait_task_rescheduled(abort)
        if cancel is not None and call.was_withdrawn:
            return cancel()
        return call.result()
