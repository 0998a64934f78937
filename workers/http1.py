"""HTTP/1.1 over asyncio's own transports: one connection, and one request on it at a time.

httpcore, which httpx uses otherwise, runs each piece of a body through a dozen layers, which cost four times
what decoding and publishing a token do. Here a piece goes from the event loop through a parser in C to its
reader. Proxies stay with httpcore.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import Final

import httpx
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from workers.dialing import dial

MAX_FRAME_BYTES: Final = 64 * 1024
"""A head may be this long, with the interim responses before it; and so may what frames a body's pieces."""
HIGH_WATER_BYTES: Final = 256 * 1024
"""A server is slowed down while its reader has more than this waiting."""

_ILLEGAL_IN_HEADERS = re.compile(rb"[\0\r\n]")
_LAST_INTERIM, _SWITCHING_PROTOCOLS = 199, 101


class Http1Transport(httpx.AsyncBaseTransport):
    """Sends requests whose content is bytes over one connection to one server, one request at a time.

    Between two requests the connection is kept for `keepalive_s`. If the server has closed it meanwhile, so
    that nothing is heard of a request, the request goes again on a new connection; on a new one it goes once.

    The responses have the extension `body`: an `IncomingResponse`, to read the body without further layers.
    """

    def __init__(self, *, tls: ssl.SSLContext | None, keepalive_s: float) -> None:
        """`tls` is for https; plain URLs need none."""
        self._tls = tls
        self._keepalive_s = keepalive_s
        self._connection: Connection | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and read the head of its response.

        Raises:
            httpx.TransportError: there is no connection, or it broke before the head had come.
        """
        message = _encoded(request, await request.aread())
        kept, self._connection = self._connection, None
        if kept is not None:
            if kept.usable(self._keepalive_s):
                try:
                    return await self._exchange(kept, message)
                except (httpx.NetworkError, httpx.RemoteProtocolError):
                    if kept.heard:
                        raise
            kept.abort()
        return await self._exchange(await self._connect(request), message)

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice."""
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    async def _connect(self, request: httpx.Request) -> Connection:
        url = request.url
        limit_s = request.extensions.get("timeout", {}).get("connect")
        try:
            async with asyncio.timeout(limit_s):
                tls = self._tls if url.scheme == "https" else None
                return await dial(Connection, url, tls)
        except TimeoutError:
            raise httpx.ConnectTimeout("", request=request) from None
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
            raise httpx.ConnectError(str(error), request=request) from error

    async def _exchange(self, connection: Connection, message: bytes) -> httpx.Response:
        self._connection = connection
        response = connection.send(message)
        try:
            await response.head_came()
        except BaseException:
            connection.abort()
            raise
        return httpx.Response(
            response.status, headers=response.headers, stream=response, extensions={"body": response}
        )


