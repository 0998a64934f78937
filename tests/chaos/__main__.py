"""Random faults over worker processes, clients, Redis and an engine; an auditor at the end.

    make chaos MINUTES=5 SEED=7        # or: python -m tests.chaos --minutes 5 --seed 7

Three arenas, one after the other: a lone server whose append-only file has every write, behind a bad network;
a primary with a replica behind three sentinels; and a server that forgets, and whose clock is set. In each,
client processes enqueue jobs of all kinds into two queues and read what becomes of them while faults happen;
then everything heals, all jobs have to end, and what was promised is compared with what clients saw, with
Redis, and with the calls that reached an engine.

Exits with 1 if anything was lost, ended twice, leaked, or said what it should not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import redis.asyncio
from redis.exceptions import RedisError as RedisServerError

from scheduler.queue.keys import Keys
from scheduler.redis_server.embedded import bundled_binary, server_binary
from tests.chaos.arena import MAIN, SIDE, Arena, ForgetfulServer, SentinelSet, Server, ServerBehindProxy
from tests.chaos.auditor import Verdict, judge
from tests.chaos.faults import (
    ANYWHERE,
    BEHIND_SENTINELS,
    FINE,
    ON_A_FORGETFUL_SERVER,
    ON_A_LONE_SERVER,
    Fault,
    clock_set_back,
    clock_set_forward,
    schedule,
)
from tests.chaos.proxy import ChaosProxy
from tests.contracts.openai_server import OpenAIServer

SHARE_OF_SENTINELS, SHARE_OF_FORGETFUL = 0.3, 0.2
RECOVERY_S = 150.0
REST_S = 30.0
KEYS = Keys(MAIN)


class Exposure:
    """How often each fault happened, and how many jobs ran or waited then."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()

    async def note(self, name: str, url: str) -> None:
        """Look at the queue right before a fault."""
        self.times[name] += 1
        try:
            async with redis.asyncio.Redis.from_url(url, socket_timeout=1) as client:
                self.running[name] += await client.zcard(KEYS.fixed("leases"))
                self.waiting[name] += int(await client.hget(KEYS.fixed("meta"), "n") or 0)
        except (RedisServerError, OSError):
            pass


async def fight(
    arena: Arena, faults: list[Fault], seconds: float, rng: random.Random, exposure: Exposure
) -> None:
    """Let the faults happen, spread over the time; bring back what dies of itself."""
    await arena.start()
    began = time.monotonic()
    nursing = asyncio.create_task(_nurse(arena))
    try:
        await asyncio.sleep(min(3.0, seconds / 10))
        for at, fault in enumerate(faults):
            pause = began + seconds * (at + 1) / (len(faults) + 1) - time.monotonic()
            await asyncio.sleep(max(0.0, pause) * rng.uniform(0.7, 1))
            print(f"{time.monotonic() - began:7.1f} s  {fault.__name__}", flush=True)
            await exposure.note(fault.__name__, arena.server.direct_url)
            await fault(arena, rng)
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        arena.stop_clients()
        give_up_at = time.monotonic() + RECOVERY_S
        while any(client.poll() is None for client in arena.clients):
            if time.monotonic() > give_up_at:
                break
            await asyncio.sleep(0.1)
        await _until_at_rest(arena, time.monotonic() + REST_S)
    finally:
        nursing.cancel()
    statuses = await arena.stop_workers()
    assert set(statuses) <= set(FINE), f"worker processes that were to drain exited with {statuses}"


async def _until_at_rest(arena: Arena, give_up_at: float) -> None:
    """Wait for jobs whose ends clients have heard, and a failover has lost: they run again."""
    async with redis.asyncio.Redis.from_url(arena.server.direct_url) as client:
        while time.monotonic() < give_up_at:
            keys = [Keys(queue).fixed(kind) for queue in (MAIN, SIDE) for kind in ("leases", "delayed")]
            if not any([await client.zcard(key) for key in keys]):
                return
            await asyncio.sleep(0.1)


