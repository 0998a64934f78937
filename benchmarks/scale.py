"""Scale: what an operation costs while a thousand, a hundred thousand or a million jobs wait; and many lanes.

A queue for each number of waiting jobs, all on one server, each with one lane and one priority, filled once:
every job has a dedup key and a payload of some 40 bytes. `PromptQueue` is driven directly; no worker process
runs. A cycle on a queue does each operation to 128 jobs and leaves as many waiting as there were:

- enqueue: 128 new jobs in one call, three times: as many as the rest takes out;
- dedup hit: 128 new requests in one call whose keys name waiting jobs, drawn from the whole queue, cold;
- cancel: 128 waiting jobs, drawn likewise, a call each; then those that were joined, which is not counted;
- claim: 32 jobs a call, four times;
- finish: those 128, in one call.

The queues take turns, cycle by cycle, so that the machine's mood hits all alike. A figure of a round is the
median of its calls: the server's time, from `usec` of `evalsha` in `INFO commandstats`, which has the
commands inside the script in it; and beside it ("wall") the caller's, with the round trip and redis-py.

Lanes: 2,000 jobs in one lane, beside 2,000 in 20 lanes; priorities 3, 5 and 7 in each lane, so that a claim
looks at 3 levels or at 60. A claim of 32 may take 32 of the one lane, or of each of the 20 in turn 1, 2 or 3:
none has room for all, and together they have room for 39. What was claimed is finished, and replaced by as
many of the same lanes and priorities.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import orjson
from redis.asyncio import Redis

from benchmarks.harness import Bench
from scheduler.model import JobState
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import ClaimedJob, Ending, Enqueued, NewJob

CHUNK = 128
CLAIM = 32
ENQUEUES = 3
LANE = "echo"
LANES = 20
LEVELS = (3, 5, 7)
LANE_JOBS = 2000
LEASE_MS = 3_600_000
MAX_WAITING = 2_000_000
WORKER = "worker"


async def measure(bench: Bench) -> None:
    """Fill the queues, let them take turns; the same with lanes."""
    sizes = (1_000, 100_000) if bench.quick else (1_000, 100_000, 1_000_000)
    async with bench.redis() as redis:
        await redis.flushall()
        queues = {f"{size:,} waiting": await filled(redis, size) for size in sizes}
        await take_turns(bench, "scale", queues, cycles=bench.size(20, 10))
        await redis.flushall()
        laned = {
            "one lane": await filled_lanes(redis, {LANE: CLAIM}),
            f"{LANES} lanes": await filled_lanes(redis, {f"lane{n:02}": 1 + n % 3 for n in range(LANES)}),
        }
        await take_turns(bench, "scale, lanes", laned, cycles=bench.size(60, 30))
        await redis.flushall()


class Meter:
    """What operations have cost: µs a job, on the server and for the caller, call by call."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.server_us: dict[str, list[float]] = {}
        self.wall_us: dict[str, list[float]] = {}

    @asynccontextmanager
    async def of(self, operation: str, jobs: int) -> AsyncIterator[None]:
        """Note what the block costs, as one call."""
        spent_us = await self._spent_us()
        began = time.perf_counter()
        yield
        wall_us = (time.perf_counter() - began) * 1e6
        self.server_us.setdefault(operation, []).append((await self._spent_us() - spent_us) / jobs)
        self.wall_us.setdefault(operation, []).append(wall_us / jobs)

    async def _spent_us(self) -> int:
        stats = await self._redis.info("commandstats")
        return int(stats["cmdstat_evalsha"]["usec"]) if "cmdstat_evalsha" in stats else 0


@dataclass(slots=True)
class Filled:
    """A queue with so many waiting jobs, `job-<n>` for each n, the oldest first.

    Those before `head` have been claimed, those in `gone` cancelled.
    """

    queue: PromptQueue
    head: int = 0
    tail: int = 0
    gone: set[int] = field(default_factory=set)
    claims: Iterator[int] = field(default_factory=count)

    async def cycle(self, meter: Meter) -> None:
        """Each operation once."""
        await self._claim_and_finish(meter)
        drawn = self._draw(2 * CHUNK)
        await self._join(meter, drawn[:CHUNK])
        await self._cancel(meter, drawn[:CHUNK], drawn[CHUNK:])
        for _ in range(ENQUEUES):
            async with meter.of("enqueue", CHUNK):
                await self.enqueue(CHUNK)

    async def enqueue(self, jobs: int) -> None:
        """Add new jobs at the end."""
        new = [keyed_job(f"job-{n}", n) for n in range(self.tail, self.tail + jobs)]
        self.tail += jobs
        check_enqueued(await self.queue.enqueue(new))

    def _draw(self, jobs: int) -> list[int]:
        drawn: set[int] = set()
        while len(drawn) < jobs:
            n = random.randrange(self.head, self.tail)
            if n not in self.gone:
                drawn.add(n)
        return random.sample(sorted(drawn), jobs)

    async def _join(self, meter: Meter, owners: Sequence[int]) -> None:
        again = [keyed_job(f"again-{n}", n) for n in owners]
        async with meter.of("dedup hit", CHUNK):
            outcomes = await self.queue.enqueue(again)
        if not all(isinstance(outcome, Enqueued) and outcome.deduplicated for outcome in outcomes):
            raise SystemExit(f"not joined: {outcomes[0]}")

    async def _cancel(self, meter: Meter, joined: Sequence[int], others: Sequence[int]) -> None:
        async with meter.of("cancel", CHUNK):
            replies = [await self.queue.cancel(f"job-{n}", f"job-{n}") for n in others]
        replies += [await self.queue.cancel(f"job-{n}") for n in joined]
        if set(replies) != {"cancelled"}:
            raise SystemExit(f"not cancelled: {set(replies)}")
        self.gone.update(joined, others)

    async def _claim_and_finish(self, meter: Meter) -> None:
        jobs: list[ClaimedJob] = []
        while len(jobs) < CHUNK:
            async with meter.of("claim", CLAIM):
                jobs += await claim(self.queue, f"claim-{next(self.claims)}", {LANE: CLAIM})
        async with meter.of("finish", CHUNK):
            await finish(self.queue, jobs)
        self.head = max(int(job.id.removeprefix("job-")) for job in jobs) + 1
        self.gone = {n for n in self.gone if n >= self.head}


