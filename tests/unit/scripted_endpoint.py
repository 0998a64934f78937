"""What tests of routing and inference share: an endpoint whose model worker says what the test tells it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from scheduler.batching import BatchPolicy
from scheduler.routing import BreakerState, Endpoint
from scheduler.settings import EndpointSettings
from workers.base import Capabilities, Completed, Generation, Health, Load, Output
from workers.errors import WorkerUnavailable


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """Answers every call with the same outputs, then raises `failure`, or, if it `hangs`, stays silent.

    Without any of it every prompt ends at once. What it says of its back end can be set.
    """

    def __init__(
        self, *outputs: Output, failure: Exception | None = None, hangs: bool = False, lists: bool = True
    ) -> None:
        self.capabilities = Capabilities(lists=lists)
        self.batches: list[list[Generation]] = []
        self.began = asyncio.Event()
        self.closed = asyncio.Event()
        self.outputs = outputs
        self.failure = failure
        self.hangs = hangs
        self.healths: Callable[[], Health] = lambda: Health(ready=True)
        self.loads: Callable[[], Load | None] = lambda: None
        self.capacities: Callable[[], int | None] = lambda: None

    async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        self.batches.append(list(batch))
        self.began.set()
        outputs: Sequence[Output] = self.outputs
        if not (outputs or self.failure or self.hangs):
            outputs = [Completed(member, "stop") for member in range(len(batch))]
        try:
            for output in outputs:
                yield output
            if self.failure:
                raise self.failure
            if self.hangs:
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def health(self) -> Health:
        return self.healths()

    async def capacity(self) -> int | None:
        return self.capacities()

    async def load(self) -> Load | None:
        return self.loads()

    async def aclose(self) -> None:
        return None


def endpoint(
    name: str = "one",
    *,
    worker: Worker | None = None,
    limit: int | None = 8,
    weight: float = 1.0,
    max_size: int = 32,
    shared: bool = False,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Endpoint:
    return Endpoint(
        name=name,
        model="served",
        settings=EndpointSettings(backend="scripted", weight=weight, max_in_flight=limit, **settings),
        worker=worker or Worker(),
        batch=BatchPolicy(max_size=max_size),
        max_in_flight=limit,
        shared=shared,
        clock=clock,
    )


def fail(one: Endpoint, times: int = 1) -> None:
    """Calls that fail as if the back end were away."""
    for _ in range(times):
        one.call_ended(one.call_began(), 1, WorkerUnavailable("gone"))


def opened(one: Endpoint) -> Endpoint:
    """The endpoint, left alone."""
    one.breaker.trip()
    assert one.breaker.state is BreakerState.OPEN
    return one


def half_open(one: Endpoint) -> Endpoint:
    """The endpoint, waiting for a probe."""
    opened(one).breaker.probed(ready=True)
    assert one.breaker.state is BreakerState.HALF_OPEN
    return one
