"""Blocking calls from tasks of asyncio and trio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import trio
from fault_server import FaultServer

from pytest_anchor.asynchronous import current_loop, run_blocking
from pytest_anchor.client import Client
from pytest_anchor.registry.journal import Run
from pytest_anchor.session import AnchorSessionFactory

DEADLINE = 20.0  # seconds


def in_asyncio(function: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(function(), DEADLINE)

    asyncio.run(main())


def in_trio(function: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async def main() -> None:
        with trio.fail_after(DEADLINE):
            await function()

    trio.run(main)


@pytest.fixture(params=[in_asyncio, in_trio], ids=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Coroutine[Any, Any, object]]], None]:
    return request.param


def test_what_the_function_returns_is_returned(run):
    async def test() -> None:
        assert await run_blocking(lambda: 5) == 5

    run(test)


def test_what_the_function_raises_is_raised(run):
    async def test() -> None:
        with pytest.raises(ZeroDivisionError):
            await run_blocking(lambda: 1 // 0)

    run(test)


def test_the_loop_goes_on_meanwhile(run):
    async def test() -> None:
        go, loop = threading.Event(), current_loop()

        def function() -> bool:
            loop.call_soon(go.set)
            return go.wait(DEADLINE)

        assert await run_blocking(function)

    run(test)


def test_outside_of_a_task_it_says_where_it_belongs():
    with pytest.raises(RuntimeError, match="asyncio or trio"):
        run_blocking(lambda: 5).send(None)


async def cancel_after(moment: Callable[[], object], function: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Await *function* in a task, and cancel that once *moment* has come."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(function)
            while not moment():
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        return
    task = asyncio.create_task(function())
    while not moment():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_task_withdraws_its_creation(run, server: FaultServer, client: Client, until):
    factory = AnchorSessionFactory(client, {}, lambda: "t.py::x")
    server.held["POST"] = threading.Event()
    before = time.monotonic()
    run(lambda: cancel_after(lambda: server.count("POST"), lambda: run_blocking(factory)))
    assert time.monotonic() - before < 10
    server.held.pop("POST").set()
    until(lambda: len(server.sessions) == 1 and not server.alive)
    until(lambda: [one.state for one in Run(client.settings.folder).read().records.values()] == ["ended"])
    assert client.is_self_blocked
    assert factory().id in server.alive
