"""Requests to the test machine's servers: which connection they go by, and how many go at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from pytest_anchor.forwarding.upstream import AT_ONCE, Upstream, UpstreamError

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request, and counts connections; ``answer`` may be replaced."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: list[asyncio.StreamWriter] = []
        self.requests: list[str] = []

    async def answer(self, writer: asyncio.StreamWriter) -> None:
        writer.write(ANSWER)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        while head := (await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b""):
            self.requests.append(head.split(b" ")[0].decode())
            await self.answer(writer)
            if writer.is_closing():
                break

    async def serve_until_closed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running(port: int = 0) -> AsyncIterator[Server]:
    server = Server()
    listener = await asyncio.start_server(server.serve_until_closed, "127.0.0.1", port)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        await asyncio.sleep(0.01)  # what is accepted becomes a connection, as it cannot once its server is closed
        listener.close()
        for writer in server.connections:
            writer.close()


async def send(upstream: Upstream, server: Server, method: str = "GET", *, is_urgent: bool = False) -> bytes:
    url = f"http://127.0.0.1:{server.port}/"
    response = await upstream.send(method, url, {}, b"x" if method == "POST" else None, is_urgent=is_urgent)
    with response.body:
        return response.body.read()


@pytest.fixture
def run() -> Callable[..., None]:
    """Run a test with a server and what sends requests to it."""

    def run(test: Callable[[Upstream, Server], object]) -> None:
        async def main() -> None:
            upstream = Upstream()
            try:
                async with running() as server:
                    await asyncio.wait_for(test(upstream, server), 20)  # type: ignore[arg-type]
            finally:
                await upstream.close()

        asyncio.run(main())

    return run


def test_a_connection_is_kept_for_what_may_be_sent_again(run: Callable[..., None]):
    async def test(upstream: Upstream, server: Server) -> None:
        await send(upstream, server)
        await send(upstream, server, is_urgent=True)
        assert len(server.connections) == 1
        await send(upstream, server, "POST")
        await send(upstream, server, "POST")
        assert len(server.connections) == 3

    run(test)


def test_a_server_that_closes_a_kept_connection_as_the_next_request_comes(run: Callable[..., None]):
    async def test(upstream: Upstream, server: Server) -> None:
        await send(upstream, server)
        answer = server.answer

        async def close(writer: asyncio.StreamWriter) -> None:
            writer.close()
            server.answer = answer  # type: ignore[method-assign]

        server.answer = close  # type: ignore[method-assign]
        assert await send(upstream, server) == b"ok"
        assert len(server.connections) == 2
        server.answer = close  # type: ignore[method-assign]
        with pytest.raises(UpstreamError, match="ConnectionClosed"):
            await send(upstream, server, "POST")
        assert server.requests == ["GET", "GET", "GET", "POST"]

    run(test)


def test_a_server_that_restarts_is_met_by_a_new_connection(run: Callable[..., None]):
    async def test(upstream: Upstream, server: Server) -> None:
        async with running() as first:
            await send(upstream, first)
        async with running(first.port) as second:
            assert await send(upstream, second) == b"ok"
            assert second.requests == ["GET"]

    run(test)


def test_so_many_go_to_a_server_at_once_and_a_document_besides(run: Callable[..., None]):
    async def test(upstream: Upstream, server: Server) -> None:
        may_answer = asyncio.Event()

        async def wait(writer: asyncio.StreamWriter) -> None:
            await may_answer.wait()
            writer.write(ANSWER)

        server.answer = wait  # type: ignore[method-assign]
        sent = [asyncio.create_task(send(upstream, server)) for _ in range(AT_ONCE + 2)]
        sent.append(asyncio.create_task(send(upstream, server, is_urgent=True)))
        while len(server.requests) < AT_ONCE + 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert len(server.requests) == AT_ONCE + 1
        may_answer.set()
        assert await asyncio.gather(*sent) == [b"ok"] * len(sent)

    run(test)
