"""Adapters: what the adapter over httpx costs beside bare httpx, on an engine that keeps a timetable.

All make the same calls: chats of 50 tokens, streamed, each to its end before the next one of that place
begins, with 1, 16, 64 and 256 at once, on the mock engine: first token after 50 ms, the others 20 ms apart.
The bare client is the shortest code that gets the texts: one `httpx.AsyncClient` with room for all
connections, `stream()`, `aiter_lines()`, and orjson for each line. As the pool of such a client grows slow
with many connections, there is also one that has a client for each call that goes on at once. Each runs in
a process of its own, on uvloop, in turns, and each place warms up with one short call.

- added to the first token: from just before the call to the first text, less the engine's 50 ms; the median
  of all calls. The mock engine's own delay is in it, the same for both.
- CPU: user and system time of the client process while the calls run, by call and by token.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeAlias

import httpx
import orjson
import uvloop

from benchmarks.harness import Bench
from benchmarks.mock_engine import mock_engine
from workers import EndpointConfig, Generation, Piece, make_worker

FIRST_TOKEN_MS = 50.0
INTERVAL_MS = 20.0
TOKENS = 50
PROMPT = "Tell me about the weather of tomorrow."
TIMEOUT_S = 120.0

Texts: TypeAlias = Callable[[int], AsyncIterator[str]]
"""Makes a call for so many tokens and yields its texts."""


async def measure(bench: Bench) -> None:
    """Both clients in turn, with more and more calls at once."""
    with mock_engine(first_token_ms=FIRST_TOKEN_MS, interval_ms=INTERVAL_MS) as engine:
        for in_flight in (1, 64) if bench.quick else (1, 16, 64, 256):
            calls = bench.size({1: 10}.get(in_flight, 4 * in_flight), in_flight)
            await bench.alternate(
                f"adapter overhead, {in_flight} in flight",
                {
                    "our adapter": partial(run_client, "ours", engine.url, in_flight, calls),
                    "bare httpx": partial(run_client, "bare", engine.url, in_flight, calls),
                    "bare httpx, a client each": partial(run_client, "each", engine.url, in_flight, calls),
                },
            )


async def run_client(name: str, url: str, in_flight: int, calls: int) -> Mapping[tuple[str, str], float]:
    """Run a client in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.adapters", name, url, str(in_flight), str(calls)]
    done = await asyncio.to_thread(
        subprocess.run, command, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
    )
    found = orjson.loads(done.stdout)
    return {
        ("added to the first token, p50", "ms"): found["first_ms"] - FIRST_TOKEN_MS,
        ("CPU a call", "µs/call"): found["cpu_s"] / calls * 1e6,
        ("CPU a token", "µs/token"): found["cpu_s"] / calls / TOKENS * 1e6,
    }


# The client process


async def call_with_ours(url: str, in_flight: int, calls: int) -> dict[str, float]:
    """Make the calls with our adapter."""
    worker = make_worker(EndpointConfig("openai", base_url=url))

    async def texts(tokens: int) -> AsyncIterator[str]:
        generation = Generation("mock", prompt=PROMPT, params={"max_tokens": tokens})
        async for output in worker.generate([generation]):
            if isinstance(output, Piece):
                yield output.text

    try:
        return await call_all(texts, in_flight, calls)
    finally:
        await worker.aclose()


async def call_with_bare(url: str, in_flight: int, calls: int) -> dict[str, float]:
    """Make the calls with httpx alone."""
    limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=TIMEOUT_S, trust_env=False) as client:
        return await call_all(partial(bare_texts, client), in_flight, calls)


async def call_with_each(url: str, in_flight: int, calls: int) -> dict[str, float]:
    """Make the calls with httpx alone, each on a client that no other uses meanwhile."""
    async with AsyncExitStack() as stack:
        tls = httpx.create_ssl_context()  # costly to make, and the same for all
        clients = [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, verify=tls, trust_env=False)
            )
            for _ in range(in_flight)
        ]

        async def texts(tokens: int) -> AsyncIterator[str]:
            client = clients.pop()
            async for text in bare_texts(client, tokens):
                yield text
            clients.append(client)

        return await call_all(texts, in_flight, calls)


async def bare_texts(client: httpx.AsyncClient, tokens: int) -> AsyncIterator[str]:
    """Make a call."""
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with client.stream("POST", "/chat/completions", json=body) as response:
        async for line in response.aiter_lines():
            if not line or line == "data: [DONE]":
                continue
            for choice in orjson.loads(line[6:])["choices"]:
                yield choice["delta"]["content"]


async def call_all(texts: Texts, in_flight: int, calls: int) -> dict[str, float]:
    """Make the calls, so many at once; the median of the first tokens, and CPU."""
    await asyncio.gather(*(call(texts, 1) for _ in range(in_flight)))
    left = iter(range(calls))
    first_s: list[float] = []

    async def place() -> None:
        for _ in left:
            first_s.append(await call(texts, TOKENS))

    before_s = time.process_time()
    await asyncio.gather(*(place() for _ in range(in_flight)))
    return {"first_ms": statistics.median(first_s) * 1000, "cpu_s": time.process_time() - before_s}


async def call(texts: Texts, tokens: int) -> float:
    """Make a call and read it to its end; seconds to the first text."""
    began = time.perf_counter()
    first_s = 0.0
    received = 0
    async for _ in texts(tokens):
        received += 1
        if received == 1:
            first_s = time.perf_counter() - began
    if received != tokens:
        raise SystemExit(f"{received} of {tokens} tokens came")
    return first_s


CLIENTS = {"ours": call_with_ours, "bare": call_with_bare, "each": call_with_each}


def main() -> None:
    """Be a client process."""
    parser = argparse.ArgumentParser(description="A client process of the measurement.")
    parser.add_argument("client", choices=CLIENTS)
    parser.add_argument("url")
    parser.add_argument("in_flight", type=int)
    parser.add_argument("calls", type=int)
    options = parser.parse_args()
    run = CLIENTS[options.client]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(run(options.url, options.in_flight, options.calls))
    print(orjson.dumps(found).decode())


if __name__ == "__main__":
    main()
