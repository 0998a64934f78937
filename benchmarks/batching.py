"""What batching is worth: prompts through the whole system to real engines, with batching off and on.

    make bench-batching  # or: python -m benchmarks.batching --rounds 3 --json out.json --plot out.svg

Plain prompts with answers of 8 tokens that are wanted whole, by callers that enqueue 16, wait for their
answers, and enqueue the next. Beside them a bare client: httpx, lists of 16, as many prompts in flight,
nothing between it and the engine. The larger model shows the other end: where computing takes the time, a
list gains nothing and must cost nothing. Runs alternate; medians are printed.

Everything is on one machine. On few cores the engine and those who feed it are in each other's way: vLLM,
which spins while it waits, above all. So both are measured once more with half of the cores for the engine
alone and the others for everybody else, as if it had a machine of its own.

An engine that is not there is left out: `make llama-server vllm` gets both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from scheduler import AsyncClient, PromptRequest, load_settings
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.supervisor import free_port

EXAMPLES = Path(__file__).parents[1] / "examples" / "engines"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prompt-scheduler"
SLOTS = 16
LIST = 16
IN_FLIGHT = 3 * LIST
ASKING = 4 * IN_FLIGHT
TOKENS = 8
READY_S = 300.0
STOP_S = 30.0
WIDE = ("--width", "512", "--layers", "8")


@dataclass(frozen=True)
class Served:
    """An engine that is up. `body` is what a bare client sends to `path` beside the prompts."""

    name: str
    backend: str
    base_url: str
    path: str
    body: dict[str, Any]
    prompts: int
    own_cores: bool = False


@dataclass(frozen=True)
class Rates:
    """Prompts a second; medians."""

    engine: str
    off: float
    on: float
    bare: float

    def row(self) -> str:
        """One line of the table."""
        return (
            f"{self.engine:<28}{self.off:>9.1f}{self.on:>9.1f}{self.on / self.off:>8.1f} x"
            f"{self.bare:>9.1f}{self.on / self.bare:>9.0%}"
        )


@asynccontextmanager
async def working(
    url: str, queue: str, routes: dict[str, Any], *, drain_s: float = 30.0
) -> AsyncIterator[AsyncClient]:
    """A worker process with these routes, and a client of its queue."""
    environ = {
        **os.environ,
        "SCHEDULER_REDIS_URL": url,
        "SCHEDULER_QUEUE": queue,
        "SCHEDULER_ROUTES": json.dumps(routes),
        "SCHEDULER_DRAIN_S": str(drain_s),
    }
    command = [sys.executable, "-m", "arq", "scheduler.WorkerSettings"]
    worker = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = load_settings(environ={}, redis_url=url, queue=queue, routes=routes)
    try:
        async with AsyncClient(url, settings=settings) as client:
            yield client
    finally:
        worker.terminate()
        worker.wait(drain_s + STOP_S)


async def through_the_system(engine: Served, url: str, *, max_size: int, prompts: int) -> float:
    """Prompts a second while `ASKING` of them are always asked, 16 by each caller."""
    queue = f"batch-{max_size}"
    endpoint = {"backend": engine.backend, "base_url": engine.base_url, "max_in_flight": IN_FLIGHT}
    routes = {
        "tiny": {"batch": {"max_size": max_size}, "endpoints": [{**endpoint, "model": "tiny"}]},
    }
    async with working(url, queue, routes) as client:
        await client.run("warm up", model="tiny", params={"max_tokens": 1}, timeout_s=60)

        async def ask(texts: list[str]) -> None:
            params = {"max_tokens": TOKENS}
            jobs = await client.enqueue_many(
                [PromptRequest(prompt=text, model="tiny", stream=False, params=params) for text in texts]
            )
            await asyncio.gather(*(job.result(timeout_s=300) for job in jobs))  # type: ignore[union-attr]  # no request is invalid

        return LIST * await steady_rate(ask, lists_of_texts(prompts), ASKING // LIST)


async def bare(engine: Served, prompts: int) -> float:
    """Prompts a second of an HTTP client alone."""
    async with httpx.AsyncClient(base_url=engine.base_url, timeout=300, trust_env=False) as client:

        async def ask(prompts: list[str]) -> None:
            answer = await client.post(engine.path, json={**engine.body, "prompt": prompts})
            answer.raise_for_status()

        return LIST * await steady_rate(ask, lists_of_texts(prompts), IN_FLIGHT // LIST)


async def steady_rate(ask: Callable[[Any], Awaitable[Any]], questions: Sequence[Any], at_once: int) -> float:
    """Questions a second while `at_once` are always asked; the first and last tenth is not counted."""
    left = iter(questions)
    ends = []

    async def work() -> None:
        for question in left:
            await ask(question)
            ends.append(time.perf_counter())

    await asyncio.gather(*(work() for _ in range(at_once)))
    tenth = len(ends) // 10
    return (len(ends) - 1 - 2 * tenth) / (ends[-1 - tenth] - ends[tenth])


def lists_of_texts(count: int) -> list[list[str]]:
    """Prompts that differ, as callers ask them."""
    return [[f"Prompt number {at + number}" for number in range(LIST)] for at in range(0, count, LIST)]


async def measure(engine: Served, url: str, rounds: int) -> Rates:
    """Run all three in turn, some times over."""
    with on_cores(OTHER_CORES if engine.own_cores else set()):
        return await measure_here(engine, url, rounds)


async def measure_here(engine: Served, url: str, rounds: int) -> Rates:
    """The same on the cores on which this process is."""
    few = max(ASKING, engine.prompts // 4)
    kinds: dict[str, Callable[[], Awaitable[float]]] = {
        "off": lambda: through_the_system(engine, url, max_size=1, prompts=few),
        "on": lambda: through_the_system(engine, url, max_size=LIST, prompts=engine.prompts),
        "bare": lambda: bare(engine, engine.prompts),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, run in kinds.items():
            found[kind].append(await run())
    return Rates(engine.name, **{kind: statistics.median(rates) for kind, rates in found.items()})


@asynccontextmanager
async def llama_server(
    binary: Path, folder: Path, *, wide: bool = False, own_cores: bool = False
) -> AsyncIterator[Served]:
    """llama-server with one thread: a second one would wait for the core that everything else is on."""
    model = folder / ("wide.gguf" if wide else "tiny.gguf")
    make = [sys.executable, str(EXAMPLES / "make_tiny_gguf.py"), str(model), *(WIDE if wide else ())]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    port = free_port()
    flags = ["-c", "16384", "-np", str(SLOTS), "-t", "1", "--poll", "0", "--no-ui"]
    command = [str(binary), "-m", str(model), "--alias", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    kind = "cores of its own" if own_cores else "larger model" if wide else "tiny model"
    name, url = f"llama-server, {kind}", f"http://127.0.0.1:{port}"
    body = {"n_predict": TOKENS}
    async with serving([*command, *flags], port, folder, cores=ENGINE_CORES if own_cores else set()):
        yield Served(name, "llama_cpp", url, "/completion", body, 128 if wide else 1600, own_cores)


@asynccontextmanager
async def vllm(python: Path, folder: Path, *, own_cores: bool) -> AsyncIterator[Served]:
    """vLLM on the CPU, with priority scheduling."""
    model = folder / "tiny"
    subprocess.run(
        [str(python), str(EXAMPLES / "make_tiny_hf.py"), str(model)], check=True, capture_output=True
    )
    port = free_port()
    body = {"model": "tiny", "max_tokens": TOKENS}
    command = ["sh", str(EXAMPLES / "serve_vllm.sh"), str(python), str(model), str(port)]
    name = "vLLM, cores of its own" if own_cores else "vLLM, tiny model"
    url = f"http://127.0.0.1:{port}"
    async with serving(command, port, folder, cores=ENGINE_CORES if own_cores else set()):
        yield Served(name, "vllm", url, "/v1/completions", body, 1200, own_cores)


@asynccontextmanager
async def serving(command: Sequence[str], port: int, folder: Path, *, cores: set[int]) -> AsyncIterator[None]:
    """A server process that answers, and has ended afterwards."""
    with (folder / f"{port}.log").open("wb") as log, on_cores(cores):
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        async with asyncio.timeout(READY_S), httpx.AsyncClient(trust_env=False) as client:
            while True:
                if process.poll() is not None:
                    raise SystemExit(f"{command[0]} has ended; see {log.name}")
                with suppress(httpx.TransportError):
                    if (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started meanwhile keeps to these cores, where the system can do that."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def half_of_the_cores(half: int) -> set[int]:
    """The first (0) or the second (1) half; none where there are not two, or nobody can tell."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    middle = len(cores) // 2
    return set(cores[middle:] if half else cores[:middle]) if middle else set()


