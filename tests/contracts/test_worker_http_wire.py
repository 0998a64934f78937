"""What all adapters over HTTP share, against a real server: its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from tests.contracts.wire import DONE, hang_up, read_request, stream
from tests.patience import SOON_S
from workers import EndpointConfig, WorkerUnavailable
from workers.http import HttpEndpoint

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served_by(serve: Serve) -> AsyncIterator[HttpEndpoint]:
    connections: list[asyncio.Task[None]] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.append(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        await hang_up(writer)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    endpoint = HttpEndpoint(EndpointConfig("any", base_url), engine="any")
    yield endpoint
    await endpoint.aclose()
    listener.close()
    await asyncio.wait_for(asyncio.gather(*connections), SOON_S)
    await listener.wait_closed()


async def events_of(endpoint: HttpEndpoint) -> list[object]:
    async with endpoint.stream("/", {}) as events:
        return [event async for read in events for event in read]


async def test_connection_serves_again_when_a_stream_has_been_read_to_its_end() -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while True:
            await read_request(reader)
            await stream({"n": 1}, DONE, end=False)(writer)
            await asyncio.sleep(0.01)  # the end comes in a packet of its own
            writer.write(b"0\r\n\r\n")

    async with served_by(serve) as endpoint:
        for _ in range(2):
            assert await events_of(endpoint) == [{"n": 1}]
    assert len(connections) == 1


async def test_request_goes_again_where_the_server_has_closed_the_pooled_connection() -> None:
    connections = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        number = len(connections)
        await read_request(reader)
        await stream({"n": number}, DONE)(writer)
        if number == 1:
            await read_request(reader)  # it has met the end of the connection on its way

    async with served_by(serve) as endpoint:
        assert await events_of(endpoint) == [{"n": 1}]
        assert await events_of(endpoint) == [{"n": 2}]


async def test_request_goes_once_to_a_server_that_hangs_up_on_a_new_connection() -> None:
    requests = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await read_request(reader))

    async with served_by(serve) as endpoint:
        with pytest.raises(WorkerUnavailable):
            await events_of(endpoint)
    assert len(requests) == 1


@pytest.mark.parametrize("warm", [False, True])
async def test_a_call_that_is_cancelled_at_any_point_is_in_nobodys_way(warm: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await stream({"n": 1}, DONE)(writer)

    async with served_by(serve) as endpoint:
        for turns in range(30):
            if warm:
                await events_of(endpoint)
            call = asyncio.create_task(events_of(endpoint))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            async with asyncio.timeout(SOON_S):
                assert await events_of(endpoint) == [{"n": 1}], f"after {turns} turns of the loop"


async def test_headers_of_one_request_are_its_own() -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read_request(reader)).head.lower())
            await stream(DONE)(writer)

    async with served_by(serve) as endpoint:
        async with endpoint.stream("/", {}, headers={"X-Request-Id": "job-1"}):
            pass
        await events_of(endpoint)
    assert ["x-request-id: job-1" in head for head in heads] == [True, False]
