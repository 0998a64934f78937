"""Reads for people: what is in the queue, and why. In bounded chunks; nothing here changes a job."""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from redis.exceptions import ResponseError

from scheduler.model import DEFAULT_TENANT, DedupMode, HistoryEntry, JobError, JobInfo, JobState
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.queue import PromptQueue
from scheduler.queue.ranking import Rank, rank

CHUNK = 500
DEFAULT_AGING_MS = 30_000
DEFAULT_MAX_WAITING = 100_000

Record = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStatus:
    """One lane. `waiting` by priority, highest first; `oldest_s` is the age of the job that has waited longest."""

    lane: str
    waiting: dict[int, int]
    paused: bool
    oldest_s: float | None

    @property
    def total(self) -> int:
        """All jobs that wait in the lane."""
        return sum(self.waiting.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """The queue at one moment. `totals` count since the queue began; `rate` is jobs ended a second, of late."""

    queue: str
    lanes: list[LaneStatus]
    waiting: int
    delayed: int
    running: int
    dead: int
    garbage: int
    workers: int
    max_waiting: int
    when_full: str
    rate: float
    totals: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSummary:
    """One line of a list of jobs. `age_s` is the time since the enqueue."""

    id: str
    state: JobState
    model: str
    priority: int
    tenant: str
    attempts: int
    age_s: float
    worker: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupEntry:
    """A dedup key and the job that owns it. `expires_in_s` is set once the job is done and the key still serves."""

    tenant: str
    hash: str
    job_id: str
    state: JobState | None
    mode: DedupMode
    joined: int
    expires_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker process as it described itself last; `about` has its routes, stages and endpoints."""

    id: str
    expires_in_s: float
    about: dict[str, Any] = field(default_factory=dict)


class QueueInspector:
    """Looks into one queue."""

    def __init__(self, queue: PromptQueue) -> None:
        self._queue = queue
        self._redis = queue.redis
        self._keys = queue.keys

    async def status(self) -> QueueStatus:
        """Depths, ages, totals and rates."""
        fixed = self._keys.fixed
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.smembers(fixed("lanes"))
            pipe.smembers(fixed("paused"))
            pipe.hgetall(fixed("meta"))
            pipe.hmget(fixed("conf"), ["max_waiting", "when_full"])
            pipe.hlen(fixed("garbage"))
            for name in ("delayed", "leases", "dead", "workers"):
                pipe.zcard(fixed(name))
            lanes, paused, meta, conf, garbage, delayed, running, dead, workers = await pipe.execute()
        now_ms = await self._now_ms()
        statuses = await self._lanes(sorted(lane.decode() for lane in lanes), paused, now_ms)
        counters = {name.decode(): value.decode() for name, value in meta.items()}
        return QueueStatus(
            queue=self._queue.name,
            lanes=statuses,
            waiting=sum(lane.total for lane in statuses),
            delayed=delayed,
            running=running,
            dead=dead,
            garbage=garbage,
            workers=workers,
            max_waiting=int(conf[0] or DEFAULT_MAX_WAITING),
            when_full=(conf[1] or b"reject").decode(),
            rate=float(counters.get("rate", 0)),
            totals={
                name[2:]: int(value) for name, value in sorted(counters.items()) if name.startswith("t:")
            },
        )

    async def _lanes(self, lanes: Sequence[str], paused: set[bytes], now_ms: int) -> list[LaneStatus]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for lane in lanes:
                for priority in range(9, -1, -1):
                    pipe.zcard(self._keys.level(lane, priority))
                    pipe.zrange(self._keys.level(lane, priority), 0, 0, withscores=True)
            replies = await pipe.execute()
        statuses: list[LaneStatus] = []
        for at, lane in enumerate(lanes):
            levels = replies[at * 20 : at * 20 + 20]
            waiting = {9 - n: levels[2 * n] for n in range(10) if levels[2 * n]}
            oldest = min((heads[0][1] for heads in levels[1::2] if heads), default=None)
            statuses.append(
                LaneStatus(
                    lane=lane,
                    waiting=waiting,
                    paused=lane.encode() in paused,
                    oldest_s=None if oldest is None else max(0.0, now_ms / 1000 - oldest / 1e6),
                )
            )
        return statuses

    async def job(self, job_id: str) -> JobInfo | None:
        """The whole record of a job; None if there is none that can be read."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self._keys.of("record", job_id))
            pipe.scard(self._keys.of("tickets", job_id))
            record, tickets = await pipe.execute(raise_on_error=False)
        if not isinstance(record, dict) or not record:
            return None
        position = await self._queue.position(job_id)
        try:
            return _info(job_id, _text(record), tickets if isinstance(tickets, int) else 0, position)
        except (KeyError, ValueError):
            return None

    async def jobs(
        self,
        *,
        state: JobState | None = None,
        lane: str | None = None,
        tenant: str | None = None,
        limit: int = 50,
    ) -> list[JobSummary]:
        """Jobs of one state, or running, waiting and delayed ones. Waiting ones come in the order of claiming."""
        states = [state] if state else [JobState.RUNNING, JobState.WAITING, JobState.DELAYED]
        now_ms = await self._now_ms()
        found: list[JobSummary] = []
        for one in states:
            async for job_id, record in self._records(self._ids(one, lane)):
                summary = _summary(job_id, record, now_ms)
                if summary is None or summary.state is not one:
                    continue
                if (lane and summary.model != lane) or (tenant and summary.tenant != tenant):
                    continue
                found.append(summary)
                if len(found) >= limit:
                    return found
        return found

    async def _ids(self, state: JobState, lane: str | None) -> AsyncIterator[str]:
        if state is JobState.WAITING:
            async for job_id in self._waiting(lane):
                yield job_id
            return
        key = {JobState.RUNNING: "leases", JobState.DELAYED: "delayed", JobState.FAILED: "dead"}.get(
            state, "finished"
        )
        newest_first = state.ended
        start = 0
        while page := await self._redis.zrange(
            self._keys.fixed(key), start, start + CHUNK - 1, desc=newest_first
        ):
            for job_id in page:
                yield job_id.decode()
            start += CHUNK

    async def _waiting(self, lane: str | None) -> AsyncIterator[str]:
        """Waiting jobs in the order of claiming: a merge of all levels, each of which is in order."""
        lanes = (
            [lane]
            if lane
            else [one.decode() for one in await self._redis.smembers(self._keys.fixed("lanes"))]
        )  # type: ignore[misc]
        aging = await self._redis.hget(self._keys.fixed("conf"), "aging_ms")  # type: ignore[misc]
        aging_us = float(aging if aging is not None else DEFAULT_AGING_MS) * 1000
        levels = [self._level(one, priority, aging_us) for one in lanes for priority in range(10)]
        heap: list[tuple[Rank, int, str]] = []
        for at, level in enumerate(levels):
            if (first := await anext(level, None)) is not None:
                heap.append((first[0], at, first[1]))
        heapq.heapify(heap)
        while heap:
            _, at, job_id = heap[0]
            yield job_id
            if (following := await anext(levels[at], None)) is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (following[0], at, following[1]))

    async def _level(self, lane: str, priority: int, aging_us: float) -> AsyncIterator[tuple[Rank, str]]:
        key, start = self._keys.level(lane, priority), 0
        while page := await self._redis.zrange(key, start, start + CHUNK - 1, withscores=True):
            for job_id, enqueued_us in page:
                yield rank(priority, enqueued_us, aging_us=aging_us), job_id.decode()
            start += CHUNK

    async def _records(self, ids: AsyncIterator[str]) -> AsyncIterator[tuple[str, Record]]:
        chunk: list[str] = []
        async for job_id in ids:
            chunk.append(job_id)
            if len(chunk) == 100:
                for pair in await self._read(chunk):
                    yield pair
                chunk.clear()
        for pair in await self._read(chunk):
            yield pair

    async def _read(self, ids: Sequence[str]) -> list[tuple[str, Record]]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hgetall(self._keys.of("record", job_id))
            replies = await pipe.execute(raise_on_error=False)
        return [
            (job_id, _text(reply))
            for job_id, reply in zip(ids, replies, strict=True)
            if isinstance(reply, dict) and reply
        ]

    async def dedup_keys(self, *, tenant: str | None = None, limit: int = 50) -> list[DedupEntry]:
        """Dedup keys in use, in no order."""
        entries: list[DedupEntry] = []
        pattern = self._keys.dedup(tenant or "*", "*").replace("[", "[[]")
        async for key in self._redis.scan_iter(match=pattern, count=CHUNK):
            one_tenant, key_hash = self._keys.split_dedup(key.decode())
            entry = await self._dedup_entry(one_tenant, key_hash)
            if entry is not None:
                entries.append(entry)
            if len(entries) >= limit:
                break
        return entries

    async def dedup(self, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupEntry | None:
        """What a dedup key, or the hash that `dedup_keys` shows of it, names now."""
        return await self._dedup_entry(tenant, dedup_hash(key)) or await self._dedup_entry(tenant, key)

    async def release_dedup(self, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupEntry | None:
        """Free a dedup key: the next enqueue with it makes a job of its own. The owner goes on."""
        entry = await self.dedup(key, tenant=tenant)
        if entry is not None:
            await self._redis.delete(self._keys.dedup(tenant, entry.hash))
        return entry

    async def _dedup_entry(self, tenant: str, key_hash: str) -> DedupEntry | None:
        key = self._keys.dedup(tenant, key_hash)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(key)
            pipe.pttl(key)
            owner, ttl_ms = await pipe.execute()
        if owner is None:
            return None
        try:
            state, mode, joined = await self._redis.hmget(  # type: ignore[misc]
                self._keys.of("record", owner.decode()), ["s", "m", "j"]
            )
        except ResponseError:
            state = mode = joined = None
        return DedupEntry(
            tenant=tenant,
            hash=key_hash,
            job_id=owner.decode(),
            state=JobState(state.decode()) if state else None,
            mode=DedupMode(mode.decode()) if mode else DedupMode.UNTIL_FINISHED,
            joined=int(joined or 0),
            expires_in_s=ttl_ms / 1000 if ttl_ms >= 0 else None,
        )

    async def workers(self) -> list[WorkerStatus]:
        """The worker processes that have renewed of late."""
        now_ms = await self._now_ms()
        members = await self._redis.zrange(self._keys.fixed("workers"), 0, -1, withscores=True)
        live = [(name.decode(), expires) for name, expires in members if expires > now_ms]
        if not live:
            return []
        abouts = await self._redis.mget([self._keys.of("worker", name) for name, _ in live])
        return [
            WorkerStatus(
                id=name, expires_in_s=(expires - now_ms) / 1000, about=orjson.loads(about) if about else {}
            )
            for (name, expires), about in zip(live, abouts, strict=True)
        ]

    async def _now_ms(self) -> int:
        seconds, micros = await self._redis.time()  # type: ignore[no-untyped-call]
        return int(seconds) * 1000 + int(micros) // 1000


def _text(record: Mapping[bytes, bytes]) -> Record:
    return {
        name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in record.items()
    }


def _summary(job_id: str, record: Record, now_ms: int) -> JobSummary | None:
    try:
        return JobSummary(
            id=job_id,
            state=JobState(record["s"]),
            model=record["l"],
            priority=int(record["p"]),
            tenant=record.get("t", DEFAULT_TENANT),
            attempts=int(record.get("n", 0)),
            age_s=max(0.0, (now_ms - _enqueued_ms(record)) / 1000),
            worker=record.get("w"),
            reason=record.get("r"),
        )
    except (KeyError, ValueError):
        return None


def _info(job_id: str, record: Record, tickets: int, position: int | None) -> JobInfo:
    state = JobState(record["s"])
    error = record.get("i")
    dedup = DedupMode(record.get("m", DedupMode.UNTIL_FINISHED)) if "d" in record else None
    return JobInfo(
        id=job_id,
        state=state,
        model=record["l"],
        priority=int(record["p"]),
        tenant=record.get("t", DEFAULT_TENANT),
        position=position,
        attempts=int(record.get("n", 0)),
        failures=int(record.get("f", 0)),
        lost_leases=int(record.get("o", 0)),
        max_attempts=_number(record.get("a")),
        # The first ticket is the job's id and is stored only once there is a second.
        tickets=0 if state.ended else tickets if "j" in record else 1,
        joined=int(record.get("j", 0)),
        dedup=dedup,
        worker=record.get("w"),
        error=JobError.model_validate_json(error) if error else None,
        reason=record.get("r"),
        enqueued_at_ms=_enqueued_ms(record),
        due_at_ms=_number(record.get("u")),
        deadline_at_ms=_number(record.get("x")),
        started_at_ms=_number(record.get("c")),
        ended_at_ms=_number(record.get("e")),
        history=_history(state, record),
    )


def _history(state: JobState, record: Record) -> list[HistoryEntry]:
    """The stored entries, and what the record's other fields tell: the enqueue, the last claim, the end."""
    entries = [HistoryEntry(at_ms=_enqueued_ms(record), what="enqueued")]
    for at_ms, what, worker, attempt, detail in orjson.loads(f"[{record.get('y', '')}]"):
        entries.append(
            HistoryEntry(
                at_ms=at_ms, what=what, worker=worker or None, attempt=attempt or None, detail=detail or None
            )
        )
    attempts = int(record.get("n", 0))
    told = max((entry.attempt or 0 for entry in entries), default=0)
    if "c" in record and attempts > told:
        entries.append(
            HistoryEntry(at_ms=int(record["c"]), what="claimed", worker=record.get("w"), attempt=attempts)
        )
    if state.ended and "e" in record:
        entries.append(HistoryEntry(at_ms=int(record["e"]), what=state.value, detail=record.get("r")))
    return sorted(entries, key=lambda entry: entry.at_ms)


def _enqueued_ms(record: Record) -> int:
    return int(record["b"]) if "b" in record else int(record["q"]) // 1000


def _number(value: str | None) -> int | None:
    return int(value) if value else None
