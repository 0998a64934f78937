"""What `session` is worth: conversations over two servers of a kind, with and without it.

    make bench-sessions  # or: python -m benchmarks.sessions --chats 64 --turns 4

Chats go on in turns, half as many at once as the servers run; each turn has all that was said before it. A
server that has read the earlier turns reads only what is new. Where the servers are always full
(`--at-once 16`), a turn goes wherever a place becomes free, session or not. Printed is the share of prompt
tokens that came from a server's cache, by the server's own count and without the first turns, and how long
first tokens took at the median. llama-server is measured once more without its prompt cache.

The models are tiny and of random weights: shares do not depend on that, times do.

An engine that is not there is left out: `make llama-server vllm` gets both.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.batching import EXAMPLES, find, serving, working
from scheduler import AsyncClient, JobResult
from scheduler.client.fields import RequestFields
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.supervisor import free_port

SERVERS = 2
SLOTS = 8
CONTEXT = 4096
SYSTEM_WORDS, TURN_WORDS, ANSWER_TOKENS = 40, 120, 32
WAIT_S = 600.0
WORDS = ("time", "is", "of", "the", "world", "and", "a", "water", "in", "light", "under", "small", "far")


@dataclass(frozen=True)
class Servers:
    """Servers of one kind that are up."""

    name: str
    backend: str
    urls: tuple[str, ...]


@dataclass(frozen=True)
class Share:
    """What came of the chats: tokens of their prompts, those of them from a cache, time to first tokens."""

    prompt_tokens: int
    cached_tokens: int
    first_token_ms: float

    @classmethod
    def of(cls, results: Sequence[JobResult]) -> Share:
        """From the results of all turns but the first, for which nothing can be in a cache."""
        return cls(
            sum(result.usage.input_tokens or 0 for result in results),
            sum(result.usage.cached_tokens or 0 for result in results),
            statistics.median(result.timings.first_token_ms or 0.0 for result in results),
        )

    def __str__(self) -> str:
        return f"{self.cached_tokens / self.prompt_tokens:>8.0%}{self.first_token_ms:>9.0f} ms"


@asynccontextmanager
async def llama_servers(binary: Path, folder: Path, *flags: str) -> AsyncIterator[Servers]:
    """Servers of llama.cpp, with a thread each."""
    model = folder / "tiny.gguf"
    make = [sys.executable, str(EXAMPLES / "make_tiny_gguf.py"), str(model), "--context", str(CONTEXT)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    size = ("-c", str(SLOTS * CONTEXT), "-np", str(SLOTS), "-t", "1", "--poll", "0", "--no-ui")

    def command(port: int) -> list[str]:
        return [str(binary), "-m", str(model), "--host", "127.0.0.1", "--port", str(port), *size, *flags]

    async with several(command, folder) as urls:
        yield Servers(" ".join(("llama-server", *flags)), "llama_cpp", urls)


@asynccontextmanager
async def vllm_servers(python: Path, folder: Path) -> AsyncIterator[Servers]:
    """Servers of vLLM, which say how many tokens were in their caches."""
    model = folder / "tiny"
    subprocess.run(
        [str(python), str(EXAMPLES / "make_tiny_hf.py"), str(model)], check=True, capture_output=True
    )
    flags = ("--max-model-len", str(CONTEXT), "--enable-prompt-tokens-details", "--enable-prefix-caching")

    def command(port: int) -> list[str]:
        return ["sh", str(EXAMPLES / "serve_vllm.sh"), str(python), str(model), str(port), *flags]

    async with several(command, folder) as urls:
        yield Servers("vLLM", "vllm", urls)


@asynccontextmanager
async def several(command: Any, folder: Path) -> AsyncIterator[tuple[str, ...]]:
    """Start as many servers as are measured, one after the other; their URLs."""
    async with AsyncExitStack() as stack:
        ports = [free_port() for _ in range(SERVERS)]
        for port in ports:
            await stack.enter_async_context(serving(command(port), port, folder, cores=set()))
        yield tuple(f"http://127.0.0.1:{port}" for port in ports)


async def measure(servers: Servers, url: str, *, chats: int, turns: int, at_once: int, sticky: bool) -> Share:
    """Hold the chats through a worker process, with or without a session for each."""
    queue = f"sessions-{random.randrange(2**32)}"
    endpoints = [
        {"backend": servers.backend, "base_url": one, "model": "tiny", "max_in_flight": SLOTS}
        for one in servers.urls
    ]
    routes = {"tiny": {"endpoints": endpoints}}
    async with working(url, queue, routes) as client:
        waiting = asyncio.Semaphore(at_once)
        held = [chat(client, waiting, number, turns, queue, sticky=sticky) for number in range(chats)]
        results = [result for told in await asyncio.gather(*held) for result in told[1:]]
    return Share.of(results)


async def chat(
    client: AsyncClient, places: asyncio.Semaphore, number: int, turns: int, run: str, *, sticky: bool
) -> list[JobResult]:
    """One conversation; between two turns others have theirs."""
    words = random.Random(f"{run} {number}")
    messages: list[dict[str, Any]] = [{"role": "system", "content": said(words, SYSTEM_WORDS)}]
    params = {"max_tokens": ANSWER_TOKENS, "temperature": 0.0}
    fields: RequestFields = {"messages": messages, "model": "tiny", "params": params}
    if sticky:
        fields["session"] = f"{run} {number}"
    results: list[JobResult] = []
    for _ in range(turns):
        messages.append({"role": "user", "content": said(words, TURN_WORDS)})
        async with places:
            result = await client.run(timeout_s=WAIT_S, **fields)
        results.append(result)
        messages.append({"role": "assistant", "content": result.text or "-"})
        await asyncio.sleep(0.05 * words.random())
    return results


def said(words: random.Random, count: int) -> str:
    """Words of which each chat has its own."""
    return " ".join(words.choice(WORDS) for _ in range(count))


async def run(chats: int, turns: int, at_once: int) -> None:
    """Measure every engine that is there, and print a line each."""
    with tempfile.TemporaryDirectory(prefix="bench-sessions-") as name, EmbeddedServer() as server:
        folder, engines = Path(name), []
        if binary := find("LLAMA_SERVER", "llama-server", "bin", "llama-server", program="llama-server"):
            engines += [llama_servers(binary, folder), llama_servers(binary, folder, "--cache-ram", "0")]
        if python := find("VLLM_PYTHON", "vllm", "bin", "python"):
            engines.append(vllm_servers(python, folder))
        for missing in [what for what, there in (("llama-server", binary), ("vLLM", python)) if not there]:
            print(f"{missing} is not there and left out; `make llama-server vllm` gets both", file=sys.stderr)
        print(f"\n{'from the cache, first token':<28}{'with session':>20}{'without':>20}", flush=True)
        for opening in engines:
            async with opening as servers:
                shares = [
                    await measure(
                        servers, server.url, chats=chats, turns=turns, at_once=at_once, sticky=sticky
                    )
                    for sticky in (True, False)
                ]
                print(f"{servers.name:<28}{shares[0]!s:>20}{shares[1]!s:>20}", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chats", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--at-once", type=int, default=SERVERS * SLOTS // 2, help="turns that run at once")
    given = parser.parse_args()
    asyncio.run(run(given.chats, given.turns, given.at_once))


if __name__ == "__main__":
    main()
