"""Drives a `PromptQueue` in few words, and audits what it leaves in Redis."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from scheduler.model import JobState
from scheduler.queue.keys import Keys
from scheduler.queue.leases import CLAIM_BYTES, NO_OFFERS, NOTHING_RESERVED
from scheduler.queue.limits import Limits, RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import (
    START,
    Claim,
    ClaimedJob,
    Cursor,
    Ending,
    EnqueueOutcome,
    NewJob,
    Offer,
    Publication,
    Replay,
    Return,
    TickReport,
)

LANE = "chat"
LEASE_MS = 60_000
UNCLAIMED = frozenset({"waiting", "delayed", "held"})
ENDED = frozenset(state.value for state in JobState if state.ended)

NO_LIMITS: Mapping[str, RateLimit] = {}

_claim_ids = itertools.count(1)


def new_job(
    name: str, priority: int = 5, *, lane: str = LANE, key: str | None = None, **fields: Any
) -> NewJob:
    """A job of the default tenant; `key` names its dedup key, and its content unless `content` does."""
    content = fields.pop("content", key)
    payload = orjson.dumps({"prompt": name})
    return NewJob(
        **{
            "job_id": name,
            "lane": lane,
            "priority": priority,
            "tenant": "default",
            "payload": payload,
            "dedup_hash": key,
            "content_hash": content,
            **fields,
        }
    )


def event(kind: str, job: ClaimedJob, seq: int, **fields: Any) -> bytes:
    """An event as a worker process writes it."""
    return orjson.dumps(
        {"id": f"{job.token}-{seq}", "type": kind, "job_id": job.id, "attempt": job.attempt, **fields}
    )


def ending(
    job: ClaimedJob,
    state: JobState = JobState.DONE,
    *,
    seq: int = 1,
    events: tuple[bytes, ...] = (),
    **fields: Any,
) -> Ending:
    """The end of an attempt: its result is `{"text": <job id>}`, its error has the code `boom`."""
    if state is JobState.DONE:
        name, value = "result", orjson.dumps({"text": job.id})
    else:
        name, value = "error", b'{"code":"boom","message":"it broke"}'
        fields.setdefault("reason", "boom")
    head = event(state.value, job, seq)[:-1] + b',"%s":' % name.encode()
    return Ending(
        job.id, job.token, state, seq - len(events), events, head, fields.pop("value", value), **fields
    )


def returning(
    job: ClaimedJob,
    *,
    counts: bool = True,
    delay_ms: int = 0,
    seq: int = 1,
    used_tokens: int | None = None,
) -> Return:
    """A running job on its way back."""
    error = {"code": "busy", "message": "try later"}
    return Return(
        job.id,
        job.token,
        event("retrying", job, seq, error=error, delay_s=delay_ms / 1000),
        counts,
        delay_ms,
        orjson.dumps(error) if counts else b"",
        used_tokens,
    )


def deltas(job: ClaimedJob, *texts: str, first_seq: int = 1) -> Publication:
    """Some of the answer."""
    events = tuple(event("delta", job, first_seq + i, text=text) for i, text in enumerate(texts))
    return Publication(job.id, job.token, first_seq, events)


@dataclass(frozen=True, slots=True)
class QueueDriver:
    """One queue and one worker process."""

    queue: PromptQueue
    worker: str = "w1"

    @property
    def redis(self) -> Any:
        """The connection underneath; its stubs mix replies with awaitables."""
        return self.queue.redis

    async def configure(
        self,
        *,
        tenants: Mapping[str, RateLimit] = NO_LIMITS,
        endpoints: Mapping[str, RateLimit] = NO_LIMITS,
        **conf: str | int,
    ) -> None:
        """Set the queue's settings and limits; a double underscore stands for a colon."""
        await self.queue.configure(
            conf={"max_waiting": 100_000} | {name.replace("__", ":"): value for name, value in conf.items()},
            routes={LANE: b"{}"},
            limits=Limits(tenants, endpoints),
        )

    async def renew_limits(self, *subjects: str) -> None:
        """Let `t:<tenant>` and `e:<endpoint>` have all that they may use, as after some time."""
        await self.redis.delete(*[self.queue.keys.of("bucket", subject) for subject in subjects])
        await self.look_at_held()

    async def look_at_held(self) -> None:
        """Let the next tick look at all jobs that are held."""
        limited = self.queue.keys.fixed("limited")
        await self.redis.zunionstore(limited, {limited: 0})

    async def drain_limit(self, subject: str, kind: Literal["requests", "tokens"] = "requests") -> None:
        """Use up what a subject may use: requests for a minute, tokens for an hour."""
        back_us = (await self.now_ms() + (60_000 if kind == "requests" else 3_600_000)) * 1000
        whole = f"{back_us} 0" if kind == "requests" else f"0 {back_us}"
        await self.redis.set(self.queue.keys.of("bucket", subject), whole, px=3_600_000)

    async def enqueue(self, *jobs: NewJob) -> list[EnqueueOutcome]:
        return await self.queue.enqueue(jobs)

    async def claim_all(
        self,
        limit: int = 1024,
        *,
        lanes: Mapping[str, int] | None = None,
        lease_ms: int = LEASE_MS,
        suspects: bool = True,
        offers: Mapping[str, Sequence[Offer]] = NO_OFFERS,
        reserved: int = 0,
        lanes_reserved: Mapping[str, int] = NOTHING_RESERVED,
        max_bytes: int = CLAIM_BYTES,
    ) -> Claim:
        """One claim with an id of its own."""
        claim_id = f"claim-{next(_claim_ids)}"
        lanes = {LANE: limit} if lanes is None else lanes
        return await self.queue.claim(
            claim_id,
            self.worker,
            lanes,
            limit=limit,
            lease_ms=lease_ms,
            suspects=suspects,
            offers=offers,
            reserved=reserved,
            lanes_reserved=lanes_reserved,
            max_bytes=max_bytes,
        )

    async def claim(self, **options: Any) -> ClaimedJob:
        """Claim the next job, which has to be there."""
        (job,) = (await self.claim_all(1, **options)).jobs
        return job

    async def claimed_ids(self, limit: int = 1024, **options: Any) -> list[str]:
        return [job.id for job in (await self.claim_all(limit, **options)).jobs]

    async def running(self, name: str, priority: int = 5, **fields: Any) -> ClaimedJob:
        """Enqueue a job into an empty lane and claim it."""
        await self.enqueue(new_job(name, priority, **fields))
        job = await self.claim()
        assert job.id == name
        return job

    async def finish(self, job: ClaimedJob, state: JobState = JobState.DONE, **fields: Any) -> bool:
        """Whether the end was accepted."""
        return not (await self.queue.write(endings=[ending(job, state, **fields)])).refused

    async def give_back(self, job: ClaimedJob, **fields: Any) -> bool:
        """Whether the return was accepted."""
        return not (await self.queue.write(returns=[returning(job, **fields)])).refused

    async def publish(self, job: ClaimedJob, *texts: str, first_seq: int = 1) -> bool:
        """Whether the deltas were accepted."""
        return not (await self.queue.write(publications=[deltas(job, *texts, first_seq=first_seq)])).refused

    async def tick(self, worker: str | None = None, **options: Any) -> TickReport:
        return await self.queue.tick(
            worker or self.worker, **{"lease_ms": LEASE_MS, "lock_ms": 60_000, **options}
        )

    async def lose_lease(self, job: ClaimedJob) -> None:
        """Let a lease end as if its time had gone, some while after the last outage."""
        await self.redis.zadd(self.queue.keys.fixed("leases"), {job.id: 1})
        await self.redis.hset(
            self.queue.keys.fixed("meta"), mapping={"reap_after": 0, "tick": await self.now_ms()}
        )

    async def pass_deadline(self, job_id: str) -> None:
        """Let a job's deadline be now, whatever is done with it until then and however long that takes."""
        now_ms = await self.now_ms()
        await self.redis.hset(self.queue.keys.of("record", job_id), "x", now_ms)
        await self.redis.zadd(self.queue.keys.fixed("deadlines"), {job_id: now_ms}, xx=True)

    async def nobody_ticked(self, for_s: float) -> None:
        """Let the last tick be that long ago."""
        await self.redis.hset(
            self.queue.keys.fixed("meta"), "tick", await self.now_ms() - round(for_s * 1000)
        )

    async def put_clock(self, by_ms: int) -> None:
        """Let Redis' clock jump: to the queue it is the same whether that or what it adds has changed."""
        await self.redis.hincrby(self.queue.keys.fixed("meta"), "ahead", by_ms)

    async def began_s_ago(self, job: ClaimedJob, seconds: float) -> None:
        """Let a running job have been claimed that long ago."""
        record = self.queue.keys.of("record", job.id)
        await self.redis.hset(record, "c", await self.now_ms() - round(seconds * 1000))

    async def work_is_due(self) -> None:
        """Let the next tick look at what waits."""
        await self.redis.hdel(self.queue.keys.fixed("meta"), "worked")

    async def work_is_not_due(self) -> None:
        """Let no tick look at what waits, for an hour."""
        await self.redis.hset(self.queue.keys.fixed("meta"), "worked", await self.now_ms() + 3_600_000)

    async def work(self, lane: str = LANE) -> int:
        """How long the list is that autoscalers read, in seconds."""
        return int(await self.redis.llen(self.queue.keys.of("work", lane)))

    async def now_ms(self) -> int:
        seconds, micros = await self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    async def pass_ms(self, ms: int) -> None:
        """Let the server's clock go on by more than `ms`."""
        end = await self.now_ms() + ms
        while await self.now_ms() <= end:
            await asyncio.sleep(0.002)

    async def backdate(self, job_id: str, by_s: float) -> None:
        """Make a waiting job `by_s` seconds older."""
        record = await self.record(job_id)
        rank = int(record["q"]) - round(by_s * 1_000_000)
        await self.redis.hset(self.queue.keys.of("record", job_id), "q", rank)
        level = self.queue.keys.level(record["l"], int(record["p"]))
        await self.redis.zadd(level, {job_id: rank})

    async def record(self, job_id: str) -> dict[str, str]:
        raw = await self.redis.hgetall(self.queue.keys.of("record", job_id))
        return {name.decode(): value.decode() for name, value in raw.items()}

    async def state(self, job_id: str) -> str | None:
        return (await self.record(job_id)).get("s")

    async def replay(self, job_id: str, after: Cursor = START, limit: int = 1000) -> Replay:
        replay = await self.queue.replay(job_id, after, limit)
        assert replay is not None
        return replay

    async def events(self, job_id: str, after: Cursor = START) -> list[dict[str, Any]]:
        return [orjson.loads(raw) for raw in (await self.replay(job_id, after)).events]

    async def event_types(self, job_id: str) -> list[str]:
        return [event["type"] for event in await self.events(job_id)]

    async def last_event(self, job_id: str) -> dict[str, Any]:
        return (await self.events(job_id))[-1]

    async def history(self, job_id: str) -> list[list[Any]]:
        entries: list[list[Any]] = orjson.loads(f"[{(await self.record(job_id)).get('y', '')}]")
        return entries

    async def meta(self) -> dict[str, str]:
        raw = await self.redis.hgetall(self.queue.keys.fixed("meta"))
        return {name.decode(): value.decode() for name, value in raw.items()}

    async def waiting(self, lane: str | None = None) -> int:
        """How many jobs the bound counts, in all or in a lane."""
        return int((await self.meta()).get("n" if lane is None else f"n:{lane}", 0))

    async def owner(self, key: str, tenant: str = "default") -> str | None:
        """The job that owns a dedup key."""
        raw = await self.redis.get(self.queue.keys.dedup(tenant, key))
        return raw.decode() if raw else None

    async def dump(self) -> dict[str, Any]:
        """The value of every key of the queue, by what follows the prefix."""
        return (await snapshot(self.queue)).values


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a queue has in Redis, by what follows the prefix; lifetimes in ms, -1 without an end."""

    values: dict[str, Any]
    ttls: dict[str, int]


async def snapshot(queue: PromptQueue) -> Snapshot:
    """Read every key of a queue, in four round trips."""
    pattern = f"{queue.keys.prefix}*".replace("{", "[{]").replace("}", "[}]")
    keys = [key async for key in queue.redis.scan_iter(match=pattern, count=10_000)]
    async with queue.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.type(key)
            pipe.pttl(key)
        described = await pipe.execute()
        for key, kind in zip(keys, described[::2], strict=True):
            _read_whole(pipe, key, kind)
        values = await pipe.execute()
    names = [key.decode(errors="replace").removeprefix(queue.keys.prefix) for key in keys]
    return Snapshot(
        {
            name: dict(value) if kind == b"zset" else value
            for name, value, kind in zip(names, values, described[::2], strict=True)
        },
        dict(zip(names, described[1::2], strict=True)),
    )


def _read_whole(pipe: Any, key: bytes, kind: bytes) -> None:
    match kind:
        case b"hash":
            pipe.hgetall(key)
        case b"zset":
            pipe.zrange(key, 0, -1, withscores=True)
        case b"set":
            pipe.smembers(key)
        case b"list":
            pipe.lrange(key, 0, -1)
        case _:
            pipe.get(key)


async def audit(queue: PromptQueue) -> Snapshot:
    """Check that all in Redis fits together: places, counts, bitmaps, dedup keys, events, lifetimes."""
    snap = await snapshot(queue)
    found = snap.values
    records = {name[2:]: text(value) for name, value in found.items() if name.startswith("j:")}
    levels = {
        (name.split(":", 2)[2], int(name.split(":", 2)[1])): value
        for name, value in found.items()
        if name.startswith("w:")
    }
    _audit_places(records, levels, found)
    _audit_held(levels, found)
    _audit_counts(records, levels, text(found.get("meta", {})))
    _audit_dedup(queue, records, found)
    _audit_events(records, found)
    _audit_lifetimes(records, snap.ttls)
    assert all(len(value) <= 1 for name, value in found.items() if name.startswith(("k:", "ku:"))), (
        "one wake token a lane"
    )
    assert len(found.get("space", [])) <= 1
    return snap


def text(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash as text."""
    return {name.decode(): value.decode() for name, value in raw.items()}


