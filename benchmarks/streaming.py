"""Streaming: how many tokens go through one worker process, how late they come, and many readers of one job.

A *token* is one that a subscriber has received in a delta event; deltas are counted apart, as the worker
process puts tokens of one stream that come close to each other into one event. A *delta* is one event of one
stream, received by one subscriber. One client process enqueues the prompts, follows all of the streams and
counts; the clock runs between two of its counts, while all streams are under way, and CPU is what the
processes used between those.

- Throughput: `echo` says a word every 21 ms, a little more than what is gathered for, in more and more
  streams at once, until worker process or client have a core full.
- Latency: the mock engine's tokens hold the moment at which they were sent; the clock runs from there, in
  front of the worker's HTTP connection, to the client's event. First tokens stand apart from later ones,
  which the worker process may hold back for 20 ms to put several into one event. `from enqueue` is what a
  first token takes from just before the enqueue, less the engine's own time.
- Readers: `Job.events()` of one job, again and again in one process, and the same number in two; and
  `Job.events_json()`, as a gateway would use it. Each reader has to get every event. For each event the
  clock runs from its first reader to its last.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson
import uvloop

from benchmarks.harness import Bench, Figures, cpu_s, quantiles, until_serving, worker_processes
from benchmarks.mock_engine import mock_engine
from scheduler import AsyncClient, Delta, Done, GenerationParams, Job, PromptRequest, load_settings

START_TIMEOUT_S = 60.0
SETTLE_S = 1.0
"""From the first token of the last stream to the first count."""

FOLLOW = (sys.executable, "-m", "benchmarks.streaming", "follow")
READ = (sys.executable, "-m", "benchmarks.streaming", "read")

ECHO = """
max_running = 10_000
drain_s = 0
[[routes.echo.endpoints]]
backend = "echo"
max_in_flight = 10_000
options = {{ delay_s = {delay_s} }}
"""
MOCK = """
max_running = 10_000
drain_s = 0
[[routes.mock.endpoints]]
backend = "openai"
base_url = "{url}"
model = "mock"
max_in_flight = 10_000
"""
ECHO_DELAY_S = 0.021
LATE_FIRST_MS = 200.0


async def measure(bench: Bench) -> None:
    """Throughput, latency, readers."""
    for streams in (1000,) if bench.quick else (1000, 2000):
        case = f"{streams:,} streams"
        await bench.alternate("token events", {case: partial(throughput, bench, streams)})
    streams = bench.size(1000, 200)
    for per_s in (10,) if bench.quick else (2, 5, 10):
        await bench.alternate(
            "latency added to a token",
            {f"{streams:,} streams of {per_s} tokens/s": partial(latency, bench, streams, 1000 / per_s)},
        )
    readers = bench.size(200, 50)
    await bench.alternate(
        "readers of one job",
        {
            f"{readers} in one process": partial(read_one_job, bench, [readers]),
            f"{readers} in one process, not decoded": partial(read_one_job, bench, [readers], raw=True),
            f"{readers} in two processes": partial(read_one_job, bench, [readers // 2, readers // 2]),
        },
    )


async def throughput(bench: Bench, streams: int) -> Figures:
    """Tokens a second of so many echo streams."""
    window_s = bench.size(8, 2)
    with worker_processes(bench, toml=ECHO.format(delay_s=ECHO_DELAY_S)) as (worker,):
        load = Load("echo", streams, tokens=5000, ramp_s=bench.size(2, 1))
        async with follower(bench, load) as client:
            return (await watch(bench, client, streams, window_s, worker=worker.pid)).figures()


async def latency(bench: Bench, streams: int, interval_ms: float) -> Figures:
    """How long tokens of the mock engine are under way."""
    window_s = bench.size(8, 2)
    tokens = round(window_s * 1000 / interval_ms)
    load = Load("mock", streams, tokens, ramp_s=tokens * interval_ms / 1000)
    with (
        mock_engine(first_token_ms=LATE_FIRST_MS, interval_ms=interval_ms) as engine,
        worker_processes(bench, toml=MOCK.format(url=engine.url)) as (worker,),
    ):
        async with follower(bench, load) as client:
            window = await watch(bench, client, streams, window_s, worker=worker.pid, engine=engine.pid)
    return {
        **window.latencies("first token", "first"),
        **window.latencies("later tokens", "later"),
        **window.latencies("first token from enqueue", "from enqueue", less_ms=LATE_FIRST_MS),
        **window.figures(),
    }


# The client process that follows many streams, from outside


@dataclass(frozen=True, slots=True)
class Load:
    """Streams that one client keeps under way: the first begin within `ramp_s`, each ended is replaced."""

    model: str
    streams: int
    tokens: int
    ramp_s: float


class Follower:
    """A client process that follows streams, to be asked what it has received."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self) -> dict[str, Any]:
        """What it has received, all in all, and latencies since it was asked the last time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        async with asyncio.timeout(START_TIMEOUT_S):
            line = await self._process.stdout.readline()
        if not line:
            raise SystemExit("the client process that follows the streams has failed; see above")
        counts: dict[str, Any] = orjson.loads(line)
        return counts


@asynccontextmanager
async def follower(bench: Bench, load: Load) -> AsyncIterator[Follower]:
    """Start a client process once there is a worker process; it ends with the block."""
    await until_serving(bench)
    arguments = (bench.url, load.model, str(load.streams), str(load.tokens), str(load.ramp_s))
    async with started(*FOLLOW, *arguments) as process:
        yield Follower(process)


@asynccontextmanager
async def started(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process to talk with; it ends with the block."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=1 << 26
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Window:
    """What went on between two counts of a client process.

    `cpu_s` is by process: client, worker, server, engine. `commands` are the server's, by name.
    """

    elapsed_s: float
    tokens: int
    deltas: int
    cpu_s: Mapping[str, float]
    commands: Mapping[str, int]
    since: Mapping[str, Mapping[str, float]]

    def figures(self) -> dict[tuple[str, str], float]:
        """As `alternate` wants them."""
        return {
            ("tokens", "tokens/s"): self.tokens / self.elapsed_s,
            ("deltas", "deltas/s"): self.deltas / self.elapsed_s,
            **{(who, "cores"): spent_s / self.elapsed_s for who, spent_s in self.cpu_s.items()},
            **{
                (f"{who} CPU", "µs/token"): spent_s / self.tokens * 1e6 for who, spent_s in self.cpu_s.items()
            },
        }

    def latencies(self, what: str, kind: str, *, less_ms: float = 0.0) -> dict[tuple[str, str], float]:
        """p50 and p99 of one kind of latency, named `what`."""
        return {(f"{what}, {name}", "ms"): self.since[kind][name] - less_ms for name in ("p50", "p99")}


@dataclass(frozen=True, slots=True)
class _Count:
    client: Mapping[str, Any]
    cpu_s: Mapping[str, float]
    commands: Mapping[str, int]


async def watch(bench: Bench, client: Follower, streams: int, window_s: float, **pids: int) -> Window:
    """Wait until all streams are under way, and count for a while; `pids` are other processes, by name.

    Raises:
        TimeoutError: they do not all begin.
    """
    pids["server"] = bench.server_pid
    async with bench.redis() as redis:

        async def count() -> _Count:
            cpu = {who: cpu_s(pid) for who, pid in pids.items()}
            commands = calls(await redis.info("commandstats"))
            said = await client.ask()  # the last, as it takes a while to sort its latencies
            return _Count(said, cpu | {"client": said["cpu_s"]}, commands)

        async with asyncio.timeout(START_TIMEOUT_S):
            while (await client.ask())["streaming"] < streams:
                await asyncio.sleep(0.2)
        await asyncio.sleep(SETTLE_S)
        before = await count()
        await asyncio.sleep(window_s)
        after = await count()
    return Window(
        elapsed_s=after.client["at_s"] - before.client["at_s"],
        tokens=after.client["tokens"] - before.client["tokens"],
        deltas=after.client["deltas"] - before.client["deltas"],
        cpu_s={who: spent_s - before.cpu_s[who] for who, spent_s in after.cpu_s.items()},
        commands={name: n - before.commands.get(name, 0) for name, n in after.commands.items()},
        since=after.client["since"],
    )


def calls(commandstats: Mapping[str, Any]) -> dict[str, int]:
    """How often each command was called, from what INFO says."""
    return {
        name.removeprefix("cmdstat_"): int(counts["calls"])
        for name, counts in commandstats.items()
        if name.startswith("cmdstat_")
    }


# The client process that follows many streams, from inside


class Streams:
    """Keeps streams under way and counts what comes."""

    def __init__(self, client: AsyncClient, load: Load) -> None:
        self._client = client
        self._load = load
        self._stamped = load.model == "mock"
        self._prompt = " w" * (1 if self._stamped else load.tokens)
        self._streaming: set[int] = set()
        self._tokens = 0
        self._deltas = 0
        self._since: dict[str, list[float]] = {"from enqueue": [], "first": [], "later": []}

    async def run(self) -> None:
        """Keep them under way, for ever."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._load.streams):
                group.create_task(self._keep(number))

    def count(self) -> dict[str, Any]:
        """What has come; latencies begin anew with each count."""
        since, self._since = self._since, {kind: [] for kind in self._since}
        counts = {
            "at_s": time.monotonic(),
            "cpu_s": time.process_time(),
            "streaming": len(self._streaming),
            "tokens": self._tokens,
            "deltas": self._deltas,
        }
        return {
            **counts,
            "since": {kind: quantiles(values) for kind, values in since.items() if len(values) > 1},
        }

    async def _keep(self, number: int) -> None:
        """One stream after the other."""
        await asyncio.sleep(self._load.ramp_s * number / self._load.streams)
        request = PromptRequest(
            prompt=self._prompt,
            model=self._load.model,
            params=GenerationParams(max_tokens=self._load.tokens),
        )
        while True:
            enqueued_at_ns = time.monotonic_ns()
            await self._follow(number, await self._client.enqueue(request), enqueued_at_ns)

    async def _follow(self, number: int, job: Job, enqueued_at_ns: int) -> None:
        first = True
        async for event in job.events():
            if isinstance(event, Delta):
                now_ns = time.monotonic_ns()
                if first:
                    self._streaming.add(number)
                    self._since["from enqueue"].append((now_ns - enqueued_at_ns) / 1e6)
                self._take(event.text, now_ns, first)
                first = False
            elif event.terminal and not isinstance(event, Done):
                raise SystemExit(f"a stream has ended badly: {event}")

    def _take(self, text: str, now_ns: int, first: bool) -> None:
        self._deltas += 1
        if not self._stamped:
            self._tokens += text.count(" ")
            return
        took_ms = [now_ns / 1e6 - int(sent_us) / 1e3 for sent_us in text.split()]
        self._tokens += len(took_ms)
        if first:
            self._since["first"].append(took_ms.pop(0))
        self._since["later"] += took_ms


