"""The faults, and a schedule of them that a seed repeats."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import orjson
import redis.asyncio

from scheduler.queue import PromptQueue
from scheduler.queue.inspection.clock import read_clock_ms
from tests.chaos.arena import (
    LEASE_S,
    MAIN,
    QUEUES_OF_CLIENTS,
    QUEUES_OF_WORKERS,
    SIDE,
    Arena,
    ForgetfulServer,
    SentinelSet,
    ServerBehindProxy,
)

WORKERS, CLIENTS = len(QUEUES_OF_WORKERS), len(QUEUES_OF_CLIENTS)

LATE_MS = 600_000
"""No job of a client is delayed for that long."""

FINE = (0, -signal.SIGKILL)
"""Poison may end a worker process while it drains."""

Fault: TypeAlias = Callable[[Arena, random.Random], Awaitable[None]]


async def worker_killed(arena: Arena, rng: random.Random) -> None:
    """SIGKILL, with all that the process runs."""
    arena.kill_worker(rng.randrange(WORKERS))


async def two_workers_killed(arena: Arena, rng: random.Random) -> None:
    """SIGKILL of two at once."""
    for at in rng.sample(range(WORKERS), 2):
        arena.kill_worker(at)


async def worker_paused(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP until its jobs have been given to others, then SIGCONT: what it still writes is refused."""
    paused = arena.pause_worker(rng.randrange(WORKERS))
    await asyncio.sleep(LEASE_S * rng.uniform(1.2, 2))
    paused.send_signal(signal.SIGCONT)


async def workers_replaced(arena: Arena, rng: random.Random) -> None:
    """A rolling restart: SIGTERM of each after the other, another beside it."""
    for at in range(WORKERS):
        status = await arena.replace_worker(at)
        assert status in FINE, f"a worker process that was to drain exited with {status}"


async def client_killed(arena: Arena, rng: random.Random) -> None:
    """SIGKILL of a client: what it was promised still runs."""
    arena.kill_client(rng.randrange(CLIENTS))


async def redis_killed(arena: Arena, rng: random.Random) -> None:
    """SIGKILL, and a start from the append-only file."""
    assert isinstance(arena.server, ServerBehindProxy)
    arena.server.lone.kill()
    await asyncio.sleep(rng.uniform(0, 1.5))
    await arena.server.lone.start()


async def redis_paused(arena: Arena, rng: random.Random) -> None:
    """SIGSTOP for longer than a lease."""
    assert isinstance(arena.server, ServerBehindProxy)
    arena.server.lone.send_signal(signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.5, 1.5) * LEASE_S)
    arena.server.lone.send_signal(signal.SIGCONT)


async def redis_cut(arena: Arena, rng: random.Random) -> None:
    """All connections end, several times: what was being said is half said."""
    assert isinstance(arena.server, ServerBehindProxy)
    for _ in range(3):
        arena.server.proxy.cut()
        await asyncio.sleep(rng.uniform(0, 0.3))


async def redis_unreachable(arena: Arena, rng: random.Random) -> None:
    """No connection is taken."""
    assert isinstance(arena.server, ServerBehindProxy)
    arena.server.proxy.refuse()
    await asyncio.sleep(rng.uniform(0.5, 2) * LEASE_S)
    arena.server.proxy.heal()


async def redis_half_open(arena: Arena, rng: random.Random) -> None:
    """Connections stand, and nothing comes through."""
    assert isinstance(arena.server, ServerBehindProxy)
    arena.server.proxy.swallow()
    await asyncio.sleep(rng.uniform(0.5, 1.5) * LEASE_S)
    arena.server.proxy.heal()


async def redis_far_away(arena: Arena, rng: random.Random) -> None:
    """Latency of tens of milliseconds each way."""
    assert isinstance(arena.server, ServerBehindProxy)
    arena.server.proxy.slow_down(rng.uniform(0.01, 0.05))
    await asyncio.sleep(3)
    arena.server.proxy.heal()


async def redis_throttled(arena: Arena, rng: random.Random) -> None:
    """Little comes through a connection."""
    assert isinstance(arena.server, ServerBehindProxy)
    arena.server.proxy.throttle(rng.uniform(100_000, 400_000))
    await asyncio.sleep(3)
    arena.server.proxy.heal()


@asynccontextmanager
async def _direct(arena: Arena) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(arena.server.direct_url) as client:
        yield client