def _audit_places(
    records: Mapping[str, Mapping[str, str]], levels: Mapping[tuple[str, int], Any], found: Mapping[str, Any]
) -> None:
    expected: dict[str, dict[bytes, float]] = {"delayed": {}, "deadlines": {}}
    waiting: dict[tuple[str, int], dict[bytes, float]] = {}
    running, ended = set(), set()
    for job_id, record in records.items():
        member = job_id.encode()
        match record["s"]:
            case "waiting" | "held":
                waiting.setdefault((place(record), int(record["p"])), {})[member] = float(record["q"])
            case "delayed":
                expected["delayed"][member] = float(record["u"])
            case "running":
                running.add(member)
            case _:
                ended.add(member)
        if record["s"] in UNCLAIMED and "x" in record:
            expected["deadlines"][member] = float(record["x"])
    assert dict(levels) == waiting
    for name, members in expected.items():
        assert found.get(name, {}) == members, name
    assert set(found.get("leases", {})) == running
    failed = {member for member in ended if records[member.decode()]["s"] == "failed"}
    assert set(found.get("dead", {})) == failed
    assert ended - failed <= set(found.get("finished", {}))


def place(record: Mapping[str, str]) -> str:
    """The lane in which a job stands that waits or is held."""
    if record["s"] == "held":
        return Keys.held_lane(record["l"], record.get("t", "default"))
    return Keys.suspects_lane(record["l"]) if int(record.get("o", 0)) >= 2 else record["l"]