async def follow(client: AsyncClient, load: Load) -> None:
    """Keep streams under way, and print the counts for each line that comes in."""
    streams = Streams(client, load)
    running = asyncio.create_task(streams.run())
    lines = await lines_of_stdin()
    while not running.done():
        asked = asyncio.create_task(lines.readline())
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        if asked.done() and not asked.result():
            break
        if asked.done():
            print(orjson.dumps(streams.count()).decode(), flush=True)
        asked.cancel()
    if not running.cancel():
        running.result()


async def lines_of_stdin() -> asyncio.StreamReader:
    """Standard input, to be awaited."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


# Many readers of one job


async def read_one_job(bench: Bench, readers: Sequence[int], *, raw: bool = False) -> Figures:
    """Some readers in each client process follow one job of `echo`, from before it starts."""
    how = ("--raw",) if raw else ()
    words = bench.size(400, 100)
    async with bench.client() as client, AsyncExitStack() as stack:
        job = await client.enqueue(" w" * words, model="echo")
        processes = [
            await stack.enter_async_context(started(*READ, bench.url, job.id, str(n), *how)) for n in readers
        ]
        for process in processes:
            await said(process)  # ready
        with worker_processes(bench, toml=ECHO.format(delay_s=ECHO_DELAY_S)):
            told = [orjson.loads(await said(process)) for process in processes]
    return readers_figures(told, sum(readers))


async def said(process: asyncio.subprocess.Process) -> bytes:
    """The next line of a process."""
    assert process.stdout is not None
    async with asyncio.timeout(START_TIMEOUT_S):
        line = await process.stdout.readline()
    if not line:
        raise SystemExit("a client process that reads the job has failed; see above")
    return line


def readers_figures(told: Sequence[Mapping[str, Any]], readers: int) -> dict[tuple[str, str], float]:
    """Put together what the client processes have seen; every reader has to have seen every event."""
    ids = {event_id for each in told for event_id in each["events"]}
    spread_ms = []
    firsts, lasts = [], []
    for event_id in ids:
        seen = [each["events"][event_id] for each in told if event_id in each["events"]]
        if (n := sum(count for count, _, _ in seen)) != readers:
            raise SystemExit(f"{n} of {readers} readers got event {event_id}")
        firsts.append(min(first for _, first, _ in seen))
        lasts.append(max(last for _, _, last in seen))
        spread_ms.append((lasts[-1] - firsts[-1]) / 1e6)
    deliveries = len(ids) * readers
    cuts = quantiles(spread_ms)
    return {
        ("delivered", "deltas/s"): deliveries / (max(lasts) - min(firsts)) * 1e9,
        ("first to last reader, p50", "ms"): cuts["p50"],
        ("first to last reader, p99", "ms"): cuts["p99"],
        ("client CPU", "µs/delta"): sum(each["cpu_s"] for each in told) / deliveries * 1e6,
    }


async def read(client: AsyncClient, job_id: str, readers: int, *, raw: bool) -> None:
    """Follow a job many times; print the deltas' ids, how often they came, first and last time (ns)."""
    seen: dict[str, tuple[int, int, int]] = {}
    waiting = asyncio.Semaphore(0)
    cpu_before_s: list[float] = []

    async def one() -> None:
        job = client.job(job_id)
        async for event in job.events_json() if raw else job.events():
            if event.type != Delta.type:
                waiting.release()  # the first event, "queued", is there: this one reads
                continue
            now_ns = time.monotonic_ns()
            count, first_ns, _ = seen.get(event.id, (0, now_ns, 0))
            seen[event.id] = (count + 1, first_ns, now_ns)

    async def tell() -> None:
        for _ in range(readers):
            await waiting.acquire()
        cpu_before_s.append(time.process_time())
        print("ready", flush=True)

    await asyncio.gather(tell(), *(one() for _ in range(readers)))
    cpu_spent_s = time.process_time() - cpu_before_s[0]
    print(orjson.dumps({"events": seen, "cpu_s": cpu_spent_s}).decode(), flush=True)


async def be_client(options: argparse.Namespace) -> None:
    """Be a client process."""
    settings = load_settings(environ={}, redis_url=options.url)
    async with AsyncClient(settings=settings) as client:
        if options.what == "read":
            await read(client, options.job_id, options.readers, raw=options.raw)
        else:
            load = Load(options.model, options.streams, options.tokens, options.ramp_s)
            await follow(client, load)


def main() -> None:
    """Parse the command line of a client process."""
    parser = argparse.ArgumentParser(description="A client process of the measurement.")
    kinds = parser.add_subparsers(dest="what", required=True)
    following = kinds.add_parser("follow")
    following.add_argument("url")
    following.add_argument("model")
    following.add_argument("streams", type=int)
    following.add_argument("tokens", type=int)
    following.add_argument("ramp_s", type=float)
    reading = kinds.add_parser("read")
    reading.add_argument("url")
    reading.add_argument("job_id")
    reading.add_argument("readers", type=int)
    reading.add_argument("--raw", action="store_true")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(be_client(parser.parse_args()))


if __name__ == "__main__":
    main()
