"""The faults, and a schedule of them that a seed repeats."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Mapping

from tests.chaos.arena import CLIENTS, LEASE_S, WORKERS, Arena, SentinelSet, ServerBehindProxy

FINE = (0, -signal.SIGKILL)
"""Poison may end a worker process while it drains."""

Fault = Callable[[Arena, random.Random], Awaitable[None]]


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


async def failover(arena: Arena, rng: random.Random) -> None:
    """The primary is killed; the sentinels choose its replica."""
    assert isinstance(arena.server, SentinelSet)
    await arena.server.fail_over()


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
    worker_killed: 20,
    two_workers_killed: 3,
    worker_paused: 5,
    workers_replaced: 1,
    client_killed: 4,
    engine_cut: 2,
    engine_hangs: 2,
    engine_drips: 1,
    engine_down: 2,
}
ON_A_LONE_SERVER: Mapping[Fault, int] = {
    redis_killed: 18,
    redis_paused: 3,
    redis_cut: 4,
    redis_unreachable: 3,
    redis_half_open: 3,
    redis_far_away: 2,
    redis_throttled: 2,
}
BEHIND_SENTINELS: Mapping[Fault, int] = {failover: 10, worker_killed: 16, worker_paused: 4, client_killed: 3}
"""How often in five minutes of an arena."""


def schedule(counts: Mapping[Fault, int], minutes: float, rng: random.Random) -> list[Fault]:
    """So many of each as is right for the time, at least one, in an order of the seed's."""
    faults = [fault for fault, n in counts.items() for _ in range(max(1, round(n * minutes / 5)))]
    rng.shuffle(faults)
    return faults