def _audit_held(levels: Mapping[tuple[str, int], Any], found: Mapping[str, Any]) -> None:
    beside = {at.encode() for at, _ in levels if " " in at}
    held = {at for at in beside if not at.endswith(b" !")}
    assert set(found.get("limited", {})) == held
    assert set(found.get("released", {})) <= held
    bits = Counter[str]()
    for at, priority in levels:
        bits[at] += 1 << priority
    assert text(found.get("beside", {})) == {at.decode(): str(bits[at.decode()]) for at in beside}
    assert {lane for lane in found.get("lanes", ()) if b" " in lane} == set()


def _audit_counts(
    records: Mapping[str, Mapping[str, str]], levels: Mapping[tuple[str, int], Any], meta: Mapping[str, str]
) -> None:
    counted = Counter(record["l"] for record in records.values() if record["s"] in UNCLAIMED)
    assert int(meta.get("n", 0)) == counted.total()
    lanes = {name[2:] for name in meta if name[:2] in {"n:", "b:"}} | set(counted)
    for lane in lanes:
        assert int(meta.get(f"n:{lane}", 0)) == counted[lane], f"count of lane {lane}"
        bits = sum(1 << p for at, p in levels if at == lane)
        assert int(meta.get(f"b:{lane}", 0)) == bits, f"bitmap of lane {lane}"
    tokens = [int(record["k"]) for record in records.values() if "k" in record]
    assert len(set(tokens)) == len(tokens)
    assert max(tokens, default=0) <= int(meta.get("token", 0))


