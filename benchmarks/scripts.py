"""The longest that a call holds Redis: what is done to a queue with very much in it, on Redis' own clock.

    make bench-scripts         # or: python -m benchmarks.scripts --quick --server /usr/bin/redis-server

Each case fills a server of its own and does something until it is done. SLOWLOG has the longest that each
script and command ran for. Redis measures that by the wall clock, so what others take away from it on a busy
machine is in it: the CPU of the server's main thread beside it is that of the whole call, with reading its
arguments and writing its reply. No client but this one is there, and it makes one call after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from scheduler import admin
from scheduler.model import JobState
from scheduler.queue.inspection.jobs import list_jobs
from scheduler.queue.inspection.status import read_status
from scheduler.queue.leases import LANES_A_CLAIM
from scheduler.queue.limits import Limits, RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import Claim, ClaimedJob, Ending, NewJob, Publication
from scheduler.queue.scripts import NAMES, Argument, Call, Scripts, source
from scheduler.queue.submissions import ENQUEUE_CHUNK
from scheduler.redis_server.embedded import EmbeddedServer, bundled_binary
from scheduler.settings import EndpointSettings

NOTED_US = 300
NOT_OURS = {"SLOWLOG", "CONFIG", "SCRIPT"}
LANE = "chat"
WORKER = "worker"
LEASE_MS = 600_000
LOCK_MS = 60_000
HOUR_MS = 3_600_000
MIB = 1 << 20
PAYLOAD = b'{"prompt":"hello"}'


@dataclass(frozen=True, slots=True)
class Longest:
    """What a case has found of one script or command: its longest call, by CPU and by the wall clock.

    `cpu_ms` is None for a command that is no script, `wall_ms` for a script that never took `NOTED_US`.
    """

    case: str
    call: str
    calls: int
    cpu_ms: float | None
    wall_ms: float | None


class MeteredScripts(Scripts):
    """Scripts, each call on its own, with the CPU that each takes of the server's main thread."""

    def __init__(self, redis: Redis, prefix: str, server_pid: int) -> None:
        super().__init__(redis, prefix)
        self._schedstat = Path(f"/proc/{server_pid}/task/{server_pid}/schedstat")
        self.cpu_ms: dict[str, list[float]] = {}

    async def run(self, name: str, *args: Argument) -> Any:
        """Run one, and note what it took."""
        before = self._cpu_ns()
        try:
            return await super().run(name, *args)
        finally:
            self.cpu_ms.setdefault(name, []).append((self._cpu_ns() - before) / 1e6)

    async def run_each(self, calls: Sequence[Call]) -> list[Any]:
        """Run several, one after the other."""
        return [await self.run(name, *args) for name, args in calls]

    def _cpu_ns(self) -> int:
        return int(self._schedstat.read_text(encoding="ascii").split()[0])


