"""A TCP proxy that makes a network bad: it adds latency, throttles, cuts, refuses, or swallows all."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65_536


class ChaosProxy:
    """Stands before one server. The faults hold until `heal()`; `cut()` is over at once.

    With `tls` it speaks that to its clients, and plain TCP to the server. `latency_s` is added to each chunk
    either way, `bytes_per_s` is what a connection lets through either way.
    """

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._upstream = (host, port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._latency_s = 0.0
        self._bytes_per_s: float | None = None

    @property
    def port(self) -> int:
        """Where clients connect, on loopback."""
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def slow_down(self, latency_s: float) -> None:
        """Deliver everything later."""
        self._latency_s = latency_s

    def throttle(self, bytes_per_s: float) -> None:
        """Let little through."""
        self._bytes_per_s = bytes_per_s

    def swallow(self) -> None:
        """Half-open: connections stand, and nothing comes through; it does once this has healed."""
        self._flowing.clear()

    def refuse(self) -> None:
        """End all connections, and each new one."""
        self._refusing = True
        self.cut()

    def cut(self) -> None:
        """End all connections without a word."""
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        """Be a good network again."""
        self._flowing.set()
        self._refusing = False
        self._latency_s, self._bytes_per_s = 0.0, None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._refusing:
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        try:
            # One side has ended: so does the other.
            await asyncio.wait(
                [
                    asyncio.create_task(self._pump(reader, up_writer)),
                    asyncio.create_task(self._pump(up_reader, writer)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            self._writers -= {writer, up_writer}
            for one in (writer, up_writer):
                one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if self._latency_s:
                    await asyncio.sleep(self._latency_s)
                if self._bytes_per_s:
                    await asyncio.sleep(len(data) / self._bytes_per_s)
                writer.write(data)
                await writer.drain()
            writer.close()
