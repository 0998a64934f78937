"""The HTTP server of a worker process: one port for the pages that its parts have."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from uvicorn.protocols.http.h11_impl import H11Protocol

from scheduler.errors import ConfigError

PORTS_TO_TRY = 64
"""Worker processes on one host may be given the same port: each takes the next that is free."""

STOP_S = 1.0
REQUEST_S = 10.0
"""How long a client may take for a request and its answer; as long as Prometheus gives a scrape."""
IDLE_S = 5
MAX_CONNECTIONS = 64


class HttpServer:
    """Serves `routes` at `url`. `start()` and `stop()` are safe to call twice.

    It listens on `host`, at `port` or the next of 64 that is free; at any free port if `port` is 0. Errors
    name the settings `<name>_host` and `<name>_port`.
    """

    def __init__(self, routes: Sequence[BaseRoute], *, name: str, host: str, port: int) -> None:
        self._routes = routes
        self._name = name
        self._host, self._port = host, port
        self._server: uvicorn.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: no port is free, or this machine does not have the host's address.
        """
        if self._server is not None:
            return
        listener = self._listen()
        host, port = listener.getsockname()[:2]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._server = _Server(_config(self._routes))
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]), name=self._name)

    async def stop(self) -> None:
        """Stop listening, and let requests under way finish within a second."""
        server, task, self._task = self._server, self._task, None
        if server is None or task is None:
            return
        server.should_exit = True
        _, late = await asyncio.wait([task], timeout=STOP_S)
        for one in late:
            one.cancel()
            await asyncio.wait([one])

    def _listen(self) -> socket.socket:
        first, host = self._port, self._host
        last = first + PORTS_TO_TRY if first else 1
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        for port in range(first, min(last, 65_536)):
            try:
                return socket.create_server((host, port), family=family)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    settings = f"{self._name}_host, {self._name}_port"
                    raise ConfigError(
                        f"{settings}: cannot listen on {host}:{port}: {error.strerror}"
                    ) from None
        raise ConfigError(
            f"{self._name}_port: all ports from {first} to {last - 1} on {host} are taken; give another"
        )


def _config(routes: Sequence[BaseRoute]) -> uvicorn.Config:
    return uvicorn.Config(
        Starlette(routes=routes),
        http=_Connection,
        ws="none",
        timeout_keep_alive=IDLE_S,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
    )


class _Connection(H11Protocol):
    """Bounds the number of connections and the time of each request: uvicorn waits for a head without end."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        else:
            self._wait_for_a_request()

    def on_response_complete(self) -> None:
        """An answer is on its way; the next request may come."""
        self._wait_for_a_request()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait_for_a_request(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        # Not close(): that waits for a client that reads nothing.
        self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the worker process."""
        yield
