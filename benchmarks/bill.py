"""What a platform team pays for 1,000 streams of 50 tokens a second: server, worker process, client, delay.

One worker process and one client process, which follows all of them and begins a new stream for each that
ends, so that new ones come all the time. The mock engine sends the first token after 100 ms and the others
20 ms apart. While all streams are under way the server's `INFO commandstats` and the CPU of the processes
are read twice, and the client says how many tokens it has received between.

- Commands "sent" are those of no script's kind; "in scripts" are those that Lua scripts call. The few that
  both do (arq polls with ZRANGEBYSCORE twice a second) count as the latter.
- Added to the first token: from just before the enqueue to the client's first delta, less the engine's
  100 ms.
- Streams a core holds: 1 / (CPU seconds of the process for a second of one stream), from the tokens that did
  arrive. That is where the core would be full, so delays are long there; and as a process that is busier puts
  more into a batch, the figure grows with the load.
- Two cores are shared by server, worker, client and engine. Where they do not *carry* as many streams, the
  figures of the attempt are kept, and fewer are tried until they do. Streams are carried when 95 % of the
  timetable's tokens arrive, and the middle one in less than 50 ms.
"""

from __future__ import annotations

import re

from benchmarks.harness import Bench, Figures, worker_processes
from benchmarks.mock_engine import mock_engine
from benchmarks.streaming import MOCK, Load, Window, follower, watch
from scheduler.queue.scripts import NAMES, source

MEASURE = "what a platform team pays"
FIRST_TOKEN_MS = 100.0
INTERVAL_MS = 20.0
WANTED, FEWER = 1000, (700, 500, 350, 250, 180, 120, 80, 50)
QUICK_WANTED, QUICK_FEWER = 200, (100, 50)
CARRIED_PART = 0.95
CARRIED_MS = 50.0

PART = ("tokens that came, of the timetable's", "parts of 1")
LATER = ("later tokens under way, p50", "ms")


async def measure(bench: Bench) -> None:
    """As many streams as are wanted; then the most that are carried, where those are not."""
    wanted = bench.size(WANTED, QUICK_WANTED)
    if await measure_streams(bench, wanted):
        bench.notes[MEASURE] = f"{wanted:,} streams are carried"
        return
    for fewer in QUICK_FEWER if bench.quick else FEWER:
        # In a quick run the trial is the measurement: there is no time for both.
        if not bench.quick and not await tried(bench, fewer):
            continue
        if await measure_streams(bench, fewer):
            bench.notes[MEASURE] = f"{wanted:,} streams are not carried on this machine; {fewer:,} are"
            return
    bench.notes[MEASURE] = "none of these numbers of streams is carried on this machine"


async def measure_streams(bench: Bench, streams: int) -> bool:
    """Measure in all rounds; returns whether the streams were carried in most of them."""
    carried: list[bool] = []

    async def once() -> Figures:
        figures = await run(bench, streams, window_s=bench.size(10, 4))
        carried.append(are_carried(figures))
        return figures

    await bench.alternate(MEASURE, {f"{streams:,} streams": once})
    return sum(carried) * 2 > len(carried)


async def tried(bench: Bench, streams: int) -> bool:
    """Whether so many streams are carried, for a short while."""
    async with bench.redis() as redis:
        await redis.flushall()
    return are_carried(await run(bench, streams, window_s=4))


def are_carried(figures: Figures) -> bool:
    """Whether the tokens came, and in time."""
    return figures[PART] >= CARRIED_PART and figures[LATER] <= CARRIED_MS


async def run(bench: Bench, streams: int, *, window_s: float) -> Figures:
    """Keep so many streams under way, and look at them for a while."""
    tokens = bench.size(250, 100)
    stream_s = (FIRST_TOKEN_MS + (tokens - 1) * INTERVAL_MS) / 1000
    load = Load("mock", streams, tokens, ramp_s=stream_s)
    with (
        mock_engine(first_token_ms=FIRST_TOKEN_MS, interval_ms=INTERVAL_MS) as engine,
        worker_processes(bench, toml=MOCK.format(url=engine.url)) as (worker,),
    ):
        async with follower(bench, load) as client:
            window = await watch(bench, client, streams, window_s, worker=worker.pid, engine=engine.pid)
    streams_served = window.tokens / window.elapsed_s / (tokens / stream_s)
    return {**costs(window, streams_served), PART: streams_served / streams}


def costs(window: Window, streams_served: float) -> Figures:
    """What it cost, for 1,000 tokens. So many streams would have had their tokens in time."""
    thousands = window.tokens / 1000
    in_scripts = sum(n for name, n in window.commands.items() if name in commands_of_scripts())
    sent = sum(window.commands.values()) - in_scripts
    return {
        ("tokens", "tokens/s"): window.tokens / window.elapsed_s,
        ("commands sent", "/1,000 tokens"): sent / thousands,
        ("commands in scripts", "/1,000 tokens"): in_scripts / thousands,
        **{
            (f"{who} CPU", "ms/1,000 tokens"): spent_s * 1000 / thousands
            for who, spent_s in window.cpu_s.items()
        },
        **{
            (f"a {who} core holds", "streams"): streams_served / (window.cpu_s[who] / window.elapsed_s)
            for who in ("worker", "server", "client")
        },
        **window.latencies("added to the first token", "from enqueue", less_ms=FIRST_TOKEN_MS),
        **window.latencies("later tokens under way", "later"),
    }


def commands_of_scripts() -> set[str]:
    """The names of the commands that our Lua scripts call."""
    return {
        command.lower() for name in NAMES for command in re.findall(r"redis\.p?call\('(\w+)'", source(name))
    }
