"""Reads for people: how a queue stands, what is in it, and why. In bounded steps, so that nobody waits."""

from __future__ import annotations

import heapq
import re
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import Any

import orjson
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from scheduler.model import DEFAULT_TENANT, DedupMode, JobInfo, JobState
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.endpoint_status import summarize
from scheduler.queue.held import levels_in, read_held_lanes
from scheduler.queue.job_info import FIELDS, HISTORY, make_job_info
from scheduler.queue.limits import EVERY_TENANT, parse_limit
from scheduler.queue.pages import AT_ONCE, names_in, scored_pages
from scheduler.queue.queue import PromptQueue
from scheduler.queue.ranking import Hold, claim_rank, explain_place
from scheduler.queue.reports import DedupKey, LaneStatus, LimitedTenant, QueueStatus, RedisMemory, WorkerInfo

PAGE = 200
LANES_AT_ONCE = 50
TOTALS_AT_ONCE = 1000
RATE_FRESH_MS = 60_000
UNKNOWN_MEAN_S = 1.0
"""What a job is reckoned to take in a lane of which none has ended yet, as in tick.lua."""
PRIORITIES = range(9, -1, -1)
REPLIES_A_LANE = 2 * 2 * len(PRIORITIES)
LIVE = (JobState.RUNNING, JobState.WAITING, JobState.HELD, JobState.DELAYED)

# Where the jobs of a state are listed, and whether the last in the list comes first.
_LISTED = {
    JobState.RUNNING: ("leases", False),
    JobState.DELAYED: ("delayed", False),
    JobState.FAILED: ("dead", True),
    JobState.DONE: ("finished", True),
    JobState.CANCELLED: ("finished", True),
    JobState.EXPIRED: ("finished", True),
    JobState.SHED: ("finished", True),
}
_HASH = re.compile(r"[A-Za-z0-9_-]{20}")


