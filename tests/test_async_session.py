"""The factory for asyncio and trio, as the tests of both meet it."""

from __future__ import annotations

import asyncio
import json
import threading
from functools import partial

import fault_server as faults
import pytest
from event_loops import DEADLINE, EVENT_LOOPS, cancel_when, in_asyncio, in_trio, sleep, together, wait_until
from fault_server import FaultServer

from pytest_anchor.async_session import AsyncAnchorSessionFactory
from pytest_anchor.client import Client
from pytest_anchor.errors import AnchorAPIError, AnchorLimitError
from pytest_anchor.registry.journal import Run
from pytest_anchor.session import AnchorSession, AnchorSessionFactory

each_loop = pytest.mark.parametrize("run", EVENT_LOOPS)


def states(client: Client) -> list[str]:
    return [record.state for record in Run(client.settings.folder).read().records.values()]


@pytest.fixture
def sync_factory(client: Client) -> AnchorSessionFactory:
    return AnchorSessionFactory(client, {}, lambda: "t.py::x")


@pytest.fixture
def factory(sync_factory: AnchorSessionFactory) -> AsyncAnchorSessionFactory:
    return AsyncAnchorSessionFactory(sync_factory)


@pytest.fixture
def limited(serve, settings) -> AsyncAnchorSessionFactory:
    """A factory that may have two sessions open at once."""
    client = serve(settings._replace(max_sessions=2, create_timeout=DEADLINE))
    return AsyncAnchorSessionFactory(AnchorSessionFactory(client, {}, lambda: "t.py::x"))


@each_loop
def test_sessions_are_created_and_ended(run, server: FaultServer, client: Client, factory):
    async def main() -> None:
        session = await factory(session={"tags": ["mine"]})
        assert server.alive == [session.id]
        assert "mine" in server.sessions[session.id].tags
        await session.aend()
        await session.aend()
        assert session.ended
        async with await factory() as other:
            assert server.alive == [other.id]
        with pytest.raises(ZeroDivisionError):
            async with await factory():
                raise ZeroDivisionError

    run(main)
    assert states(client) == ["ended"] * 3
    assert server.count("DELETE") == 3
    assert repr(factory) == "<AsyncAnchorSessionFactory 3 created>"


@each_loop
def test_errors_are_the_same(run, server: FaultServer, factory):
    async def main() -> None:
        with pytest.raises(TypeError, match=r"async_anchor_session\(\)"):
            await factory(sesion={})
        with pytest.raises(ValueError, match="cannot be sent|NaN|JSON"):
            await factory(browser={"x": float("nan")})
        server.fail("POST", faults.status(400, "no such thing"))
        with pytest.raises(AnchorAPIError, match="no such thing"):
            await factory()
        server.fail_always("DELETE", faults.status(403))
        with pytest.raises(AnchorAPIError, match="HTTP 403"):
            async with await factory() as session:
                pass
        assert not session.ended

    run(main)


@each_loop
def test_tasks_create_at_once_and_the_loop_goes_on(run, server: FaultServer, factory):
    server.held["POST"] = threading.Event()
    turns = []

    async def watch() -> None:
        await wait_until(lambda: turns.append(1) or server.count("POST") == 4)
        server.held.pop("POST").set()

    run(lambda: together(watch, *[factory] * 4))
    assert len(server.alive) == 4
    assert turns


# a task that is cancelled


@each_loop
def test_a_cancelled_task_withdraws_its_creation(run, server: FaultServer, client: Client, factory, until):
    server.held["POST"] = threading.Event()
    run(lambda: cancel_when(lambda: server.count("POST"), factory))
    server.held.pop("POST").set()
    until(lambda: len(server.sessions) == 1 and not server.alive)
    until(lambda: states(client) == ["ended"])
    run(factory)
    assert len(server.alive) == 1


@each_loop
def test_a_cancelled_task_leaves_the_queue(run, limited, settings, until):
    def queue() -> list[object]:
        (file,) = settings.folder.parent.glob("limits-*.json")
        return json.loads(file.read_text().partition("\n")[0])["queue"]

    async def main() -> None:
        sessions = [await limited(), await limited()]
        await together(partial(cancel_when, queue, limited), partial(end_after_the_queue, sessions))

    async def end_after_the_queue(sessions: list[AnchorSession]) -> None:
        await wait_until(queue)
        await wait_until(lambda: not queue())
        await sessions[0].aend()
        await limited()

    run(main)


