"""What joint calls are worth for embeddings: jobs of one text through the whole system to real engines.

    make bench-embeddings  # or: python -m benchmarks.embeddings --rounds 3

Batching off and on in turn, in the same run, and beside them a bare client with lists of 32: httpx, and
nothing between it and the engine. Callers enqueue 16 jobs of one text each, wait for their vectors, and
enqueue the next. The model is all-MiniLM-L6-v2, a real sentence encoder; the echo shows what the system
itself does. Medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.batching import (
    CACHE,
    EXAMPLES,
    LIST,
    find,
    lists_of_texts,
    serving,
    steady_rate,
    working,
)
from scheduler import EmbeddingRequest
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.supervisor import free_port

JOINT = 32
IN_FLIGHT = 4 * JOINT
ASKING = 2 * IN_FLIGHT


@dataclass(frozen=True)
class Embedder:
    """An engine that is up, and how many texts to give it."""

    name: str
    endpoint: dict[str, Any]
    texts: int


@dataclass(frozen=True)
class Rates:
    """Texts a second; medians."""

    engine: str
    off: float
    on: float
    bare: float | None

    def row(self) -> str:
        """One line of the table."""
        bare = "" if self.bare is None else f"{self.bare:>9.0f}{self.on / self.bare:>9.0%}"
        return f"{self.engine:<24}{self.off:>9.0f}{self.on:>9.0f}{self.on / self.off:>8.1f} x{bare}"


async def through_the_system(engine: Embedder, url: str, *, max_size: int, texts: int) -> float:
    """Texts a second while `ASKING` of them are always asked."""
    queue = f"embed-{max_size}"
    endpoint = {"max_in_flight": IN_FLIGHT, **engine.endpoint}
    routes = {
        "minilm": {"kind": "embedding", "batch": {"max_size": max_size}, "endpoints": [endpoint]},
    }
    async with working(url, queue, routes) as client:
        await client.embed("warm up", timeout_s=60)

        async def ask(some: list[str]) -> None:
            jobs = await client.enqueue_many([EmbeddingRequest(input=text) for text in some])
            await asyncio.gather(*(job.result(timeout_s=300) for job in jobs))  # type: ignore[union-attr]  # no request is invalid

        return LIST * await steady_rate(ask, lists_of_texts(texts), ASKING // LIST)


async def bare(engine: Embedder) -> float | None:
    """Texts a second of an HTTP client alone; None where there is no server."""
    if not (base_url := engine.endpoint.get("base_url")):
        return None
    async with httpx.AsyncClient(base_url=base_url, timeout=300, trust_env=False) as client:

        async def ask(texts: list[str]) -> None:
            body = {"model": "tiny", "input": texts, "encoding_format": "base64"}
            (await client.post("/v1/embeddings", json=body)).raise_for_status()

        lists = [one + other for one, other in zip(*[iter(lists_of_texts(engine.texts))] * 2, strict=True)]
        return JOINT * await steady_rate(ask, lists, IN_FLIGHT // JOINT)


async def measure(engine: Embedder, url: str, rounds: int) -> Rates:
    """Run all three in turn, some times over."""
    few = max(2 * ASKING, engine.texts // 2)
    runs: dict[str, Callable[[], Awaitable[float | None]]] = {
        "off": lambda: through_the_system(engine, url, max_size=1, texts=few),
        "on": lambda: through_the_system(engine, url, max_size=JOINT, texts=engine.texts),
        "bare": lambda: bare(engine),
    }
    found: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(rounds):
        for kind, run in runs.items():
            if (rate := await run()) is not None:
                found[kind].append(rate)
    medians = {kind: statistics.median(rates) if rates else 0.0 for kind, rates in found.items()}
    return Rates(engine.name, medians["off"], medians["on"], medians["bare"] or None)


@asynccontextmanager
async def echo() -> AsyncIterator[Embedder]:
    """The echo, which takes no time."""
    yield Embedder("echo", {"backend": "echo"}, 12_800)


@asynccontextmanager
async def llama_server(binary: Path, model: Path, folder: Path) -> AsyncIterator[Embedder]:
    """llama-server with the model as GGUF."""
    file, port = folder / "minilm.gguf", free_port()
    make = [sys.executable, str(EXAMPLES / "make_minilm_gguf.py"), str(model), str(file)]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    command = [str(binary), "-m", str(file), "--alias", "tiny", "--embeddings", "--no-ui", "--poll", "0"]
    command += ["--host", "127.0.0.1", "--port", str(port), "-c", "4096", "-np", "8", "-t", "1"]
    async with serving(command, port, folder, cores=set()):
        endpoint = {"backend": "llama_cpp", "base_url": f"http://127.0.0.1:{port}"}
        yield Embedder("llama-server, MiniLM", endpoint, 3200)


@asynccontextmanager
async def vllm(python: Path, model: Path, folder: Path) -> AsyncIterator[Embedder]:
    """vLLM on the CPU with the model as it is."""
    port = free_port()
    command = ["sh", str(EXAMPLES / "serve_vllm.sh"), str(python), str(model), str(port)]
    command += ["--runner", "pooling", "--max-model-len", "256"]
    async with serving(command, port, folder, cores=set()):
        endpoint = {"backend": "vllm", "base_url": f"http://127.0.0.1:{port}", "model": "tiny"}
        yield Embedder("vLLM, MiniLM", endpoint, 3200)


async def run(rounds: int) -> None:
    """Measure every engine that is there."""
    model = CACHE / "minilm" / "model"
    with tempfile.TemporaryDirectory(prefix="bench-embeddings-") as name, EmbeddedServer() as server:
        folder, engines = Path(name), [echo()]
        if not model.is_dir():
            print("all-MiniLM-L6-v2 is not there: `make minilm` fetches it", file=sys.stderr)
        else:
            cached = ("llama-server", "bin", "llama-server")
            if binary := find("LLAMA_SERVER", *cached, program="llama-server"):
                engines.append(llama_server(binary, model, folder))
            if python := find("VLLM_PYTHON", "vllm", "bin", "python"):
                engines.append(vllm(python, model, folder))
        for opening in engines:
            async with opening as engine:
                print((await measure(engine, server.url, rounds)).row(), flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(f"\n{'texts/s':<24}{'off':>9}{'on':>9}{'gain':>10}{'bare':>9}{'share':>9}", flush=True)
    asyncio.run(run(given.rounds))


if __name__ == "__main__":
    main()