async def _refuse_writes(arena: Arena, rng: random.Random, *refuse: str, heal: tuple[str, ...]) -> None:
    """A whole server that takes no writes for longer than a lease."""
    async with _direct(arena) as client:
        await client.execute_command(*refuse)
        await asyncio.sleep(rng.uniform(1.2, 2.5) * LEASE_S)
        await client.execute_command(*heal)


async def redis_read_only(arena: Arena, rng: random.Random) -> None:
    """READONLY: it becomes the replica of a primary that is not there."""
    await _refuse_writes(arena, rng, "REPLICAOF", "127.0.0.1", "1", heal=("REPLICAOF", "NO", "ONE"))


async def redis_without_replicas(arena: Arena, rng: random.Random) -> None:
    """NOREPLICAS."""
    way = ("CONFIG", "SET", "min-replicas-to-write")
    await _refuse_writes(arena, rng, *way, "1", heal=(*way, "0"))


async def redis_at_maxmemory(arena: Arena, rng: random.Random) -> None:
    """OOM: new jobs are refused, those that are there are run."""
    way = ("CONFIG", "SET", "maxmemory")
    await _refuse_writes(arena, rng, *way, "1", heal=(*way, "0"))


async def redis_cannot_save(arena: Arena, rng: random.Random) -> None:
    """MISCONF: a snapshot is wanted, and cannot be written where a folder of its name is."""
    assert isinstance(arena.server, ServerBehindProxy)
    in_the_way = arena.server.lone.folder / "dump.rdb"
    (in_the_way / "full").mkdir(parents=True, exist_ok=True)
    async with _direct(arena) as client:
        await client.bgsave()
        while (await client.info("persistence"))["rdb_last_bgsave_status"] != "err":
            await asyncio.sleep(0.05)
    way = ("CONFIG", "SET", "save")
    await _refuse_writes(arena, rng, *way, "3600 1000000", heal=(*way, ""))


async def redis_busy(arena: Arena, rng: random.Random) -> None:
    """BUSY: somebody's script has no end."""
    async with _direct(arena) as client, _direct(arena) as killer:
        await client.config_set("lua-time-limit", 200)
        endless = asyncio.create_task(client.eval("while true do end", 0))
        await asyncio.sleep(rng.uniform(1.2, 2) * LEASE_S)
        await killer.script_kill()
        await asyncio.gather(endless, return_exceptions=True)


async def scripts_flushed(arena: Arena, rng: random.Random) -> None:
    """SCRIPT FLUSH, as fast as it goes: a script may be gone right after it was loaded."""
    async with _direct(arena) as client:
        for _ in range(300):
            await client.script_flush()


async def operators_at_work(arena: Arena, rng: random.Random) -> None:
    """Lanes are paused, jobs changed, dead letters run again, everything looked at."""
    await arena.operate("admin", "queue", "pause", "flaky")
    await arena.operate("admin", "jobs", "list", "--limit", "50")
    shown = await arena.operate("admin", "jobs", "list", "--state", "delayed", "--limit", "2", "--json")
    for job in orjson.loads(shown or "[]"):
        # It may be on its way by now.
        await arena.operate("admin", "jobs", "run-now", job["id"], fine=(0, 2))
    await arena.operate("admin", "queue", "resume", "flaky")
    shown = await arena.operate(
        "enqueue", "of an operator", "--model", "spare", "--delay", "1h", "--no-wait", "--json"
    )
    own = orjson.loads(shown)["job_id"] if shown else ""
    await arena.operate("admin", "jobs", "reschedule", own, "2h")
    await arena.operate("admin", "jobs", "set-priority", own, "critical")
    await arena.operate("admin", "queue", "purge", "spare", "--delayed", "--yes")
    await arena.operate("admin", "jobs", "delete", own, "--yes")
    await arena.operate("admin", "dead", "requeue", "--lane", "echo", "--error", "request_rejected", "--yes")
    await arena.operate("admin", "queue", "status", "--json")
    await arena.operate("admin", "top", "--once")
    await arena.operate("admin", "audit")


async def _forgotten(arena: Arena) -> None:
    """After Redis has lost keys an operator lets the rest be mended, as the runbook says."""
    await asyncio.sleep(2 * LEASE_S)  # worker processes write the settings anew
    for queue in (MAIN, SIDE):
        await arena.operate("--queue", queue, "admin", "audit", "--repair", fine=(0, 1))
        await _hasten_late_jobs(arena, queue)
    arena.forgot_at = time.time()


