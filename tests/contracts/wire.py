"""A scripted HTTP server on loopback, for what real back ends cannot be made to do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import orjson
import pytest

from tests.patience import SOON_S
from workers import Generation, GenerationWorker, WorkerError
from workers.contract import start

Script: TypeAlias = Callable[[asyncio.StreamWriter], Awaitable[None]]

ServerT = TypeVar("ServerT", bound="FakeServer")

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Request:
    """What one connection asked. `left` is set when its client has hung up."""

    path: str
    head: str
    body: Any
    content: bytes = b""
    left: asyncio.Event = field(default_factory=asyncio.Event)


class FakeServer:
    """Answers every connection's one request with `script`; remembers what was asked."""

    def __init__(self) -> None:
        self.script: Script | None = None
        self.requests: list[Request] = []
        self.client_left = asyncio.Event()
        self.connections: list[asyncio.Task[Any]] = []
        self.base_url = ""

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]

    @property
    def headers(self) -> list[str]:
        return [request.head.lower() for request in self.requests]

    @property
    def bodies(self) -> list[Any]:
        return [request.body for request in self.requests]

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        assert self.script is not None
        await self.script(writer)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.append(task)
        try:
            request = await read_request(reader)
        except (asyncio.IncompleteReadError, ConnectionError):  # the client left before it had said all
            await hang_up(writer)
            return
        self.requests.append(request)
        leaving = asyncio.create_task(self._see_client_leave(reader, request))
        try:
            await self.respond(request, writer)
        except ConnectionError:
            pass
        finally:
            await hang_up(writer)
            await leaving

    async def _see_client_leave(self, reader: asyncio.StreamReader, request: Request) -> None:
        with suppress(ConnectionError):
            await reader.read()
        request.left.set()
        self.client_left.set()


async def read_request(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    lines = head.lower().split("\r\n")
    length = next((line[15:] for line in lines if line.startswith("content-length:")), "0")
    body = await reader.readexactly(int(length))
    return Request(head.split(" ", 2)[1], head, orjson.loads(body) if body else None, body)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def listening(fake: ServerT) -> AsyncIterator[ServerT]:
    """Let it serve on a port of its own until all its connections have ended."""
    listener = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.base_url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    yield fake
    listener.close()
    await asyncio.wait_for(asyncio.gather(*fake.connections), SOON_S)
    await listener.wait_closed()


def unused_url() -> str:
    """A URL on loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def answer(status: int, body: Any, *headers: str) -> Script:
    """One whole response; `body` is JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    head = "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(content)}", *headers])

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(f"{head}\r\n\r\n".encode() + content)
        await writer.drain()

    return script


def stream(
    *chunks: Any, end: bool = True, content_type: str = "text/event-stream", headers: Sequence[str] = ()
) -> Script:
    """An event stream in HTTP chunks; what is not bytes becomes an event. `end=False` cuts it off."""

    async def script(writer: asyncio.StreamWriter) -> None:
        head = [f"Content-Type: {content_type}", "Transfer-Encoding: chunked", *headers]
        writer.write("\r\n".join(["HTTP/1.1 200 OK", *head, "", ""]).encode())
        for chunk in chunks:
            write_chunk(writer, chunk)
            await writer.drain()
        if end:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    return script


def write_chunk(writer: asyncio.StreamWriter, chunk: Any) -> None:
    data = chunk if isinstance(chunk, bytes) else event(chunk)
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def event(content: Any) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


async def outputs_of(worker: GenerationWorker, *batch: Generation) -> list[Any]:
    async with aclosing(start(worker, batch)) as outputs:
        return [output async for output in outputs]


async def error_of(worker: GenerationWorker, *batch: Generation) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        await outputs_of(worker, *batch)
    return caught.value
