"""What watches a session's screen can be stopped at any moment, or the end of the session would wait for it for ever."""

from __future__ import annotations

import asyncio
import time

import pytest

from pytest_anchor.local.screen import set_within


@pytest.mark.parametrize("rounds", range(5))
def test_a_task_is_cancelled_though_it_has_just_got_what_it_waited_for(rounds: int):
    async def main() -> None:
        event = asyncio.Event()

        async def watch() -> None:
            while True:
                await set_within(event, 60.0)
                event.clear()

        task = asyncio.ensure_future(watch())
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5.0)
        assert done, "it goes on"

    asyncio.run(asyncio.wait_for(main(), 20.0))


def test_it_is_set_in_time_and_not_afterwards():
    async def main() -> None:
        event = asyncio.Event()
        before = time.monotonic()
        await set_within(event, 0.05)
        assert 0.04 < time.monotonic() - before < 5.0
        assert event.is_set()
        await set_within(event, 0.05)
        event.clear()
        await asyncio.sleep(0.1)
        assert not event.is_set()

    asyncio.run(main())