def _audit_dedup(
    queue: PromptQueue, records: Mapping[str, Mapping[str, str]], found: Mapping[str, Any]
) -> None:
    for name, value in found.items():
        if not name.startswith("d:"):
            continue
        tenant, dedup_hash = queue.keys.split_dedup(queue.keys.prefix + name)
        record = records[value.decode()]
        assert (record["d"], record.get("t", "default")) == (dedup_hash, tenant)
        assert record["s"] not in ENDED or (record["s"] == "done" and record.get("m") == "window"), name


def _audit_events(records: Mapping[str, Mapping[str, str]], found: Mapping[str, Any]) -> None:
    for job_id, record in records.items():
        events = [orjson.loads(json) for json in found.get(f"e:{job_id}", [])]
        ids = [tuple(map(int, event["id"].split("-"))) for event in events]
        assert ids == sorted(set(ids)), job_id
        assert not ids or ids[-1][0] <= int(record["k"]), job_id
        assert {event["job_id"] for event in events} <= {job_id}
        # Terminal events are made from the record.
        assert not ENDED.intersection(event["type"] for event in events), job_id
        assert record["s"] not in ENDED or {"k", "z"} <= record.keys(), job_id


def _audit_lifetimes(records: Mapping[str, Mapping[str, str]], ttls: Mapping[str, int]) -> None:
    for job_id, record in records.items():
        kept = {kind: ttls.get(f"{kind}:{job_id}") for kind in "jprhe"}
        if record["s"] in ENDED:
            assert all(ttl is None or ttl > 0 for ttl in kept.values()), (job_id, kept)
        else:
            assert (kept["j"], kept["p"], kept["r"]) == (-1, -1, None), (job_id, kept)


async def drain(driver: QueueDriver, lanes: Sequence[str] = (LANE,)) -> list[str]:
    """Claim one by one until nothing is left; the ids in the order of the claims."""
    order: list[str] = []
    while ids := await driver.claimed_ids(1, lanes=dict.fromkeys(lanes, 1)):
        order += ids
    return order