ENGINE_CORES, OTHER_CORES = half_of_the_cores(0), half_of_the_cores(1)


def find(variable: str, *cached: str, program: str = "") -> Path | None:
    """The engine that a variable names, or that is on PATH, or in the cache."""
    named = os.environ.get(variable) or (shutil.which(program) if program else None)
    found = Path(named) if named else CACHE.joinpath(*cached)
    return found if os.access(found, os.X_OK) else None


async def run(rounds: int) -> list[Rates]:
    """Measure every engine that is there."""
    rates = []
    shares = (False, True) if ENGINE_CORES else (False,)
    with tempfile.TemporaryDirectory(prefix="bench-batching-") as name, EmbeddedServer() as server:
        folder = Path(name)
        engines: list[Any] = []
        if binary := find("LLAMA_SERVER", "llama-server", "bin", "llama-server", program="llama-server"):
            engines += [llama_server(binary, folder, own_cores=own) for own in shares]
            engines.append(llama_server(binary, folder, wide=True))
        if python := find("VLLM_PYTHON", "vllm", "bin", "python"):
            engines += [vllm(python, folder, own_cores=own) for own in shares]
        for missing in [name for name, there in (("llama-server", binary), ("vLLM", python)) if not there]:
            print(f"{missing} is not there and left out; `make llama-server vllm` gets both", file=sys.stderr)
        for opening in engines:
            async with opening as engine:
                rates.append(await measure(engine, server.url, rounds))
                print(rates[-1].row(), flush=True)
    return rates


