"""Runs coroutines in asyncio and in trio, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import Any

import pytest

DEADLINE = 20.0  # seconds

Main = Callable[[], Coroutine[Any, Any, object]]


def in_asyncio(main: Main) -> None:
    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(DEADLINE, task.cancel)
        await main()

    asyncio.run(run())


def in_trio(main: Main) -> None:
    import trio

    async def run() -> None:
        with trio.fail_after(DEADLINE):
            await main()

    trio.run(run)


EVENT_LOOPS = [
    pytest.param(in_asyncio, id="asyncio"),
    pytest.param(in_trio, id="trio", marks=pytest.mark.skipif(find_spec("trio") is None, reason="needs trio")),
]


def is_trio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


async def sleep(seconds: float) -> None:
    if is_trio():
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        await sleep(0.01)


async def together(*mains: Main) -> None:
    """Run tasks at once, until all are done."""
    if is_trio():
        import trio

        async with trio.open_nursery() as nursery:
            for main in mains:
                nursery.start_soon(main)
    else:
        await asyncio.gather(*(main() for main in mains))


async def cancel_when(condition: Callable[[], object], main: Main) -> None:
    """Run a task, and cancel it once *condition* holds."""
    if is_trio():
        import trio

        async with trio.open_nursery() as nursery:
            nursery.start_soon(main)
            await wait_until(condition)
            nursery.cancel_scope.cancel()
    else:
        task = asyncio.create_task(main())
        await wait_until(condition)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