@dataclass(slots=True)
class FilledLanes:
    """A queue with jobs in some lanes, on some levels each; `quotas` is how many a claim may take of each."""

    queue: PromptQueue
    quotas: Mapping[str, int]
    numbers: Iterator[int] = field(default_factory=count)

    async def cycle(self, meter: Meter) -> None:
        """Claim, finish, and put as many back."""
        async with meter.of("claim", CLAIM):
            jobs = await claim(self.queue, f"claim-{next(self.numbers)}", self.quotas)
        async with meter.of("finish", CLAIM):
            await finish(self.queue, jobs)
        await self.enqueue([(job.lane, job.priority) for job in jobs])

    async def enqueue(self, places: Sequence[tuple[str, int]]) -> None:
        """Add a job at each of these lanes and priorities."""
        new = []
        for lane, priority in places:
            n = next(self.numbers)
            new.append(keyed_job(f"job-{n}", n, lane=lane, priority=priority))
        check_enqueued(await self.queue.enqueue(new))


async def take_turns(
    bench: Bench, measure: str, queues: Mapping[str, Filled] | Mapping[str, FilledLanes], *, cycles: int
) -> None:
    """Run the queues' cycles in turn, and note each operation's cost, round by round."""
    server: dict[tuple[str, str], list[float]] = {}
    wall: dict[tuple[str, str], list[float]] = {}
    for _ in range(bench.rounds):
        meters = {case: Meter(queue.queue.redis) for case, queue in queues.items()}
        for _ in range(cycles):
            for case, queue in queues.items():
                await queue.cycle(meters[case])
        for case, meter in meters.items():
            for operation in meter.server_us:
                server.setdefault((case, operation), []).append(statistics.median(meter.server_us[operation]))
                wall.setdefault((case, operation), []).append(statistics.median(meter.wall_us[operation]))
    for name, costs in ((measure, server), (f"{measure}, wall", wall)):
        for (case, operation), values in costs.items():
            bench.add(name, case, operation, "µs/job", *values)


async def filled(redis: Redis, jobs: int) -> Filled:
    """A queue in whose only lane so many jobs wait."""
    one = Filled(await configured(redis, f"q{jobs}"))
    while one.tail < jobs:
        await one.enqueue(min(CHUNK, jobs - one.tail))
    return one


async def filled_lanes(redis: Redis, quotas: Mapping[str, int]) -> FilledLanes:
    """A queue in whose lanes so many jobs wait in all, as many in each."""
    one = FilledLanes(await configured(redis, f"q{len(quotas)}lanes"), quotas)
    lanes = list(quotas)
    places = [(lanes[n % len(lanes)], LEVELS[n // len(lanes) % len(LEVELS)]) for n in range(LANE_JOBS)]
    for start in range(0, LANE_JOBS, CHUNK):
        await one.enqueue(places[start : start + CHUNK])
    return one


async def configured(redis: Redis, name: str) -> PromptQueue:
    """A queue with room for all."""
    queue = PromptQueue(redis, name)
    await queue.load()
    await queue.configure(conf={"max_waiting": MAX_WAITING}, routes={LANE: b"{}"})
    return queue


def keyed_job(job_id: str, n: int, *, lane: str = LANE, priority: int = 5) -> NewJob:
    """A request with the n-th dedup key, as a client makes it."""
    payload = orjson.dumps({"prompt": f"prompt number {n:07}"})
    key = dedup_hash(f"key {n}")
    return NewJob(
        job_id=job_id,
        lane=lane,
        priority=priority,
        tenant="default",
        payload=payload,
        dedup_hash=key,
        content_hash=key,
    )


async def claim(queue: PromptQueue, claim_id: str, quotas: Mapping[str, int]) -> tuple[ClaimedJob, ...]:
    """Claim 32, which have to be there."""
    jobs = (await queue.claim(claim_id, WORKER, quotas, limit=CLAIM, lease_ms=LEASE_MS)).jobs
    if len(jobs) != CLAIM:
        raise SystemExit(f"a claim brought {len(jobs)} jobs")
    return jobs


async def finish(queue: PromptQueue, jobs: Sequence[ClaimedJob]) -> None:
    """End them, each with a terminal event and a result."""
    result = orjson.dumps({"text": "prompt number 0000000", "finish_reason": "stop"})
    endings = []
    for job in jobs:
        said = {"id": f"{job.token}-1", "type": "done", "job_id": job.id, "attempt": 1}
        head = orjson.dumps(said)[:-1] + b',"result":'
        endings.append(Ending(job.id, job.token, JobState.DONE, 1, (), head, result))
    if (await queue.write(endings=endings)).refused:
        raise SystemExit("an end was refused")


def check_enqueued(outcomes: Sequence[object]) -> None:
    """End the program if a job was not taken as a new one."""
    for outcome in outcomes:
        if not isinstance(outcome, Enqueued) or outcome.deduplicated:
            raise SystemExit(f"not enqueued: {outcome}")
