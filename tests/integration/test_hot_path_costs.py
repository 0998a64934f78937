"""What a job costs Redis on its way: round trips, commands and bytes, counted by the server. No clock.

These are the numbers of today. A change that makes one of them larger has to say why; one that makes it
smaller writes the smaller one here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from scheduler import AsyncClient, load_settings
from scheduler.engine import Engine
from scheduler.model import JobState
from scheduler.queue.queue import PromptQueue
from scheduler.queue.scripts import Argument, Call, Scripts
from scheduler.redis_server.connection import open_redis
from tests.contracts.queue_driver import LANE, QueueDriver, deltas, ending, new_job
from tests.integration.engine_room import until
from tests.patience import SOON_S

JOBS = 64
COMMANDS = {"enqueue": 466, "claim": 213, "publish": 384, "finish": 394, "finish at once": 586}
"""Of all the jobs. Two deltas each, published first or with the end; a dedup key, which it lets go of.

One command a call reads what the queue's clock adds to that of Redis; a publication asks for no time."""
BYTES_A_JOB = {"enqueue": 175, "claim": 140, "publish": 200, "finish": 200, "finish at once": 350}
ROUND_TRIPS = {"enqueue": 1, "claim": 1, "finish": 1}
"""Of a prompt on an idle system, that is answered at once. Who reads its events replays them once beside."""

AROUND_SCRIPTS = {"evalsha", "info", "multi", "exec"}


@dataclass(frozen=True)
class Cost:
    """Script calls, commands that scripts made, and bytes from and to the client."""

    scripts: int
    commands: int
    bytes_in: int
    bytes_out: int


class Meter:
    """Counts what happens between `start` and `stop`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._calls: dict[str, int] = {}
        self._net = self._looking = (0, 0)

    async def start(self) -> None:
        """Read the bytes last: what INFO says of commands has a length of its own each time."""
        self._calls = await self._commands()
        first = await self._bytes()
        self._net = await self._bytes()
        self._looking = (self._net[0] - first[0], self._net[1] - first[1])

    async def stop(self) -> Cost:
        """And first here."""
        net = await self._bytes()
        calls = await self._commands()
        made = {name: n - self._calls.get(name, 0) for name, n in calls.items()}
        return Cost(
            made.get("evalsha", 0),
            sum(n for name, n in made.items() if name not in AROUND_SCRIPTS),
            net[0] - self._net[0] - self._looking[0],
            net[1] - self._net[1] - self._looking[1],
        )

    async def _commands(self) -> dict[str, int]:
        stats = await self._redis.info("commandstats")
        return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}

    async def _bytes(self) -> tuple[int, int]:
        stats = await self._redis.info("stats")
        return stats["total_net_input_bytes"], stats["total_net_output_bytes"]


@pytest.fixture
async def q(valkey_url: str) -> AsyncIterator[QueueDriver]:
    async with Redis.from_url(valkey_url) as redis:
        queue = PromptQueue(redis, "default")
        await queue.load()
        driver = QueueDriver(queue)
        await driver.configure()
        yield driver


async def enqueue(q: QueueDriver, name: str) -> None:
    await q.enqueue(*[new_job(f"{name}-{n:04}", key=f"{name} {n:04}") for n in range(JOBS)])


async def test_a_job_costs_no_more_than_it_did(q: QueueDriver) -> None:
    meter = Meter(q.redis)
    costs = {}

    await meter.start()
    await enqueue(q, "job")
    costs["enqueue"] = await meter.stop()

    await meter.start()
    jobs = (await q.claim_all(JOBS, lanes={LANE: JOBS})).jobs
    costs["claim"] = await meter.stop()
    assert len(jobs) == JOBS

    await meter.start()
    await q.queue.write(publications=[deltas(job, "a", "b") for job in jobs])
    costs["publish"] = await meter.stop()

    await meter.start()
    await q.queue.write(endings=[ending(job, JobState.DONE, seq=3) for job in jobs])
    costs["finish"] = await meter.stop()

    await enqueue(q, "fast")
    jobs = (await q.claim_all(JOBS, lanes={LANE: JOBS})).jobs
    await meter.start()
    ends = [ending(job, JobState.DONE, seq=3, events=deltas(job, "a", "b").events) for job in jobs]
    await q.queue.write(endings=ends)
    costs["finish at once"] = await meter.stop()

    assert {name: cost.scripts for name, cost in costs.items()} == dict.fromkeys(COMMANDS, 1)
    assert {name: cost.commands for name, cost in costs.items()} == COMMANDS
    for name, cost in costs.items():
        assert cost.bytes_in + cost.bytes_out <= JOBS * BYTES_A_JOB[name], name


async def test_a_prompt_on_an_idle_system_takes_one_claim_and_one_write(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(environ={}, redis_url=valkey_url, lease_s=600)
    engine = Engine(settings, open_redis(valkey_url))
    await engine.start()
    async with AsyncClient(settings=settings) as client:
        await client.run("the first", model="echo", timeout_s=SOON_S)
        await until(lambda: engine.claimer.will_be_woken(engine.claimer.room()))
        called: Counter[str] = Counter()
        run_each, run = Scripts.run_each, Scripts.run

        async def counted_run_each(scripts: Scripts, calls: Sequence[Call]) -> list[Any]:
            called.update(name for name, _ in calls)
            return await run_each(scripts, calls)

        async def counted_run(scripts: Scripts, name: str, *args: Argument) -> Any:
            called[name] += 1
            return await run(scripts, name, *args)

        monkeypatch.setattr(Scripts, "run_each", counted_run_each)
        monkeypatch.setattr(Scripts, "run", counted_run)
        await client.run("the next", model="echo", timeout_s=SOON_S)
        await until(lambda: engine.claimer.will_be_woken(engine.claimer.room()) and not engine.running)
        monkeypatch.undo()
    await engine.stop()
    await engine.queue.redis.aclose()
    called.pop("tick", None)
    assert called.pop("replay") == 1
    assert called == ROUND_TRIPS