class QueueInspector:
    """Reads a queue for people and their tools. Changes nothing but a dedup key that is to be released.

    Lists are made page by page while the queue goes on: a job that moves meanwhile may be missing.
    Errors are those of redis-py.
    """

    def __init__(self, queue: PromptQueue) -> None:
        self._queue = queue
        self._redis = queue.redis
        self._keys = queue.keys

    async def job(self, job_id: str) -> JobInfo | None:
        """All that is known of a job, its history included; None where there is no record of it.

        One round trip; two for a job that waits, three for one that is held.
        """
        record = self._keys.of("record", job_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(record, [*FIELDS, HISTORY])
            pipe.scard(self._keys.of("tickets", job_id))
            pipe.hget(self._keys.fixed("conf"), "aging_ms")
            pipe.smembers(self._keys.fixed("paused"))
            self._ask_time(pipe)
            values, tickets, aging, paused, *clock = await pipe.execute(raise_on_error=False)
        *values, history = _values(values)
        info = make_job_info(
            job_id,
            values,
            tickets=_count(tickets),
            position=await self._queue.position(job_id) if values[0] in (b"waiting", b"held") else None,
            history=history or b"",
        )
        if info is None:
            joined = await self._queue.joined(job_id)
            return None if joined is None else await self.job(joined)
        place = explain_place(
            info,
            aging_ms=_aging_ms(aging),
            paused=info.model.encode() in paused,
            now_ms=_now_us(*clock) // 1000,
            hold=await self._hold(info) if info.state is JobState.HELD else None,
        )
        return info.model_copy(update={"place": place}) if place else info

    async def _hold(self, info: JobInfo) -> Hold:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self._keys.fixed("limits"), [f"t:{info.tenant}", f"t:{EVERY_TENANT}"])
            pipe.zscore(self._keys.fixed("limited"), self._keys.held_lane(info.model, info.tenant))
            limits, look_at_ms = await pipe.execute()
        return Hold(parse_limit(limits[0] or limits[1]), look_at_ms)

    async def status(self, *, workers: Sequence[WorkerInfo] | None = None) -> QueueStatus:
        """How the queue stands; `workers` are the live ones, where they are known already.

        Five round trips, three with `workers`; more where jobs are held or lanes are many, in pages.
        """
        held = await read_held_lanes(self._redis, self._keys)
        fixed = self._keys.fixed
        used, paused, routes = await names_in(
            self._redis, (fixed("lanes"), "set"), (fixed("paused"), "set"), (fixed("routes"), "hash")
        )
        names = sorted(name.decode() for name in {*used, *routes, *paused})
        first, rest = names[:LANES_AT_ONCE], names[LANES_AT_ONCE:]
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hmget(fixed("meta"), ["ahead", "rate", "sampled"])
            pipe.hscan(fixed("meta"), 0, match="t:*", count=TOTALS_AT_ONCE)
            pipe.hgetall(fixed("conf"))
            pipe.time()
            for listed in ("delayed", "leases", "dead", "finished"):
                pipe.zcard(fixed(listed))
            pipe.hlen(fixed("garbage"))
            pipe.zrange(fixed("workers"), 0, -1, withscores=True)
            self._ask_lanes(pipe, first)
            (
                (ahead, rate, sampled),
                (cursor, totals),
                conf,
                time,
                delayed,
                running,
                dead,
                finished,
                garbage,
                processes,
                *answers,
            ) = await pipe.execute()
        found = _lanes_read(answers, first)
        while cursor:
            cursor, more = await self._redis.hscan(fixed("meta"), cursor, match="t:*", count=TOTALS_AT_ONCE)
            totals |= more
        for start in range(0, len(rest), LANES_AT_ONCE):
            some = rest[start : start + LANES_AT_ONCE]
            async with self._redis.pipeline(transaction=False) as pipe:
                self._ask_lanes(pipe, some)
                found += _lanes_read(await pipe.execute(), some)
        now_us = _now_us(time, ahead)
        held_by_lane: Counter[str] = Counter()
        for one in held:
            held_by_lane[one.lane] += one.jobs
        lanes = [
            _lane_status(
                name,
                levels,
                unclaimed=int(unclaimed or 0),
                held=held_by_lane[name],
                paused=name.encode() in paused,
                bound=conf.get(f"max_waiting:{name}".encode()),
                mean_ms=mean_ms,
                now_us=now_us,
            )
            for name, unclaimed, mean_ms, levels in found
        ]
        return QueueStatus(
            queue=self._queue.name,
            at_ms=now_us // 1000,
            waiting=sum(lane.waiting for lane in lanes),
            delayed=delayed,
            held=held_by_lane.total(),
            running=running,
            dead=dead,
            finished=finished,
            garbage=garbage,
            workers=sum(gone_at_ms > now_us / 1000 for _, gone_at_ms in processes),
            max_waiting=int(conf.get(b"max_waiting", 100_000)),
            when_full=conf.get(b"when_full", b"reject").decode(),
            aging_s=_aging_ms(conf.get(b"aging_ms")) / 1000,
            ended_per_s=_rate(rate, sampled, now_us // 1000),
            totals={name[2:].decode(): int(count) for name, count in sorted(totals.items())},
            lanes=lanes,
            limited=[
                LimitedTenant(
                    tenant=one.tenant,
                    lane=one.lane,
                    held=one.jobs,
                    next_in_s=max(0, one.look_at_ms - now_us // 1000) / 1000,
                )
                for one in held
            ],
            endpoints=summarize(await self.workers() if workers is None else workers),
        )

    async def memory(self) -> RedisMemory | None:
        """What the server uses; None where it does not tell, or not this user."""
        try:
            said = await self._redis.info("memory")
        except ResponseError:
            return None
        used, most = said.get("used_memory"), said.get("maxmemory")
        return RedisMemory(used_bytes=used, max_bytes=most or None) if used is not None else None

    async def now_ms(self) -> int:
        """The queue's clock, in milliseconds since the epoch: Redis' own, unless that one has jumped."""
        async with self._redis.pipeline(transaction=False) as pipe:
            self._ask_time(pipe)
            return _now_us(*await pipe.execute()) // 1000

    def _ask_time(self, pipe: Pipeline) -> None:
        pipe.time()
        pipe.hget(self._keys.fixed("meta"), "ahead")

    def _ask_lanes(self, pipe: Pipeline, lanes: Sequence[str]) -> None:
        """What `_lanes_read` makes something of."""
        if lanes:
            fields = [f"{what}:{lane}" for lane in lanes for what in ("n", "mean")]
            pipe.hmget(self._keys.fixed("meta"), fields)
            self._ask_levels(pipe, lanes)

    def _ask_levels(self, pipe: Any, lanes: Sequence[str]) -> None:
        for lane in lanes:
            for place in (lane, self._keys.suspects_lane(lane)):
                for priority in PRIORITIES:
                    pipe.zcard(self._keys.level(place, priority))
                    pipe.zrange(self._keys.level(place, priority), 0, 0, withscores=True)

    async def jobs(
        self,
        *,
        state: JobState | None = None,
        lane: str | None = None,
        tenant: str | None = None,
        limit: int = 100,
    ) -> list[JobInfo]:
        """At most `limit` jobs, without their histories; of no state named: all that have not ended.

        Waiting and held jobs come in the order of claiming, running ones by the end of their leases, delayed
        ones by when they are due, ended ones the latest first.
        """
        found: list[JobInfo] = []
        for one in LIVE if state is None else (state,):
            async with aclosing(self.in_state(one, lane)) as listed:
                async for info in listed:
                    if len(found) >= limit:
                        return found
                    if tenant in (None, info.tenant) and lane in (None, info.model):
                        found.append(info)
        return found

    async def in_state(self, state: JobState, lane: str | None = None) -> AsyncGenerator[JobInfo, None]:
        """All jobs of a state, in the order of `jobs`. Of the states that do not wait, all lanes come."""
        if state in (JobState.WAITING, JobState.HELD):
            listed = self._ready(state, lane)
        elif state in _LISTED:
            listed = self._listed(state, *_LISTED[state])
        else:
            return
        async with aclosing(listed) as infos:
            async for info in infos:
                yield info

    async def latest(self, limits: Mapping[JobState, int]) -> dict[JobState, list[JobInfo]]:
        """The latest jobs of some states that do not wait, the last first, without their histories.

        Of each list so many are read, however long it is: two round trips. Running jobs come by the end of
        their leases, failed ones by their end, other ended ones by when their records go; these share a list,
        of which other states are left out.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            for state, limit in limits.items():
                pipe.zrange(self._keys.fixed(_LISTED[state][0]), 0, limit - 1, desc=True)
            listed = await pipe.execute()
        infos = iter(await self._read([job_id.decode() for ids in listed for job_id in ids]))
        return {
            state: [info for info in islice(infos, len(ids)) if info is not None and info.state is state]
            for state, ids in zip(limits, listed, strict=True)
        }

    async def _listed(self, state: JobState, name: str, latest_first: bool) -> AsyncGenerator[JobInfo, None]:
        start = 0
        while True:
            ids = await self._redis.zrange(self._keys.fixed(name), start, start + PAGE - 1, desc=latest_first)
            for info in await self._read([job_id.decode() for job_id in ids]):
                if info is not None and info.state is state:
                    yield info
            if len(ids) < PAGE:
                return
            start += PAGE

    async def _ready(self, state: JobState, lane: str | None) -> AsyncGenerator[JobInfo, None]:
        """Waiting or held jobs with their positions, in the order of claiming: the levels merged by rank."""
        aging = await self._redis.hget(self._keys.fixed("conf"), "aging_ms")  # type: ignore[misc]
        merged = self._merged(await self._levels_in_use(state, lane), _aging_ms(aging) * 1000)
        seen: Counter[str] = Counter()
        async with aclosing(merged) as pages:
            async for page in pages:
                positions = []
                for name, _ in page:
                    positions.append(seen[name])
                    seen[name] += 1
                for info in await self._read([job_id for _, job_id in page], positions):
                    if info is not None and info.state is state:
                        yield info

    async def _levels_in_use(self, state: JobState, lane: str | None) -> list[_Level]:
        """Those of a lane, or of all, in which jobs wait or are held."""
        names: set[str] = set()
        if state is JobState.HELD:
            async for page in scored_pages(self._redis, self._keys.fixed("limited")):
                names.update(name.decode() for name, _ in page)
        else:
            (used,) = await names_in(self._redis, (self._keys.fixed("lanes"), "set"))
            names = {name.decode() for name in used}
        lanes = [name for name in sorted(names) if lane in (None, self._keys.split_held_lane(name)[0])]
        places = lanes if state is JobState.HELD else []
        levels: list[_Level] = []
        if state is JobState.WAITING:
            places = [self._keys.suspects_lane(name) for name in lanes]
            levels += await self._levels_of(lanes, "meta", [f"b:{name}" for name in lanes])
        return levels + await self._levels_of(places, "beside", places)

    async def _levels_of(self, places: Sequence[str], name: str, fields: Sequence[str]) -> list[_Level]:
        levels: list[_Level] = []
        for start in range(0, len(places), AT_ONCE):
            some = list(fields[start : start + AT_ONCE])
            bitmaps = await self._redis.hmget(self._keys.fixed(name), some)  # type: ignore[misc]
            for place, bits in zip(places[start : start + AT_ONCE], bitmaps, strict=True):
                levels += [_Level(place, priority) for priority in levels_in(bits)]
        return levels

    async def _merged(
        self, levels: Sequence[_Level], aging_us: int
    ) -> AsyncGenerator[list[tuple[str, str]], None]:
        """Pages of `(lane, job id)`."""
        await self._fill(levels)
        heads = [(level.rank(aging_us), at) for at, level in enumerate(levels) if level.page]
        heapq.heapify(heads)
        page: list[tuple[str, str]] = []
        while heads:
            _, at = heapq.heappop(heads)
            level = levels[at]
            page.append((level.lane, level.page.popleft()[0]))
            if not level.page and not level.drained:
                await self._fill([level])
            if level.page:
                heapq.heappush(heads, (level.rank(aging_us), at))
            if len(page) == PAGE:
                yield page
                page = []
        if page:
            yield page

    async def _fill(self, levels: Sequence[_Level]) -> None:
        for start in range(0, len(levels), 10 * LANES_AT_ONCE):
            chunk = levels[start : start + 10 * LANES_AT_ONCE]
            async with self._redis.pipeline(transaction=False) as pipe:
                for level in chunk:
                    key = self._keys.level(level.lane, level.priority)
                    pipe.zrange(key, level.taken, level.taken + level.page_size - 1, withscores=True)
                replies = await pipe.execute()
            for level, entries in zip(chunk, replies, strict=True):
                level.take(entries)

    async def _read(
        self, job_ids: Sequence[str], positions: Iterable[int | None] = repeat(None)
    ) -> list[JobInfo | None]:
        if not job_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(self._keys.of("record", job_id), FIELDS)
                pipe.scard(self._keys.of("tickets", job_id))
            replies = iter(await pipe.execute(raise_on_error=False))
        return [
            make_job_info(job_id, _values(values)[: len(FIELDS)], tickets=_count(tickets), position=position)
            for job_id, position, values, tickets in zip(job_ids, positions, replies, replies, strict=False)
        ]

    async def dedup_keys(self, *, tenant: str | None = None, limit: int = 100) -> list[DedupKey]:
        """At most `limit` of the dedup keys in use, in no order. Walks all keys of the server, in steps."""
        found: list[DedupKey] = []
        pattern = self._keys.dedup(tenant or DEFAULT_TENANT, "*")
        cursor = 0
        while True:
            cursor, names = await self._redis.scan(cursor, match=pattern, count=1000)
            split = [self._keys.split_dedup(name.decode()) for name in names]
            wanted = [one for one in split if tenant in (None, one[0])]
            for start in range(0, len(wanted), PAGE):
                found += await self._read_dedup(wanted[start : start + PAGE])
                if len(found) >= limit:
                    return found[:limit]
            if cursor == 0:
                return found

    async def dedup(self, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupKey | None:
        """Who owns a dedup key, given as the user gave it or by its hash; None if it is free."""
        candidates = [(tenant, one) for one in _hashes(key)]
        return next(iter(await self._read_dedup(candidates)), None)

    async def release_dedup(self, key: str, *, tenant: str = DEFAULT_TENANT) -> DedupKey | None:
        """Let a dedup key go: the next prompt with it is new work. The job that owned it goes on.

        Returns what it was, None if it was free already.
        """
        for hashed in _hashes(key):
            if (released := await self._queue.release(tenant, hashed)) is not None:
                return (await self._describe_dedup([(tenant, hashed, *released)]))[0]
        return None

    async def _read_dedup(self, names: Sequence[tuple[str, str]]) -> list[DedupKey]:
        if not names:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for tenant, hashed in names:
                pipe.get(self._keys.dedup(tenant, hashed))
                pipe.pttl(self._keys.dedup(tenant, hashed))
            replies = iter(await pipe.execute())
        held = [
            (tenant, hashed, owner.decode("utf-8", "replace"), left_ms)
            for (tenant, hashed), owner, left_ms in zip(names, replies, replies, strict=False)
            if owner is not None
        ]
        return await self._describe_dedup(held) if held else []

    async def _describe_dedup(self, held: Sequence[tuple[str, str, str, int]]) -> list[DedupKey]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for _, _, job_id, _ in held:
                pipe.hmget(self._keys.of("record", job_id), FIELDS)
            records = await pipe.execute(raise_on_error=False)
        return [_dedup_key(*one, _values(values)) for one, values in zip(held, records, strict=True)]

    async def workers(self) -> list[WorkerInfo]:
        """The live worker processes, by id."""
        async with self._redis.pipeline(transaction=False) as pipe:
            self._ask_time(pipe)
            pipe.zrange(self._keys.fixed("workers"), 0, -1, withscores=True)
            pipe.get(self._keys.fixed("leader"))
            *clock, listed, leader = await pipe.execute()
        now_ms = _now_us(*clock) / 1000
        ids = sorted(name.decode() for name, gone_at_ms in listed if gone_at_ms > now_ms)
        if not ids:
            return []
        described = await self._redis.mget([self._keys.of("worker", one) for one in ids])
        return [
            _worker_info(one, about, leads=leader == one.encode())
            for one, about in zip(ids, described, strict=True)
        ]


@dataclass(slots=True)
class _Level:
    """A cursor through one level of one lane. `page` has `(job id, score)`, the next one first."""

    lane: str
    priority: int
    page: deque[tuple[str, int]] = field(default_factory=deque)
    page_size: int = 20
    taken: int = 0
    drained: bool = False

    def take(self, entries: Sequence[tuple[bytes, float]]) -> None:
        self.page.extend((job_id.decode("utf-8", "replace"), int(score)) for job_id, score in entries)
        self.drained = len(entries) < self.page_size
        self.taken += len(entries)
        self.page_size = PAGE

    def rank(self, aging_us: int) -> tuple[int, int, int]:
        return claim_rank(self.priority, self.page[0][1], aging_us=aging_us)


def _values(reply: Any) -> list[bytes | None]:
    """The fields of a record; none of them where something else has its key."""
    if isinstance(reply, ResponseError):
        if not str(reply).startswith("WRONGTYPE"):
            raise reply
        return [None] * (len(FIELDS) + 1)
    return list(reply)


def _count(reply: Any) -> int:
    return reply if isinstance(reply, int) else 0


def _now_us(time: tuple[int, int], ahead_ms: bytes | None) -> int:
    return time[0] * 1_000_000 + time[1] + 1000 * int(ahead_ms or 0)


def _aging_ms(value: bytes | None) -> int:
    return int(value or 30_000)


def _rate(rate: bytes | None, sampled_at_ms: bytes | None, now_ms: int) -> float | None:
    if rate is None or now_ms - int(sampled_at_ms or 0) > RATE_FRESH_MS:
        return None
    return float(rate)


def _lanes_read(
    answers: Sequence[Any], names: Sequence[str]
) -> list[tuple[str, bytes | None, bytes | None, Sequence[Any]]]:
    """Of each lane its name, how many it counts, the mean time of a job, and its levels."""
    if not names:
        return []
    known, *levels = answers
    return [
        (name, known[2 * at], known[2 * at + 1], levels[REPLIES_A_LANE * at : REPLIES_A_LANE * (at + 1)])
        for at, name in enumerate(names)
    ]


def _lane_status(
    name: str,
    levels: Sequence[Any],
    *,
    unclaimed: int,
    held: int,
    paused: bool,
    bound: bytes | None,
    mean_ms: bytes | None,
    now_us: int,
) -> LaneStatus:
    """`levels`: the size and the head of each level, from 9 down, and then of each level of its suspects.

    `unclaimed` counts all but running.
    """
    sizes = levels[::2]
    mean_s = float(mean_ms) / 1000 if mean_ms else None
    innocent, suspects = sizes[: len(PRIORITIES)], sizes[len(PRIORITIES) :]
    counts = {p: a + b for p, a, b in zip(PRIORITIES, innocent, suspects, strict=True) if a + b}
    heads = [score for head in levels[1::2] for _, score in head]
    waiting = sum(counts.values())
    return LaneStatus(
        name=name,
        waiting=waiting,
        by_priority=counts,
        delayed=max(0, unclaimed - waiting - held),
        held=held,
        suspects=sum(suspects),
        paused=paused,
        oldest_s=max(0, now_us - int(min(heads))) / 1_000_000 if heads else None,
        max_waiting=int(bound) if bound else None,
        mean_s=mean_s,
        work_s=0.0 if paused else waiting * (UNKNOWN_MEAN_S if mean_s is None else mean_s),
    )


def _hashes(key: str) -> Iterator[str]:
    yield dedup_hash(key)
    if _HASH.fullmatch(key):
        yield key


def _dedup_key(
    tenant: str, hashed: str, job_id: str, left_ms: int, values: Sequence[bytes | None]
) -> DedupKey:
    expires_in_s = left_ms / 1000 if left_ms >= 0 else None
    owner = make_job_info(job_id, values[: len(FIELDS)], tickets=0)
    if owner is None:
        return DedupKey(tenant=tenant, hash=hashed, job_id=job_id, expires_in_s=expires_in_s)
    return DedupKey(
        tenant=tenant,
        hash=hashed,
        job_id=job_id,
        state=owner.state,
        model=owner.model,
        mode=owner.dedup or DedupMode.UNTIL_FINISHED,
        joined=owner.joined,
        hits=owner.hits,
        expires_in_s=expires_in_s,
    )


def _worker_info(worker: str, about: bytes | None, *, leads: bool) -> WorkerInfo:
    try:
        said = orjson.loads(about or b"{}")
        known = {name: said[name] for name in WorkerInfo.model_fields if name in said}
        return WorkerInfo(**{**known, "id": worker, "leader": leads})
    except (ValueError, TypeError):
        return WorkerInfo(id=worker, leader=leads)