class Connection(asyncio.Protocol):
    """A connection to a server: idle, or with the response that is being read from it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._response: IncomingResponse | None = None
        self._idle_since = 0.0
        self.heard = False
        """Whether anything came in answer to the last request."""

    def usable(self, keepalive_s: float) -> bool:
        """Whether a request may go: it is open, free, and has been idle for no longer than that."""
        free = self._transport is not None and self._response is None
        return free and self._loop.time() - self._idle_since < keepalive_s

    def send(self, message: bytes) -> IncomingResponse:
        """Send a whole request; return the response to it, of which nothing has come."""
        self.heard = False
        self._response = response = IncomingResponse(self)
        if self._transport is None:
            response.connection_lost(None)
        else:
            self._transport.write(message)
        return response

    def release(self) -> None:
        """The response has been read to its end, and the server keeps the connection."""
        if self._transport is None or self._transport.get_write_buffer_size():
            self.abort()
        else:
            self._response = None
            self._idle_since = self._loop.time()

    def abort(self) -> None:
        """Close the connection, whatever is on its way. Safe to call twice."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()

    def pause(self) -> None:
        """Read no more until `resume()`."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = transport  # type: ignore[assignment]  # a stream's

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self.heard = True
        if self._response is None:  # nothing was asked
            self.abort()
        else:
            self._response.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._transport = None
        response, self._response = self._response, None
        if response is not None:
            response.connection_lost(exc)


class IncomingResponse(httpx.AsyncByteStream):
    """A response on its way. `feed` takes what comes from the server; one reader reads it."""

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._connection: Connection | None = connection
        self._parser: HttpResponseParser | None = _parser(self)
        self._frame_bytes = 0  # since the beginning, or the last piece of the body
        self._has_head = False
        self._has_end = False  # it ends where its head says, and not where the connection does
        self._pieces: list[bytes] = []
        self._size = 0
        self._paused = False
        self._complete = False
        self._keeps_connection = False
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    # The reader's side

    async def head_came(self) -> None:
        """Wait for the head: then `status` and `headers` are there.

        Raises:
            httpx.TransportError: the connection broke, or what came is not HTTP.
        """
        while not self._has_head:
            await self._more()

    async def read(self) -> bytes:
        """The bytes of the body that have come, at least one; none at its end.

        Raises:
            httpx.TransportError: the connection broke, or what came is not HTTP.
        """
        while not self._pieces:
            if self._complete:
                return b""
            await self._more()
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._paused and self._connection is not None:
            self._paused = False
            self._connection.resume()
        return data

    def __aiter__(self) -> IncomingResponse:
        """Itself: nothing has to be finalized when the reader stops."""
        return self

    async def __anext__(self) -> bytes:
        if data := await self.read():
            return data
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop reading. The connection stays open if the response is complete. Safe to call twice."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._parser = None
        if self._complete and self._keeps_connection:
            connection.release()
        else:
            connection.abort()

    async def _more(self) -> None:
        """Wait until something happens."""
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # The connection's side

    def feed(self, data: bytes) -> None:
        """Take in what came from the server."""
        if self._parser is None:
            return
        self._frame_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"the server does not speak HTTP/1.1 ({error})"))
        if self._frame_bytes > MAX_FRAME_BYTES:
            self._fail(httpx.RemoteProtocolError(f"more than {MAX_FRAME_BYTES:,} bytes, and none of a body"))
        if self._size > HIGH_WATER_BYTES and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()

    def connection_lost(self, error: Exception | None) -> None:
        """No more will come."""
        if error is not None:
            self._fail(httpx.ReadError(str(error)))
        elif self._has_head and not self._has_end:
            self._complete = True
            self._parser = None
            self._wake()
        else:
            self._fail(httpx.RemoteProtocolError("the server closed the connection before the end"))

    def _fail(self, error: httpx.TransportError) -> None:
        self._parser = None
        self._keeps_connection = False
        if not self._complete and self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The parser's side

    def on_message_begin(self) -> None:
        """Called by the parser, at the beginning of the response, and of any before or behind it."""
        if self._complete:  # nothing was asked
            self._keeps_connection = False
        else:
            self.headers = []
            self._has_end = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for trailers too."""
        if self._has_head:
            return
        self.headers.append((name, value))
        if name.lower() in {b"content-length", b"transfer-encoding"}:
            self._has_end = True

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        if self._has_head or self._parser is None:
            return
        self.status = self._parser.get_status_code()
        if self.status == _SWITCHING_PROTOCOLS:
            self._fail(httpx.RemoteProtocolError("the server switches to another protocol"))
        elif self.status > _LAST_INTERIM:
            self._has_head = True
            self._wake()

    def on_body(self, data: bytes) -> None:
        """Called by the parser."""
        if not self._complete:
            self._frame_bytes = 0
            self._pieces.append(data)
            self._size += len(data)
            self._wake()

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._has_head and not self._complete and self._parser is not None:
            self._complete = True
            self._keeps_connection = self._parser.should_keep_alive()
            self._wake()


def _parser(response: IncomingResponse) -> HttpResponseParser:
    """A parser that accepts what HTTP libraries in other languages do."""
    parser = HttpResponseParser(response)
    parser.set_dangerous_leniencies(
        lenient_headers=True,
        lenient_chunked_length=True,
        lenient_optional_cr_before_lf=True,
        lenient_spaces_after_chunk_size=True,
    )
    return parser


def _encoded(request: httpx.Request, content: bytes) -> bytes:
    """The request as it goes over the wire.

    Raises:
        httpx.LocalProtocolError: a header would end the line.
    """
    lines = [b"%s %s HTTP/1.1\r\n" % (request.method.encode("ascii"), request.url.raw_path)]
    for name, value in request.headers.raw:
        if _ILLEGAL_IN_HEADERS.search(name) or _ILLEGAL_IN_HEADERS.search(value):
            raise httpx.LocalProtocolError(f"header {name!r} holds a line break", request=request)
        lines.append(b"%s: %s\r\n" % (name, value))
    return b"".join((*lines, b"\r\n", content))
