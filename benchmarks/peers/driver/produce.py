"""The clock of the producers: how they enqueue, how long that took, and how long a result takes.

It runs in the environment of each peer and needs nothing of ours. Run as
`python -m producer HOW N` it prints one line of JSON: seconds and CPU seconds of the enqueuing alone, or
milliseconds from enqueue to result, one job after the other on an idle system.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

CONCURRENT = 100
WARM_UP_RESULTS = 50
HOWS = ("one", "hundred", "many", "latency")


def prompt(number: int) -> dict[str, str]:
    """What a job carries."""
    return {"prompt": f"prompt number {number}", "model": "echo"}


class AsyncProducer(Protocol):
    """A peer's client on asyncio."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""

    async def one(self, number: int) -> object:
        """Enqueue a job."""

    async def many(self, total: int) -> object:
        """Enqueue jobs in the fastest way there is."""

    async def result(self, number: int) -> object:
        """Enqueue a job and wait for its result."""


class Producer(Protocol):
    """A peer's client that blocks."""

    def start(self) -> None:
        """Connect."""

    def one(self, number: int) -> object:
        """Enqueue a job."""

    def many(self, total: int) -> object:
        """Enqueue jobs in the fastest way there is."""

    def result(self, number: int) -> object:
        """Enqueue a job and wait for its result."""


def run_async(producer: AsyncProducer) -> None:
    """Do on asyncio, with uvloop, what the command line says."""
    import uvloop  # noqa: PLC0415  clients that block have none

    how, n = arguments()
    print(json.dumps(uvloop.run(measured_async(producer, how, n))))


async def measured_async(producer: AsyncProducer, how: str, n: int) -> dict[str, Any]:
    """What to print."""
    await producer.start()
    try:
        if how == "latency":
            for number in range(WARM_UP_RESULTS):
                await producer.result(number)
            return {"latency_ms": [await timed_result(producer, number) for number in range(n)]}
        with clock() as figures:
            if how == "one":
                for number in range(n):
                    await producer.one(number)
            elif how == "hundred":
                await concurrently(producer, n)
            else:
                await producer.many(n)
        return figures
    finally:
        await producer.stop()


async def concurrently(producer: AsyncProducer, n: int) -> None:
    """Enqueue with a hundred callers, each of which goes on when its job is in."""
    numbers = iter(range(n))

    async def caller() -> None:
        for number in numbers:
            await producer.one(number)

    await asyncio.gather(*(caller() for _ in range(CONCURRENT)))


async def timed_result(producer: AsyncProducer, number: int) -> float:
    """Milliseconds from enqueue to result."""
    started = time.perf_counter()
    await producer.result(number)
    return (time.perf_counter() - started) * 1000


def run_blocking(producer: Producer) -> None:
    """Do what the command line says; a hundred callers are a hundred threads."""
    how, n = arguments()
    print(json.dumps(measured(producer, how, n)))


def measured(producer: Producer, how: str, n: int) -> dict[str, Any]:
    """What to print."""
    producer.start()
    if how == "latency":
        for number in range(WARM_UP_RESULTS):
            producer.result(number)
        return {"latency_ms": [timed_blocking_result(producer, number) for number in range(n)]}
    with clock() as figures:
        if how == "one":
            for number in range(n):
                producer.one(number)
        elif how == "hundred":
            with ThreadPoolExecutor(CONCURRENT) as pool:
                list(pool.map(producer.one, range(n)))
        else:
            producer.many(n)
    return figures


def timed_blocking_result(producer: Producer, number: int) -> float:
    """Milliseconds from enqueue to result."""
    started = time.perf_counter()
    producer.result(number)
    return (time.perf_counter() - started) * 1000


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """Seconds and CPU seconds of this process."""
    figures: dict[str, float] = {}
    started, started_cpu = time.perf_counter(), time.process_time()
    yield figures
    figures["elapsed_s"] = time.perf_counter() - started
    figures["cpu_s"] = time.process_time() - started_cpu


def arguments() -> tuple[str, int]:
    """How, and how many."""
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=HOWS)
    parser.add_argument("n", type=int)
    options = parser.parse_args()
    return options.how, options.n
