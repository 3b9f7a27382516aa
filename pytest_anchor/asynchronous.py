"""Blocking calls from asyncio and trio, each in a thread of its own, so that no event loop ever waits for the broker.

As :mod:`.client` does, this uses only what was bound at import: a test may replace ``threading`` and freeze the clock.
"""

from __future__ import annotations

import sys
from _thread import start_new_thread
from asyncio import CancelledError, all_tasks, current_task, get_running_loop, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .delegation import THREAD, Delegation, WithdrawnError
from .other_tasks import can_end_a_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


async def run_blocking(function: Callable[[], T], *, discard: Callable[[T], object] = lambda _result: None) -> T:
    """Call *function* in a thread of its own, and wait for it as a task of asyncio or trio.

    What it asks the broker for counts as asked by the task. Where the task is cancelled, what it has asked for is
    withdrawn, and this returns once the thread is done, which takes a moment.

    :param discard: called in a thread with a result that the cancelled task can no longer take.
    :raises RuntimeError: it is awaited by neither.
    """
    __tracebackhide__ = True
    loop = current_loop()
    others_go_on = can_end_a_session(loop.task, loop.other_tasks())
    return await loop.run(_Call(function, discard, Delegation(loop.call_soon, others_go_on=others_go_on)))


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

    def __init__(self, function: Callable[[], T], discard: Callable[[T], object], delegation: Delegation) -> None:
        self._function = function
        self._discard = discard
        self._delegation = delegation
        self._values: list[T] = []
        self._error: BaseException | None = None
        self.withdraw = delegation.withdraw

    def start(self, on_done: Callable[[], object]) -> None:
        """Begin; *on_done* is called in the thread."""
        start_new_thread(self._run, (on_done,))

    def _run(self, on_done: Callable[[], object]) -> None:
        THREAD.delegation = self._delegation
        try:
            self._values.append(self._function())
        except BaseException as error:  # noqa: BLE001 - the task raises it
            self._error = error
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
        """Dispose of a result that the cancelled task does not take, without waiting for it."""
        if self._values:
            start_new_thread(self._discard, (self._values[0],))


class AsyncioLoop:
    """The running loop of asyncio."""

    def __init__(self) -> None:
        self._loop = get_running_loop()
        self.task: object = current_task()

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call a function; safe in any thread."""
        with suppress(RuntimeError):  # the loop is closed, and the task gone with it
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

    def other_tasks(self) -> Iterator[tuple[object, object, list[Any]]]:
        """Of each task but the current one, the task, its coroutine, and the tasks that it waits for."""
        for task in all_tasks(self._loop) - {self.task}:
            future = getattr(task, "_fut_waiter", None)  # asyncio has no public name for it before 3.14
            yield task, task.get_coro(), list(getattr(future, "_children", [future]))  # a gather has children


class TrioLoop:
    """The running loop of trio."""

    def __init__(self, trio: Any) -> None:
        self._trio = trio.lowlevel
        self._has_finished: type[Exception] = trio.RunFinishedError
        self._token = self._trio.current_trio_token()
        self.task: Any = self._trio.current_task()

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Have the loop call a function; safe in any thread."""
        with suppress(self._has_finished):
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

        call.start(lambda: self.call_soon(self._trio.reschedule, self.task))
        await self._trio.wait_task_rescheduled(abort)
        if cancel is not None and call.was_withdrawn:
            return cancel()
        return call.result()

    def other_tasks(self) -> Iterator[tuple[object, object, list[Any]]]:
        """Of each task but the current one, the task, its coroutine, and the tasks that it waits for."""
        tasks = [self._trio.current_root_task()]
        for task in tasks:
            children = [list(nursery.child_tasks) for nursery in task.child_nurseries]
            tasks += [child for nursery in children for child in nursery]
            # No public name tells that the body of a nursery is done.
            is_waiting = children and not getattr(task.child_nurseries[-1], "_nested_child_running", True)
            if task is not self.task:
                yield task, task.coro, children[-1] if is_waiting else []