@dataclass(slots=True)
class Case:
    """A queue with very much in it."""

    queue: PromptQueue
    sizes: Sizes

    @property
    def redis(self) -> Redis:
        """The connection underneath."""
        return self.queue.redis

    async def configure(self, limits: Limits | None = None, **conf: str | int) -> None:
        """Publish settings."""
        await self.queue.configure(
            conf={"max_waiting": 10_000_000, **conf}, routes={LANE: b"{}"}, limits=limits or Limits()
        )

    async def enqueue(self, jobs: Iterable[NewJob]) -> None:
        """Put jobs in, a chunk a call."""
        chunk: list[NewJob] = []
        for one in jobs:
            chunk.append(one)
            if len(chunk) == ENQUEUE_CHUNK:
                await self.queue.enqueue(chunk)
                chunk = []
        if chunk:
            await self.queue.enqueue(chunk)

    async def claim(self, limit: int = 64, lanes: Sequence[str] = (LANE,)) -> Claim:
        """Claim from some lanes."""
        claim_id = uuid.uuid4().hex
        named = dict.fromkeys(lanes, limit)
        return await self.queue.claim(claim_id, WORKER, named, limit=limit, lease_ms=LEASE_MS)

    async def ticks(self, most: int, *, mend_ms: int = 0) -> None:
        """Do maintenance until there is nothing to do at once, at most so often."""
        for _ in range(most):
            report = await self.queue.tick(WORKER, lease_ms=LEASE_MS, lock_ms=LOCK_MS, mend_ms=mend_ms)
            if report.next_ms >= 250:
                return


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is."""

    tenants: int
    lanes: int
    jobs: int
    events: int
    payload_bytes: int


FULL = Sizes(tenants=100_000, lanes=5_000, jobs=1_000_000, events=200_000, payload_bytes=8 * MIB - 100)
QUICK = Sizes(tenants=5_000, lanes=1_000, jobs=20_000, events=20_000, payload_bytes=8 * MIB - 100)


def job(n: int, *, lane: str = LANE, tenant: str = "default", priority: int = 5, **fields: object) -> NewJob:
    """The n-th job of a case."""
    values = {"payload": PAYLOAD, **fields}
    return NewJob(job_id=f"job-{n:09}", lane=lane, priority=priority, tenant=tenant, **values)  # type: ignore[arg-type]  # fields of many types


def ending(one: ClaimedJob, state: JobState, value: bytes, events: tuple[bytes, ...] = ()) -> Ending:
    """The end of an attempt."""
    name = b"result" if state is JobState.DONE else b"error"
    head = b'{"id":"%d-%d","type":"%s","job_id":"%s","attempt":1,"%s":' % (
        *(one.token, len(events) + 1, state.value.encode(), one.id.encode(), name),
    )
    return Ending(one.id, one.token, state, 1, events, head, value)


def delta(one: ClaimedJob, seq: int, text: bytes = b"word ") -> bytes:
    """A piece of an answer, as it is stored."""
    return b'{"id":"%d-%d","type":"delta","job_id":"%s","attempt":1,"text":"%s"}' % (
        *(one.token, seq, one.id.encode(), text),
    )


# The cases


async def held_tenants(case: Case) -> Act:
    """Each tenant has used what it may and has a job that is held."""
    one_a_minute = Limits(tenants={"*": RateLimit(requests=1)})
    await case.configure(one_a_minute)
    tenants = [f"tenant-{n}" for n in range(case.sizes.tenants)]
    back_us = round((time.time() + 3600) * 1e6)
    async with case.redis.pipeline(transaction=False) as pipe:
        for n, tenant in enumerate(tenants):
            pipe.set(case.queue.keys.of("bucket", f"t:{tenant}"), f"{back_us} 0", px=HOUR_MS)
            if n % 1000 == 999:
                await pipe.execute()
        await pipe.execute()
    await case.enqueue(job(n, tenant=tenant) for n, tenant in enumerate(tenants))

    async def act() -> None:
        await case.ticks(100)
        await case.claim()
        await read_status(case.queue)
        await list_jobs(case.queue, state=JobState.HELD, limit=100)
        await admin.audit(case.queue)
        await case.configure(Limits(tenants={"*": RateLimit(requests=1, tokens=1000)}))
        await case.ticks(100)
        await case.configure()
        await case.ticks(300)
        async for _ in admin.purge(case.queue, LANE):
            pass

    return act


async def many_lanes(case: Case) -> Act:
    """Each lane has a job that waits, and nobody serves all of them."""
    lanes = [f"lane-{n}" for n in range(case.sizes.lanes)]
    await case.configure()
    await case.enqueue(job(n, lane=lane, priority=n % 8) for n, lane in enumerate(lanes))

    async def act() -> None:
        await case.ticks(2 * len(lanes) // 30)
        await read_status(case.queue)
        await admin.audit(case.queue)
        for at in range(0, len(lanes), LANES_A_CLAIM):
            await case.claim(lanes=lanes[at : at + LANES_A_CLAIM])
        await case.configure(max_waiting=1, when_full="shed")
        await case.enqueue(job(10**8 + n, priority=9) for n in range(2 * ENQUEUE_CHUNK))
        await case.ticks(2 * len(lanes) // 30)

    return act


async def many_jobs(case: Case) -> Act:
    """Very many jobs wait in one lane, some of them with a deadline."""
    await case.configure()
    n_jobs = case.sizes.jobs
    await case.enqueue(
        job(n, priority=n % 10, deadline_ms=1 if n % 50 == 0 else HOUR_MS if n % 5 == 0 else None)
        for n in range(n_jobs)
    )

    async def act() -> None:
        await case.ticks(2000)
        claimed = (await case.claim()).jobs
        await case.queue.position(f"job-{n_jobs - 1:09}")
        await read_status(case.queue)
        await list_jobs(case.queue, limit=100)
        await case.enqueue(job(10**8 + n) for n in range(ENQUEUE_CHUNK))
        await case.queue.write(publications=[Publication(x.id, x.token, 1, (delta(x, 1),)) for x in claimed])
        await case.queue.write(
            endings=[ending(x, JobState.FAILED, b'{"code":"a","message":"b"}') for x in claimed]
        )
        await case.configure(max_waiting=1, when_full="shed")
        await case.enqueue(job(2 * 10**8 + n, priority=9) for n in range(2 * ENQUEUE_CHUNK))
        purged = 0
        async for some in admin.purge(case.queue, LANE, 1):
            purged += some
            if purged > 10_000:
                break

    return act


async def all_at_once(case: Case) -> Act:
    """Very many are due, lost and expired at one moment."""
    await case.configure()
    n = min(20_000, case.sizes.jobs // 10)
    await case.enqueue(job(at) for at in range(n))
    while (await case.queue.claim(uuid.uuid4().hex, WORKER, {LANE: 1000}, limit=64, lease_ms=1)).jobs:
        pass
    await case.enqueue(job(10**7 + at, delay_ms=1) for at in range(n))
    await case.enqueue(job(2 * 10**7 + at, deadline_ms=1) for at in range(n))
    await case.queue.tick(WORKER, lease_ms=1, lock_ms=LOCK_MS)
    await asyncio.sleep(0.05)

    async def act() -> None:
        for _ in range(4 * n // 25):
            report = await case.queue.tick(WORKER, lease_ms=10_000_000, lock_ms=LOCK_MS)
            if report.next_ms >= 250:
                return

    return act


async def large_requests(case: Case) -> Act:
    """Requests and answers of the largest size; a result has its answer twice, as text and as a message."""
    await case.configure()
    payload = b'{"prompt":"%s"}' % (b"x" * (case.sizes.payload_bytes - 13))

    async def act() -> None:
        for n in range(64):
            await case.queue.enqueue([job(n, payload=payload)])
        jobs: list[ClaimedJob] = []
        while claimed := (await case.claim()).jobs:
            jobs += claimed
        answer = b"x" * EndpointSettings(backend="echo").max_output_bytes
        result = b'{"text":"%s","message":{"content":"%s"}}' % (answer, answer)
        for one in jobs[:8]:
            await case.queue.write(endings=[ending(one, JobState.DONE, result)])
            await case.queue.replay(one.id)
        await case.queue.cancel(jobs[8].id)

    return act


async def long_streams(case: Case) -> Act:
    """A job that streams without end, a reader of it, and a full turn of the writer."""
    await case.configure()
    await case.enqueue(job(n) for n in range(256))
    jobs = [one for _ in range(4) for one in (await case.claim()).jobs]
    first = jobs[0]
    for at in range(1, case.sizes.events, 500):
        events = tuple(delta(first, seq) for seq in range(at, at + 500))
        await case.queue.write(publications=[Publication(first.id, first.token, at, events)])

    async def act() -> None:
        cursor = (0, 0)
        while replay := await case.queue.replay(first.id, cursor):
            if not replay.more:
                break
            cursor = replay.last if not replay.events else _cursor(replay.events[-1])
        held = [(one.id, one.token) for one in jobs]
        await case.queue.renew(WORKER, held, lease_ms=LEASE_MS, about=b"{}")
        two = [Publication(x.id, x.token, 1, (delta(x, 1), delta(x, 2))) for x in jobs[1:]]
        await case.queue.write(publications=two)
        await case.queue.write(endings=[ending(x, JobState.DONE, b'{"text":"a"}') for x in jobs[1:]])
        await case.queue.write(endings=[ending(first, JobState.FAILED, b'{"code":"a","message":"b"}')])
        await case.queue.discard([first.id])

    return act


def _cursor(event: bytes) -> tuple[int, int]:
    token, _, seq = json.loads(event)["id"].partition("-")
    return int(token), int(seq)


Act = Callable[[], Awaitable[None]]

CASES: dict[str, Callable[[Case], Awaitable[Act]]] = {
    "held tenants": held_tenants,
    "lanes": many_lanes,
    "jobs": many_jobs,
    "all at once": all_at_once,
    "large requests": large_requests,
    "long streams": long_streams,
}


# Measuring


async def measure(name: str, binary: Path, sizes: Sizes) -> list[Longest]:
    """Run one case on a server of its own."""
    with EmbeddedServer(binary=binary) as server:
        async with Redis.from_url(server.url) as redis:
            await redis.config_set("slowlog-max-len", 100_000)
            await redis.config_set("slowlog-log-slower-than", -1)
            queue = PromptQueue(redis, "default")
            act = await CASES[name](Case(queue, sizes))
            pid = (await redis.info("server"))["process_id"]
            scripts = queue._scripts = MeteredScripts(redis, queue.keys.prefix, pid)
            await queue.load()
            await redis.config_set("slowlog-log-slower-than", NOTED_US)
            await act()
            entries = await redis.slowlog_get(100_000)
    wall_ms: dict[str, float] = {}
    for entry in entries:
        call = _name_of(entry["command"])
        wall_ms[call] = max(wall_ms.get(call, 0.0), entry["duration"] / 1000)
    found = [
        Longest(name, call, len(took), max(took), wall_ms.pop(call, None))
        for call, took in scripts.cpu_ms.items()
    ]
    commands = [one for one in sorted(wall_ms, key=lambda call: -wall_ms[call]) if one not in NOT_OURS]
    found.sort(key=lambda one: -(one.cpu_ms or 0))
    return found + [Longest(name, call, 0, None, wall_ms[call]) for call in commands]


def _name_of(command: bytes) -> str:
    words = command.split(b" ")
    if words[0].upper() != b"EVALSHA":
        return words[0].decode().upper()
    return _scripts().get(words[1].decode(), "a script")


@cache
def _scripts() -> dict[str, str]:
    return {hashlib.sha1(source(name).encode(), usedforsecurity=False).hexdigest(): name for name in NAMES}


def _ms(value: float | None) -> str:
    return f"{'-':>11}" if value is None else f"{value:8.2f} ms"


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scripts", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; else all")
    parser.add_argument("--quick", action="store_true", help="much less of everything")
    parser.add_argument(
        "--server", type=Path, default=bundled_binary(), help="the redis-server or valkey-server"
    )
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    options = parser.parse_args()
    if unknown := [name for name in options.cases if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    rows: list[Longest] = []
    for name in options.cases or CASES:
        began = time.monotonic()
        found = asyncio.run(measure(name, options.server, QUICK if options.quick else FULL))
        print(f"{name} ({time.monotonic() - began:.0f} s)")
        for row in found:
            print(f"    {row.call:16} {row.calls or '':8} {_ms(row.cpu_ms)} CPU {_ms(row.wall_ms)} wall")
        sys.stdout.flush()
        rows += found
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