def plot(rates: Sequence[Rates], path: Path) -> None:
    """Draw what each engine does alone, with batching, and without, as bars: a bare client is 100 %."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  only here

    plt.rcParams |= {"svg.hashsalt": "batching", "font.size": 10}
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.8 * len(rates)), layout="constrained")
    kinds = [("bare client, lists of 16", "bare", "#b8bdc4"), ("batching on", "on", "#2f6fde")]
    kinds.append(("batching off", "off", "#f0a03c"))
    for row, one in enumerate(rates):
        for place, (label, kind, color) in enumerate(kinds):
            rate = getattr(one, kind)
            at = row + (place - 1) * 0.27
            axes.barh(at, rate / one.bare, 0.25, color=color, label=label if row == 0 else None)
            axes.text(rate / one.bare + 0.01, at, f"{rate:.0f}/s", va="center", fontsize=8)
    axes.set_yticks(range(len(rates)), [one.engine for one in rates])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("prompts a second, as a share of what a bare client reaches")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them, as SVG; needs matplotlib")
    given = parser.parse_args()
    print(f"\n{'prompts/s':<28}{'off':>9}{'on':>9}{'gain':>10}{'bare':>9}{'share':>9}", flush=True)
    rates = asyncio.run(run(given.rounds))
    if given.json:
        given.json.write_text(json.dumps([asdict(one) for one in rates], indent=1), encoding="utf-8")
    if given.plot:
        plot(rates, given.plot)


if __name__ == "__main__":
    main()
