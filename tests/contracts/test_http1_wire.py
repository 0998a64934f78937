"""HTTP/1.1 of our own against real sockets: what servers send, and what they must not make us do."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import trustme

from tests.contracts.wire import hang_up
from tests.patience import SOON_S
from workers import dialing
from workers.http1 import HIGH_WATER_BYTES, MAX_FRAME_BYTES, Http1Transport

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"


class Server:
    """Counts the connections to it; each is served by `serve`."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.tasks: list[asyncio.Task[Any]] = []
        self.url = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._serve(reader, writer)
        await hang_up(writer)

    @property
    def connections(self) -> int:
        return len(self.tasks)


@asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(serve)
    listener = await asyncio.start_server(server.accept, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    server.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    yield server
    listener.close()
    await asyncio.wait_for(asyncio.gather(*server.tasks), SOON_S)
    await listener.wait_closed()


@asynccontextmanager
async def client(
    tls: ssl.SSLContext | None = None, keepalive_s: float = 60.0
) -> AsyncIterator[httpx.AsyncClient]:
    transport = Http1Transport(tls=tls, keepalive_s=keepalive_s)
    async with asyncio.timeout(SOON_S), httpx.AsyncClient(transport=transport, trust_env=False) as one:
        yield one


def saying(*answers: bytes) -> Serve:
    """Answer one request after another, on one connection; then hang up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()

    return serve


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok",
        CHUNKED + b"\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nTrailer: 1\r\n\r\n",
        CHUNKED + b"\r\n2  \r\nok\r\n0\r\n\r\n",
        CHUNKED + b"Content-Length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Name: caf\xe9 \x01\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK,
    ],
    ids=[
        "no reason",
        "line feeds alone",
        "http 1.0",
        "until it closes",
        "chunks with extension and trailer",
        "spaces behind a chunk's size",
        "both a length and chunks",
        "odd bytes in a header",
        "interim responses",
    ],
)
@pytest.mark.parametrize("piecemeal", [False, True], ids=["at once", "byte by byte"])
async def test_response_in_any_form_that_servers_use_is_read(answer: bytes, piecemeal: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in (answer[at : at + 1] for at in range(len(answer))) if piecemeal else (answer,):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(serve) as server, client() as http:
        response = await http.get(server.url)
        assert (response.status_code, response.text) == (200, "ok")
        assert "link" not in response.headers, "of an interim response"


@pytest.mark.parametrize("more", [b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"nonsense"])
async def test_what_comes_behind_a_response_is_not_the_next_ones(more: bytes) -> None:
    async with serving(saying(OK + more, OK)) as server, client() as http:
        for _ in range(2):
            response = await http.get(server.url)
            assert (response.status_code, response.text) == (200, "ok")
        assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        CHUNKED + b"\r\n2\r\nok\r\n",
        CHUNKED + b"\r\nx\r\n",
        b"HTTP/1.1 200",
        b"",
    ],
)
async def test_response_that_breaks_off_or_is_not_http_is_an_error(answer: bytes) -> None:
    async with serving(saying(answer)) as server, client() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(server.url)
        assert server.connections == 1, "it is not sent again"


@pytest.mark.parametrize(
    "endless", [b"X-More: of the same\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["headers", "interim"]
)
async def test_head_without_end_is_an_error_and_takes_no_memory(endless: bytes) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" if endless.startswith(b"X") else b"")
        while True:
            writer.write(endless * 100)
            await writer.drain()
            sent += len(endless) * 100

    async with serving(serve) as server, client() as http:
        with pytest.raises(httpx.RemoteProtocolError, match=f"{MAX_FRAME_BYTES:,}"):
            await http.get(server.url)


@pytest.mark.parametrize(
    "begin", [b"2;x=", b"2\r\nok\r\n0\r\nTrailer: "], ids=["extension of a chunk", "trailer"]
)
async def test_body_whose_frame_has_no_end_is_an_error_and_takes_no_memory(begin: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"\r\n" + begin)
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    async with serving(serve) as server, client() as http:
        with pytest.raises(httpx.RemoteProtocolError, match="none of a body"):
            await http.get(server.url)


async def test_connection_is_kept_for_the_next_request_and_no_longer_than_its_time() -> None:
    async with serving(saying(OK, OK, OK)) as server:
        async with client() as http:
            for _ in range(3):
                assert (await http.get(server.url)).text == "ok"
            assert server.connections == 1
        async with client(keepalive_s=0.0) as http:
            for _ in range(2):
                await http.get(server.url)
            assert server.connections == 3


async def test_connection_that_the_server_closes_or_speaks_on_unasked_is_not_used_again() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        await reader.read()

    async with serving(serve) as server, client() as http:
        assert (await http.get(server.url)).text == "ok"
        await asyncio.sleep(0.05)
        assert (await http.get(server.url)).text == "ok"
        assert server.connections == 2


async def test_request_that_began_to_be_answered_is_not_sent_again() -> None:
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while True:
            await reader.readuntil(b"\r\n\r\n")
            asked += 1
            if asked == 2:
                writer.write(b"HTTP/1.1 20")
                return
            writer.write(OK)

    async with serving(serve) as server, client() as http:
        await http.get(server.url)
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(server.url)
        assert asked == 2


async def test_server_that_refuses_a_large_request_before_its_end_is_heard() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"
        )
        await writer.drain()

    async with serving(serve) as server, client() as http:
        response = await http.post(server.url, content=b"x" * 8_000_000)
        assert (response.status_code, response.text) == (413, "too large")


async def test_server_is_slowed_down_while_nobody_reads() -> None:
    sent = 0
    total = 64 * 1024 * 1024

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with serving(serve) as server, client() as http, http.stream("GET", server.url) as response:
        body = response.extensions["body"]
        await asyncio.sleep(0.2)
        held = sent
        assert held < total / 2, "buffers of the kernel, and a little more"
        data = await body.read()
        assert HIGH_WATER_BYTES < len(data) < total / 2
        size = len(data)
        while data := await body.read():
            size += len(data)
        assert size == total


async def test_response_that_is_not_read_to_its_end_closes_the_connection() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"\r\n2\r\nok\r\n")
        with suppress(ConnectionError):
            await reader.read()
        left.set()

    async with serving(serve) as server, client() as http:
        async with http.stream("GET", server.url) as response:
            assert await response.extensions["body"].read() == b"ok"
        await asyncio.wait_for(left.wait(), SOON_S)


@pytest.mark.parametrize("header", [("X-Key", "a\r\nX-Evil: 1"), ("X\n", "a"), ("X", "a\0")])
async def test_header_that_would_end_its_line_is_not_sent(header: tuple[str, str]) -> None:
    async with serving(saying(OK)) as server, client() as http:
        with pytest.raises(httpx.LocalProtocolError):
            await http.get(server.url, headers=[header])
        assert not server.connections


async def test_server_that_is_not_there_is_an_error_that_says_why() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        async with client() as http:
            with pytest.raises(httpx.ConnectError, match=r"127\.0\.0\.1"):
                await http.get(f"http://127.0.0.1:{port}/")
            with pytest.raises(httpx.ConnectError):
                await http.get(f"http://{'a' * 70}.example/")


async def test_address_that_answers_serves_while_another_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:  # its backlog is full: the kernel drops what comes
        silent.bind(("127.0.0.2", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        with socket.create_connection(("127.0.0.2", port)):
            await _serves_beside_silence(monkeypatch, port, ["127.0.0.2", "127.0.0.1"])


async def _serves_beside_silence(
    monkeypatch: pytest.MonkeyPatch, port: int, addresses: Sequence[str]
) -> None:
    async def resolved(host: str, port: int) -> Sequence[str]:
        return addresses

    monkeypatch.setattr(dialing, "_addresses", resolved)
    monkeypatch.setattr(dialing, "NEXT_ADDRESS_S", 0.01)
    server = Server(saying(OK))
    listener = await asyncio.start_server(server.accept, "127.0.0.1", port)
    async with client() as http:
        assert (await http.get(f"http://engine.example:{port}/")).text == "ok"
    listener.close()
    await asyncio.wait_for(asyncio.gather(*server.tasks), SOON_S)
    assert server.connections == 1


async def test_connect_timeout_is_that_of_the_request() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            async with client() as http:
                with pytest.raises(httpx.ConnectTimeout):
                    await http.get(f"http://127.0.0.1:{port}/", timeout=httpx.Timeout(None, connect=0.05))


async def test_tls_checks_the_servers_certificate() -> None:
    authority = trustme.CA()
    serverside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(serverside)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    async with serving(saying(OK, OK), serverside) as server:
        async with client(trusting) as http:
            assert (await http.get(server.url)).text == "ok"
            assert (await http.get(server.url)).text == "ok"
            assert server.connections == 1
        async with client(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) as http:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get(server.url)