async def _hasten_late_jobs(arena: Arena, queue: str) -> None:
    """Start what was delayed while the queue's clock was too far on: it is due that much later."""
    async with _direct(arena) as client:
        now_ms = await read_clock_ms(PromptQueue(client, queue))
    listing = ("admin", "jobs", "list", "--state", "delayed", "--limit", "1000", "--json")
    for job in orjson.loads(await arena.operate("--queue", queue, *listing) or "[]"):
        if job["due_at_ms"] > now_ms + LATE_MS:
            # It may be on its way by now.
            await arena.operate("--queue", queue, "admin", "jobs", "run-now", job["id"], fine=(0, 2))


async def redis_emptied(arena: Arena, rng: random.Random) -> None:
    """FLUSHALL: all jobs are gone, and new ones are run."""
    async with _direct(arena) as client:
        await client.flushall()
    await _forgotten(arena)


async def keys_evicted(arena: Arena, rng: random.Random) -> None:
    """A policy that no queue should have: at maxmemory any key may go."""
    async with _direct(arena) as client:
        await client.config_set("maxmemory-policy", "allkeys-random")
        await client.config_set("maxmemory", int(0.8 * (await client.info("memory"))["used_memory"]))
        await asyncio.sleep(0.5)
        await client.config_set("maxmemory", 0)
        await client.config_set("maxmemory-policy", "noeviction")
    await _forgotten(arena)


async def clock_set_back(arena: Arena, rng: random.Random) -> None:
    """The clock of Redis' host goes back by an hour, and stays so."""
    await _set_clock(arena, -3600)


async def clock_set_forward(arena: Arena, rng: random.Random) -> None:
    """The clock of Redis' host goes on by an hour: what would expire within it does, lists of it do not."""
    await _set_clock(arena, 3600)


async def _set_clock(arena: Arena, by_s: int) -> None:
    assert isinstance(arena.server, ForgetfulServer)
    arena.server.set_clock(by_s)
    await _forgotten(arena)


async def failover(arena: Arena, rng: random.Random) -> None:
    """The primary is killed; the sentinels choose its replica."""
    assert isinstance(arena.server, SentinelSet)
    began = time.time()
    await arena.server.fail_over()
    arena.failovers.append((began, time.time()))


async def engine_cut(arena: Arena, rng: random.Random) -> None:
    """All answers of the HTTP engine end in the middle."""
    for _ in range(5):
        arena.engine.cut()
        await asyncio.sleep(rng.uniform(0, 0.3))


async def engine_hangs(arena: Arena, rng: random.Random) -> None:
    """The HTTP engine takes calls and says nothing."""
    arena.engine.swallow()
    await asyncio.sleep(rng.uniform(1, 4))
    arena.engine.heal()


async def engine_drips(arena: Arena, rng: random.Random) -> None:
    """Some hundred bytes a second."""
    arena.engine.throttle(rng.uniform(300, 2000))
    await asyncio.sleep(3)
    arena.engine.heal()


async def engine_down(arena: Arena, rng: random.Random) -> None:
    """The HTTP engine takes no connection."""
    arena.engine.refuse()
    await asyncio.sleep(rng.uniform(1, 3))
    arena.engine.heal()


ANYWHERE: Mapping[Fault, int] = {
    worker_killed: 18,
    two_workers_killed: 3,
    worker_paused: 5,
    workers_replaced: 1,
    client_killed: 4,
    engine_cut: 2,
    engine_hangs: 2,
    engine_drips: 1,
    engine_down: 2,
    operators_at_work: 2,
}
ON_A_LONE_SERVER: Mapping[Fault, int] = {
    redis_killed: 12,
    redis_paused: 3,
    redis_cut: 3,
    redis_unreachable: 2,
    redis_half_open: 2,
    redis_far_away: 1,
    redis_throttled: 1,
    redis_read_only: 2,
    redis_without_replicas: 2,
    redis_at_maxmemory: 2,
    redis_cannot_save: 2,
    redis_busy: 2,
    scripts_flushed: 2,
}
ON_A_FORGETFUL_SERVER: Mapping[Fault, int] = {
    worker_killed: 6,
    redis_emptied: 6,
    keys_evicted: 6,
    clock_set_back: 3,
    clock_set_forward: 3,
}
BEHIND_SENTINELS: Mapping[Fault, int] = {failover: 10, worker_killed: 16, worker_paused: 4, client_killed: 3}
"""How often in five minutes of an arena."""


def schedule(counts: Mapping[Fault, int], minutes: float, rng: random.Random) -> list[Fault]:
    """So many of each as is right for the time, at least one, in an order of the seed's."""
    faults = [fault for fault, n in counts.items() for _ in range(max(1, round(n * minutes / 5)))]
    rng.shuffle(faults)
    return faults
