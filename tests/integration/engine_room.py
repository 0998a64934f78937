"""What tests of client and engine share: a model worker on strings, engines and clients on one fakeredis."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint, EntryPoints
from types import ModuleType
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeServer

from scheduler import AsyncClient, Settings, load_settings
from scheduler.engine import Engine
from scheduler.observations import Observer
from tests.patience import SOON_S
from workers import registry
from workers.base import Capabilities, Completed, EndpointConfig, Generation, Health, Output, Piece

CHECK = {"max_tokens": 1}
"""The parameters of a prompt that an endpoint is checked with; no test asks for as little."""


class PuppetCall:
    """One call to the model worker: the test says what comes out of it."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.outputs: asyncio.Queue[Output | Exception] = asyncio.Queue()
        self.aborted = asyncio.Event()

    def say(self, text: str) -> None:
        self.outputs.put_nowait(Piece(0, text))

    def finish(self, text: str = "") -> None:
        if text:
            self.say(text)
        self.outputs.put_nowait(Completed(0, "stop"))

    def fail(self, error: Exception) -> None:
        self.outputs.put_nowait(error)


class Puppet:
    """A third-party model worker. `calls` has the calls in the order they came in.

    Prompts of nobody's, which check whether it is well, count in `checks` and are answered at once, with
    `failure` if there is one.
    """

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config
        self.calls: asyncio.Queue[PuppetCall] = asyncio.Queue()
        self.checks = 0
        self.failure: Exception | None = None
        self.active = self.most_active = 0
        self.closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(lists=False, streaming=True, chat=True, tools=True, priority=True)

    async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        if batch[0].params == CHECK:
            self.checks += 1
            if self.failure is not None:
                raise self.failure
            yield Completed(0, "stop")
            return
        call = PuppetCall(batch[0])
        self.calls.put_nowait(call)
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            while True:
                output = await call.outputs.get()
                if isinstance(output, Exception):
                    raise output
                yield output
                if isinstance(output, Completed):
                    return
        except (asyncio.CancelledError, GeneratorExit):
            call.aborted.set()
            raise
        finally:
            self.active -= 1

    async def health(self) -> Health:
        return Health(ready=True)

    async def capacity(self) -> int | None:
        return None

    async def load(self) -> None:
        return None

    async def aclose(self) -> None:
        self.closed = True

    async def next_call(self) -> PuppetCall:
        async with asyncio.timeout(SOON_S):
            return await self.calls.get()


def install_puppet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the backend `puppet` known as an installed package would."""
    install(monkeypatch, "puppet_package", Puppet=Puppet)
    puppet = EntryPoint("puppet", "puppet_package:Puppet", registry.GENERATION.group)

    def entry_points(**which: Any) -> EntryPoints:
        return EntryPoints([puppet]).select(**which)

    monkeypatch.setattr(registry, "entry_points", entry_points)


def install(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """An importable module, for what settings name as `module:Name`."""
    module = ModuleType(name)
    for key, value in contents.items():
        setattr(module, key, value)
    monkeypatch.setitem(sys.modules, name, module)


def puppet_route(max_in_flight: int = 8, **route: Any) -> dict[str, Any]:
    return {"endpoints": [{"backend": "puppet", "max_in_flight": max_in_flight}], **route}


def settings_of(**values: Any) -> Settings:
    """Settings with the route `echo` served by a puppet, unless `routes` says otherwise."""
    return load_settings(environ={}, **{"routes": {"echo": puppet_route()}, "lease_s": 10.0, **values})


class Room:
    """Engines and clients on one fakeredis. Everything is stopped at the end."""

    def __init__(self) -> None:
        self.server = FakeServer()
        self.redis = FakeAsyncRedis(server=self.server)
        self._engines: list[Engine] = []
        self._clients: list[AsyncClient] = []

    async def engine(
        self, settings: Settings | None = None, *, start: bool = True, observers: Iterable[Observer] = ()
    ) -> Engine:
        redis = FakeAsyncRedis(server=self.server)
        engine = Engine(settings or settings_of(), redis, script_flags=False, observers=observers)
        self._engines.append(engine)
        if start:
            await engine.start()
        return engine

    async def client(self, settings: Settings | None = None) -> AsyncClient:
        client = AsyncClient(settings=settings or settings_of(), redis=FakeAsyncRedis(server=self.server))
        await client.connect()
        self._clients.append(client)
        return client

    async def close(self) -> None:
        self.server.connected = True
        for engine in self._engines:
            await engine.stop(drain_s=0)
            await engine.queue.redis.aclose()
        for client in self._clients:
            redis = client.queue.redis if client._connection else None
            await client.aclose()
            if redis is not None:
                await redis.aclose()
        await self.redis.aclose()


@asynccontextmanager
async def room_with(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    install_puppet(monkeypatch)
    room = Room()
    try:
        yield room
    finally:
        await room.close()


def puppet_of(engine: Engine, route: str = "echo") -> Puppet:
    worker = engine.routes[route].endpoints[0].worker
    assert isinstance(worker, Puppet)
    return worker


async def until(condition: Callable[[], bool]) -> None:
    """Return once something holds; fail if it does not come to hold soon."""
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.002)
