"""Run the measurements, on a server of their own; print the table, and keep it with its plots.

    make bench                                    # all of it, some 40 minutes
    python -m benchmarks --quick                  # under two minutes
    python -m benchmarks drain latency --rounds 7 --out /tmp/figures

Runs of different subjects alternate on the same server; a figure is the median of the rounds, and its range.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from redis.asyncio import Redis

from benchmarks import adapters, bill, drain, enqueue, latency, memory, report, scale, streaming, telemetry
from benchmarks.harness import Bench
from scheduler.redis_server.embedded import EmbeddedServer, bundled_binary

MEASURES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "drain": drain.measure,
    "enqueue": enqueue.measure,
    "latency": latency.measure,
    "scale": scale.measure,
    "memory": memory.measure,
    "streaming": streaming.measure,
    "adapters": adapters.measure,
    "bill": bill.measure,
    "telemetry": telemetry.measure,
}
"""In the order of the report."""


async def run(names: list[str], server: EmbeddedServer, *, quick: bool, rounds: int) -> Bench:
    """Measure what is named."""
    async with Redis.from_url(server.url) as redis:
        info = await redis.info("server")
    version = info.get("valkey_version") or info["redis_version"]
    kind = "Valkey" if "valkey_version" in info else "Redis"
    bench = Bench(server, int(info["process_id"]), f"{kind} {version}", quick=quick, rounds=rounds)
    for name in names:
        await MEASURES[name](bench)
    return bench


def main() -> None:
    """Parse the command line, measure, report."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(MEASURES)}; else all")
    parser.add_argument("--quick", action="store_true", help="fewer jobs and one round, in two minutes")
    parser.add_argument("--rounds", type=int, help="how often each case runs; 5, and 1 in a quick run")
    parser.add_argument("--out", type=Path, help="keep figures.json, the table and the plots in this folder")
    parser.add_argument(
        "--server", type=Path, default=bundled_binary(), help="the redis-server or valkey-server to use"
    )
    options = parser.parse_args()
    if unknown := [name for name in options.measures if name not in MEASURES]:
        parser.error(f"no such measure: {', '.join(unknown)}; there are {', '.join(MEASURES)}")
    rounds = options.rounds or (1 if options.quick else 5)
    with EmbeddedServer(binary=options.server) as server:
        bench = asyncio.run(
            run(options.measures or list(MEASURES), server, quick=options.quick, rounds=rounds)
        )
    report.show(bench)
    if options.out:
        report.keep(bench, options.out)


if __name__ == "__main__":
    main()