@each_loop
def test_an_end_goes_on_though_its_task_is_cancelled(run, server: FaultServer, client: Client, factory, until):
    async def main() -> None:
        session = await factory()
        server.held["DELETE"] = threading.Event()
        await cancel_when(lambda: server.count("DELETE"), session.aend)
        assert not session.ended
        server.held.pop("DELETE").set()

    run(main)
    until(lambda: states(client) == ["ended"])


@each_loop
def test_leaving_the_context_in_a_cancelled_task_ends_the_session(run, server: FaultServer, client, factory, until):
    inside = []

    async def main() -> None:
        async with await factory():
            inside.append(1)
            await sleep(DEADLINE)

    run(lambda: cancel_when(lambda: inside, main))
    until(lambda: states(client) == ["ended"])
    assert server.alive == []


def test_leaving_the_context_in_a_cancelled_scope_of_anyio_ends_the_session(
    server: FaultServer, client, factory, until
):
    anyio = pytest.importorskip("anyio")

    async def main() -> None:
        with anyio.CancelScope() as scope:  # which cancels its task again and again
            async with await factory():
                scope.cancel()
                await anyio.sleep(DEADLINE)
        assert scope.cancelled_caught
        assert (await factory()).id in server.alive

    in_asyncio(main)
    until(lambda: states(client) == ["ended", "open"])


def test_a_session_that_a_cancelled_task_cannot_take_is_ended(server: FaultServer, client, sync_factory, until):
    factory = AsyncAnchorSessionFactory(sync_factory)

    async def main() -> None:
        task = asyncio.create_task(factory())
        await asyncio.sleep(0)
        until(lambda: sync_factory._sessions)  # the loop does not hear of it meanwhile
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_asyncio(main)
    until(lambda: states(client) == ["ended"])
    assert sync_factory.close(5) == {}
    assert server.count("DELETE") == 1


# a task that would wait for itself


SELF = pytest.raises(AnchorLimitError, match="would wait for itself")


@each_loop
def test_a_task_that_would_wait_for_itself_is_told_at_once(run, limited):
    async def main() -> None:
        for _ in range(2):
            await limited()
        with SELF:
            await limited()

    run(main)


@each_loop
def test_another_task_may_end_a_session(run, limited):
    async def hold(session: AnchorSession) -> None:
        await sleep(0.3)
        await session.aend()

    async def main() -> None:
        session, _ = await limited(), await limited()
        await together(partial(hold, session), limited)

    run(main)


@each_loop
def test_a_task_that_is_nothing_but_an_end_counts(run, server: FaultServer, limited):
    async def later() -> None:
        await wait_until(lambda: server.count("DELETE"))
        await limited()

    async def main() -> None:
        session, _ = await limited(), await limited()
        server.held["DELETE"] = threading.Event()
        threading.Timer(0.5, server.held["DELETE"].set).start()
        await together(session.aend, later)

    run(main)


@each_loop
def test_tasks_that_each_hold_a_session_take_turns(run, limited):
    async def scenario() -> None:
        async with await limited():
            await sleep(0.05)

    run(lambda: together(*[scenario] * 6))


def test_a_gather_of_creations_would_wait_for_itself(limited):
    async def main() -> None:
        with SELF:
            await asyncio.gather(limited(), limited(), limited())
        with SELF:
            await asyncio.gather(limited())

    in_asyncio(main)


def test_creations_that_are_taken_one_by_one_do_not(limited):
    async def main() -> None:
        for creation in asyncio.as_completed([limited(), limited(), limited()]):
            await (await creation).aend()

    in_asyncio(main)


def test_a_nursery_that_waits_for_the_creation_would_wait_for_itself(limited):
    trio = pytest.importorskip("trio")

    async def create() -> None:
        for _ in range(2):
            await limited()
        with SELF:
            await limited()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)

    in_trio(main)


def test_a_librarys_own_tasks_do_not_count(limited):
    async def main() -> None:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        task = asyncio.create_task(server.serve_forever())
        await asyncio.sleep(0)
        for _ in range(2):
            await limited()
        with SELF:
            await limited()
        task.cancel()

    in_asyncio(main)


def test_in_a_thread_of_its_own_a_loop_does_not_wait_for_itself(limited):
    sessions = []

    async def hold() -> None:
        sessions.extend([await limited(), await limited()])

    in_asyncio(hold)
    thread = threading.Thread(target=lambda: in_asyncio(limited))
    thread.start()
    sessions[0].end()
    thread.join()
