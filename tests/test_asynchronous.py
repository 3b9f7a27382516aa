"""Blocking calls from tasks of asyncio and trio."""

from __future__ import annotations

import asyncio
import threading

import pytest
from event_loops import DEADLINE, EVENT_LOOPS, cancel_when, in_asyncio

from pytest_anchor.asynchronous import current_loop, run_blocking


@pytest.mark.parametrize("run", EVENT_LOOPS)
def test_what_the_function_returns_and_raises_is_the_tasks(run):
    async def main() -> None:
        assert await run_blocking(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await run_blocking(lambda: 1 // 0)

    run(main)


@pytest.mark.parametrize("run", EVENT_LOOPS)
def test_the_loop_goes_on_meanwhile(run):
    async def main() -> None:
        go, loop = threading.Event(), current_loop()

        def function() -> bool:
            loop.call_soon(go.set)
            return go.wait(DEADLINE)

        assert await run_blocking(function)

    run(main)


@pytest.mark.parametrize("run", EVENT_LOOPS)
def test_a_cancelled_task_waits_for_its_thread(run):
    go, begun, seen = threading.Event(), threading.Event(), []

    def function() -> str:
        begun.set()
        go.wait(DEADLINE)
        seen.append("done")
        return "result"

    async def main() -> None:
        current_loop()
        threading.Timer(0.2, go.set).start()
        await run_blocking(function)

    run(lambda: cancel_when(begun.is_set, main))
    assert seen == ["done"]


def test_a_result_that_a_cancelled_task_cannot_take_is_discarded():
    go, begun, discarded = threading.Event(), threading.Event(), threading.Event()

    def function() -> threading.Event:
        begun.set()
        go.wait(DEADLINE)
        return discarded

    async def main() -> None:
        task = asyncio.create_task(run_blocking(function, discard=threading.Event.set))
        await asyncio.sleep(0)
        begun.wait(DEADLINE)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_asyncio(main)
    assert discarded.wait(DEADLINE)


def test_a_loop_that_is_gone_does_not_matter():
    go, done = threading.Event(), threading.Event()

    def function() -> None:
        go.wait(DEADLINE)
        threading.Timer(0.1, done.set).start()

    loop = asyncio.new_event_loop()
    coroutine = run_blocking(function)
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    go.set()
    assert done.wait(DEADLINE)
    task._log_destroy_pending = False
    coroutine.close()


def test_outside_of_a_task_it_says_where_it_belongs():
    with pytest.raises(RuntimeError, match="asyncio or trio"):
        run_blocking(lambda: 5).send(None)


def test_trio_as_a_guest_of_asyncio_is_told_apart():
    trio = pytest.importorskip("trio")
    seen = {}

    async def guest() -> None:
        seen["trio"] = type(current_loop()).__name__

    async def host() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=lambda outcome: done.set_result(outcome.unwrap()),
        )
        seen["asyncio"] = type(current_loop()).__name__
        await done

    in_asyncio(host)
    assert seen == {"asyncio": "AsyncioLoop", "trio": "TrioLoop"}