async def _nurse(arena: Arena) -> None:
    while True:
        await asyncio.sleep(0.2)
        arena.bring_back_the_dead()


async def run_arena(
    server: Server,
    folder: Path,
    counts: Mapping[Fault, int],
    *,
    args: argparse.Namespace,
    minutes: float,
    exposure: Exposure,
) -> Verdict:
    """One arena from its start to its verdict."""
    name = type(server).__name__
    rng = random.Random(f"{args.seed} {name}")
    engine = OpenAIServer()
    listener = await asyncio.start_server(engine.serve, "127.0.0.1", 0)
    async with AsyncExitStack() as stack:
        stack.callback(listener.close)
        proxy = ChaosProxy(*listener.sockets[0].getsockname()[:2])
        await stack.enter_async_context(proxy)
        await server.start()
        stack.push_async_callback(server.stop)
        seconds = minutes * 60
        arena = Arena(server, proxy, folder, f"{args.seed} {name}", args.jobs_per_s, seconds / 3)
        stack.callback(arena.kill_all)
        faults = schedule(counts, minutes, rng)
        jobs = f"{args.jobs_per_s:g} jobs a second"
        print(f"{name}: {len(faults)} faults in {seconds:.0f} s, {jobs}", flush=True)
        await fight(arena, faults, seconds, rng, exposure)
        return await judge(arena)


async def main() -> int:
    """Fight in both arenas and print what happened."""
    args = _arguments()
    binary = bundled_binary() or server_binary()
    print(f"seed {args.seed}", flush=True)
    exposure, verdicts = Exposure(), []
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    lone, behind, forgetful = folder / "lone", folder / "sentinels", folder / "forgetful"
    forgets = ForgetfulServer(binary, forgetful / "data")
    faults_of_forgetful = dict(ON_A_FORGETFUL_SERVER)
    if not forgets.has_clock:
        print("no libfaketime: the clock of Redis' host stays as it is", flush=True)
        del faults_of_forgetful[clock_set_back], faults_of_forgetful[clock_set_forward]
    arenas: list[tuple[Path, Server, Mapping[Fault, int], float]] = [
        (
            lone,
            ServerBehindProxy(binary, lone / "data"),
            {**ANYWHERE, **ON_A_LONE_SERVER},
            1 - SHARE_OF_SENTINELS - SHARE_OF_FORGETFUL,
        ),
        (behind, SentinelSet(binary, behind / "data"), BEHIND_SENTINELS, SHARE_OF_SENTINELS),
        (forgetful, forgets, faults_of_forgetful, SHARE_OF_FORGETFUL),
    ]
    for path, server, faults, share in arenas:
        if args.arena not in (None, path.name):
            continue
        counts = {fault: n for fault, n in faults.items() if args.fault in (None, fault.__name__)}
        path.mkdir(exist_ok=True)
        minutes = args.minutes * share
        verdict = await run_arena(server, path, counts, args=args, minutes=minutes, exposure=exposure)
        verdicts.append(verdict)
    _print_faults(exposure)
    problems = 0
    for verdict in verdicts:
        verdict.show()
        problems += len(verdict.problems)
    if problems:
        print(f"\n{problems} problems; ledgers and logs are in {folder}; again: --seed {args.seed}")
    return 1 if problems else 0


def _print_faults(exposure: Exposure) -> None:
    print(f"\n{'fault':<22}{'times':>7}{'running then':>15}{'waiting then':>15}")
    for name, times in exposure.times.most_common():
        shown = name.replace("_", " ")
        print(f"{shown:<22}{times:>7}{exposure.running[name]:>15,}{exposure.waiting[name]:>15,}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", default=str(random.randrange(10**6)))
    parser.add_argument("--arena", choices=("lone", "sentinels", "forgetful"), help="only this one")
    parser.add_argument("--fault", help="only this one, as redis_busy")
    parser.add_argument("--jobs-per-s", type=float, default=400.0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
