"""What all adapters over HTTP share, against a real server: its connections."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from tests.contracts.wire import DONE, answer, hang_up, read_request, stream
from tests.patience import SOON_S
from workers import EndpointConfig, RequestRejected, WorkerConfigError, WorkerUnavailable
from workers.http import HttpEndpoint

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served_by(serve: Serve, **config: Any) -> AsyncIterator[HttpEndpoint]:
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
    endpoint = HttpEndpoint(
        EndpointConfig("any", base_url, **config), engine="any", headers={"X-Key": "adapter"}
    )
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


async def test_a_request_that_is_answered_leaves_nothing_to_the_garbage_collector() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await stream({"n": 1}, DONE)(writer)

    async with served_by(serve) as endpoint:
        gc.collect()
        gc.disable()
        try:
            await events_of(endpoint)
            assert not [one for one in gc.get_objects() if isinstance(one, httpx.Request)]
        finally:
            gc.enable()


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


async def test_headers_and_query_of_the_settings_go_with_every_request_and_into_no_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            heads.append((await read_request(reader)).head)
            await answer(200, {})(writer)

    secret = "s3cret & long"
    async with served_by(
        serve, headers={"x-key": secret}, query={"api-version": "1", "key": secret}
    ) as endpoint:
        await endpoint.get("/models")
        await endpoint.post("/chat?beta=true", {})
    asked = "api-version=1&key=s3cret+%26+long"
    assert heads[0].startswith(f"GET /models?{asked} HTTP")
    assert heads[1].startswith(f"POST /chat?beta=true&{asked} HTTP")
    assert ["adapter" in head for head in heads] == [False, False]
    assert [f"x-key: {secret}" in head.lower() for head in heads] == [True, True]
    assert "s3cret" not in caplog.text


async def test_secrets_that_a_server_says_back_are_in_no_message() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await read_request(reader)).head
        await answer(400, {"error": {"message": head}})(writer)

    secrets: dict[str, Any] = {
        "headers": {"Authorization": "Bearer s3cret-1"},
        "query": {"key": "s3cret/2", "v": "on"},
    }
    async with served_by(serve, **secrets) as endpoint:
        with pytest.raises(RequestRejected) as caught:
            await endpoint.post("/", {})
    assert "Authorization: ***" in str(caught.value)
    assert "key=***" in str(caught.value)
    assert "v=on" in str(caught.value)
    assert "s3cret" not in str(caught.value) + repr(EndpointConfig("any", **secrets))


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"X Key": "s3cret"}, "headers: 'X Key' is no name"),
        ({"": "s3cret"}, "headers: '' is no name"),
        ({"Content-Length": "s3cret"}, "headers.Content-Length: is set by the adapter"),
        ({"X-Key": "s3cret\n"}, "headers.X-Key: has characters"),
        ({"X-Key": "s3cret\u20ac"}, "headers.X-Key: has characters"),
    ],
)
def test_header_that_cannot_be_sent_is_an_error_that_names_it(headers: dict[str, str], said: str) -> None:
    with pytest.raises(WorkerConfigError) as caught:
        HttpEndpoint(EndpointConfig("any", "http://127.0.0.1:1", headers=headers), engine="any")
    assert str(caught.value).startswith(said)
    assert "s3cret" not in str(caught.value)


async def test_server_that_cannot_be_reached_by_its_proxy_names_the_variable(
    unused_tcp_port: int,
) -> None:
    environ = {"HTTP_PROXY": f"http://user:s3cret@127.0.0.1:{unused_tcp_port}"}
    endpoint = HttpEndpoint(EndpointConfig("any", "http://engine.example", environ=environ), engine="any")
    with pytest.raises(WorkerUnavailable, match="HTTP_PROXY") as caught:
        await endpoint.get("/")
    assert "s3cret" not in str(caught.value)
    await endpoint.aclose()


async def test_plain_requests_reach_their_proxy_with_the_whole_url_and_the_query() -> None:
    heads = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader)).head)
        await answer(200, {})(writer)

    async with served_by(serve) as proxy:
        environ = {"http_proxy": proxy.url}
        config = EndpointConfig("any", "http://engine.example", query={"v": "1"}, environ=environ)
        endpoint = HttpEndpoint(config, engine="any")
        await endpoint.get("/models")
        await endpoint.aclose()
    assert heads[0].startswith("GET http://engine.example/models?v=1 HTTP")
