"""The queue: one method a script, bytes in and typed values out. No policy, no retries, no asyncio tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, TypeAlias, TypeVar

import orjson
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from scheduler.model import JobState
from scheduler.queue.keys import Keys
from scheduler.queue.limits import Limits
from scheduler.queue.records import (
    START,
    Claim,
    ClaimedJob,
    Conflict,
    Cursor,
    Ending,
    Enqueued,
    EnqueueOutcome,
    Full,
    NewJob,
    Offer,
    Publication,
    Replay,
    Return,
    Reuse,
    TickReport,
    WithoutPermit,
    WriteOutcome,
)
from scheduler.queue.scripts import Argument, Call, Scripts

ENQUEUE_CHUNK = 128
CALL_BYTES = 1 << 20
"""What the requests or events of one script call may have together: Lua takes some ms to copy more."""
STAGED_BYTES = 256 << 10
"""A request that has more goes to Redis ahead of the script for it: a plain SET copies it once."""
STAGED_MS = 60_000
STAGE_AGAIN = 3
UNSTAGED = 2
CLAIM_BYTES = 16 << 20
REPLAY_LIMIT = 1000
AUDIT_CHUNK = 50
CLAIM_CHUNK = 128
LANES_A_CLAIM = 256
TICK_CHUNK = 25
PURGE_AT_ONCE = 50
RENEW_AT_ONCE = 512

FORMAT = 1
"""The format of what is stored, as lua/lib/format.lua has it."""

NO_LIMITS = Limits()
NO_OFFERS: Mapping[str, Sequence[Offer]] = {}
NOTHING_KEPT: Mapping[str, int] = {}

T = TypeVar("T")

CancelReply: TypeAlias = Literal["cancelled", "ticket_returned", "ended", "not_found"]


class PromptQueue:
    """The jobs of one queue on one Redis.

    Every method is one atomic step on the server and may be sent twice. Errors are those of redis-py:
    whoever faces users translates them.

    `redis` must not decode responses. `script_flags` is false for a server that does not know `#!lua`.
    """

    def __init__(self, redis: Redis, name: str = "default", *, script_flags: bool = True) -> None:
        self.redis = redis
        self.name = name
        db = _database(redis)
        self.keys = Keys(name, db)
        self._scripts = Scripts(redis, self.keys.prefix, flags=script_flags, db=db)

    async def load(self) -> None:
        """Send the scripts to the server ahead of their first use."""
        await self._scripts.load()

    def channel(self, job_id: str) -> str:
        """The pub/sub channel on which a job's events appear."""
        return self.keys.of("channel", job_id)

    @property
    def control_channel(self) -> str:
        """The pub/sub channel on which worker processes hear of cancelled jobs."""
        return self.keys.fixed("control")

    async def unfinished(self, lanes: Sequence[str]) -> int:
        """How many jobs of these lanes are waiting, delayed or held; those of paused lanes do not count."""
        paused = await self.redis.smembers(self.keys.fixed("paused"))  # type: ignore[misc]
        counted = [f"n:{lane}" for lane in lanes if lane.encode() not in paused]
        if not counted:
            return 0
        counts = await self.redis.hmget(self.keys.fixed("meta"), counted)  # type: ignore[misc]
        return sum(int(count or 0) for count in counts)

    async def configure(
        self,
        *,
        conf: Mapping[str, str | int | float],
        routes: Mapping[str, bytes],
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Publish the queue's settings, its limits, and the routes that a worker process serves.

        What others have said of routes that it does not serve stays. Its tenants take the place of all
        others: they are the queue's, and no process's own.
        """
        groups: list[Mapping[str, Argument | float]] = [conf, routes, limits.fields()]
        args: list[Argument] = [len(group) for group in groups]
        for group in groups:
            for name, value in group.items():
                args += (name, str(value) if isinstance(value, float) else value)
        await self._scripts.run("configure", *args)

    async def limits(self) -> dict[str, str]:
        """The rate limits that hold, as `Limits.fields` has them."""
        stored: dict[bytes, bytes] = await self.redis.hgetall(self.keys.fixed("limits"))  # type: ignore[misc]
        return {name.decode(): value.decode("utf-8", "replace") for name, value in stored.items()}

    async def format(self) -> int:
        """The format in which the queue was last written; 0 where nobody has said."""
        stored: bytes | None = await self.redis.hget(self.keys.fixed("meta"), "format")  # type: ignore[misc]
        return int(stored) if stored and stored.isdigit() else 0

    async def settings(self) -> dict[str, str]:
        """The queue's settings that hold, as a worker process has published them."""
        stored: dict[bytes, bytes] = await self.redis.hgetall(self.keys.fixed("conf"))  # type: ignore[misc]
        return {name.decode(): value.decode("utf-8", "replace") for name, value in stored.items()}

    async def forget_routes(self, names: Sequence[str]) -> None:
        """Take routes off the list that nobody serves any more: clients refuse prompts for them then."""
        if names:
            await self.redis.hdel(self.keys.fixed("routes"), *names)  # type: ignore[misc]

    async def routes(self) -> dict[str, dict[str, Any]]:
        """The routes that worker processes have published."""
        raw: dict[bytes, bytes] = await self.redis.hgetall(self.keys.fixed("routes"))  # type: ignore[misc]
        return {name.decode(): orjson.loads(body) for name, body in raw.items()}

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueOutcome]:
        """Put jobs into their lanes; one outcome each, in order. At most `ENQUEUE_CHUNK` at once.

        Where they are large it takes more than one call: when one fails, those of the calls before it are in.
        """
        outcomes: list[EnqueueOutcome] = []
        for some in _by_bytes(jobs, lambda job: len(job.payload)):
            done = 0
            while done < len(some):
                replies = await self._enqueue(some[done:])
                outcomes += replies
                done += len(replies)
        return outcomes

    async def _enqueue(self, jobs: Sequence[NewJob]) -> list[EnqueueOutcome]:
        """The outcomes of the first of these jobs, of all where that is not too much for a call."""
        staged = {job.job_id: job.payload for job in jobs if len(job.payload) > STAGED_BYTES}
        args: list[Argument] = [len(jobs)]
        for job in jobs:
            args += (
                job.job_id,
                job.lane,
                job.priority,
                job.tenant,
                b"" if job.job_id in staged else job.payload,
                job.dedup_hash or "",
                job.content_hash or "",
                job.dedup.value,
                _optional(job.deadline_ms),
                _optional(job.delay_ms),
                _optional(job.max_attempts),
                _optional(job.result_ttl_ms),
            )
        for _ in range(STAGE_AGAIN):
            for job_id, payload in staged.items():
                await self.redis.set(self.keys.of("staged", job_id), payload, px=STAGED_MS)
            replies = await self._scripts.run("enqueue", *args)
            if replies[0][0] != b"unstaged":
                return [_outcome(reply) for reply in replies]
        raise OutOfMemoryError("Redis did not keep a large request for as long as it took to enqueue it")

    async def wait_for_space(self, timeout_s: float) -> None:
        """Return when a full queue may have room again, or after `timeout_s`."""
        await self.redis.blpop([self.keys.fixed("space")], timeout=timeout_s)  # type: ignore[misc, arg-type]

    async def claim(
        self,
        claim_id: str,
        worker: str,
        lanes: Mapping[str, int],
        *,
        limit: int,
        lease_ms: int,
        kept: int = 0,
        lanes_kept: Mapping[str, int] = NOTHING_KEPT,
        suspects: bool = True,
        offers: Mapping[str, Sequence[Offer]] = NO_OFFERS,
        max_bytes: int = CLAIM_BYTES,
    ) -> Claim:
        """Lease the best ready jobs: at most `limit`, of each lane at most what `lanes` says.

        Name at most `LANES_A_CLAIM` lanes.

        It takes no more once their requests have `max_bytes` together, but one in any case. Of those whose
        requests have gone before they were read, cancelled most likely, nothing is told.

        `kept` of the `limit`, and of each lane's places those in `lanes_kept`, are for priorities 8 and 9.

        Jobs that may have killed a worker process are *suspects*; a process may run one at a time, so say in
        `suspects` whether it runs none.

        For lanes with a limited endpoint, `offers` has those that may take jobs now: every job gets the
        permit of the least busy one by weight that has one, or stays where it is.
        """
        places = min(limit, CLAIM_CHUNK)
        # What goes beyond one claim is kept first.
        kept = max(0, kept - (limit - places))
        args: list[Argument] = [
            claim_id,
            worker,
            lease_ms,
            places,
            kept,
            int(suspects),
            min(max_bytes, CLAIM_BYTES),
        ]
        for lane, quota in lanes.items():
            offered = " ".join(
                f"{offer.endpoint} {offer.room} {offer.kept} {offer.outstanding} {offer.weight}"
                for offer in offers.get(lane, ())
            )
            args += (lane, quota, lanes_kept.get(lane, 0), offered)
        more, waits, *rows = await self._scripts.run("claim", *args)
        without = {
            lane.decode(): WithoutPermit(tuple(names.decode().split()), ms)
            for lane, ms, names in zip(waits[::3], waits[1::3], waits[2::3], strict=True)
        }
        jobs = await self._with_payloads([_claimed(row) for row in rows])
        return Claim(jobs, more=more > 0, more_urgent=more > 1, without_permit=without)

    async def _with_payloads(self, jobs: Sequence[ClaimedJob]) -> tuple[ClaimedJob, ...]:
        """The same jobs with the requests that are too large for a script's reply."""
        large = [job.id for job in jobs if not job.payload]
        if not large:
            return tuple(jobs)
        async with self.redis.pipeline(transaction=False) as pipe:
            for job_id in large:
                pipe.get(self.keys.of("payload", job_id))
            payloads = dict(zip(large, await pipe.execute(), strict=True))
        whole = (job if job.payload else job._replace(payload=payloads[job.id]) for job in jobs)
        return tuple(job for job in whole if job.payload)

    async def take_permit(self, job: ClaimedJob, endpoint: str) -> int | Literal["lost"]:
        """Let an attempt move on to another endpoint: 0, or in how many ms that has a permit for it.

        "lost": the job is not this token's any more. What the first endpoint was charged stays.
        """
        reply = int(await self._scripts.run("take_permit", job.id, job.token, endpoint))
        return "lost" if reply < 0 else reply

    async def wait_for_work(
        self, lanes: Sequence[str], timeout_s: float, *, urgent_lanes: Sequence[str] = ()
    ) -> None:
        """Return when one of the lanes may have work, or an urgent lane work of 8 or 9; or in `timeout_s`."""
        keys = [self.keys.of("urgent", lane) for lane in urgent_lanes]
        keys += [self.keys.of("wake", lane) for lane in lanes]
        await self.redis.blpop(keys, timeout=timeout_s)  # type: ignore[misc, arg-type]

    async def renew(
        self, worker: str, held: Sequence[tuple[str, int]], *, lease_ms: int, about: bytes
    ) -> list[int | Literal["lost"] | None]:
        """Renew the leases of all jobs that a worker process holds, and say that it lives.

        Returns, for each `(job_id, token)`: ms to its deadline, None without one, or "lost".
        """
        replies: list[int] = []
        for at in range(0, max(1, len(held)), RENEW_AT_ONCE):
            jobs = [part for job in held[at : at + RENEW_AT_ONCE] for part in job]
            replies += await self._scripts.run("renew", worker, lease_ms, about, *jobs)
        return ["lost" if reply == -2 else None if reply == -1 else reply for reply in replies]

    async def attend(self, worker: str, endpoints: Sequence[str], *, holds_ms: int) -> list[tuple[int, int]]:
        """Say that a worker process uses these endpoints for `holds_ms`; 0: no more.

        Returns, for each: how many worker processes use it, and the place of this one among them, from 0.
        """
        if not endpoints:
            return []
        flat: list[int] = await self._scripts.run("attend", worker, holds_ms, *endpoints)
        return list(zip(flat[::2], flat[1::2], strict=True))

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        """Publish events, give jobs back and end jobs, in that order, in one round trip."""
        endings, staged = await self._stage_results(endings)
        early, endings = _parted(endings)
        calls: list[Call] = []
        writes: list[Sequence[Publication | Return | Ending]] = []
        whole = [part for one in publications for part in _cut(one)]
        for some in _by_bytes([*whole, *early], _size_of_events):
            calls.append(self._publish(some))
            writes.append(some)
        if returns:
            calls.append(self._retry(returns))
            writes.append(returns)
        for ends in _by_bytes(endings, _size_of_end):
            calls.append(self._finish(ends))
            writes.append(ends)
        if not calls:
            return WriteOutcome()
        refused = {
            (write.job_id, write.token)
            for batch, statuses in zip(writes, await self._scripts.run_all(calls), strict=True)
            for write, status in zip(batch, statuses, strict=True)
            if not status or (status == UNSTAGED and not await self._end_whole(staged, write.token))
        }
        for end in staged.values():
            if (end.job_id, end.token) not in refused:
                await self._tell_of_end(end)
        return WriteOutcome(frozenset(refused))

    async def _stage_results(self, endings: Sequence[Ending]) -> tuple[Sequence[Ending], dict[int, Ending]]:
        """Ends without their large results, which have gone ahead; and those whole, by token."""
        if all(len(end.value) <= STAGED_BYTES for end in endings):
            return endings, {}
        staged: dict[int, Ending] = {}
        for end in endings:
            if end.state is JobState.DONE and len(end.value) > STAGED_BYTES:
                with suppress(OutOfMemoryError):  # what a full server does not take ahead the script brings
                    await self.redis.set(self.keys.of("staged", end.job_id), end.value, px=STAGED_MS)
                    staged[end.token] = end
        return [end._replace(value=b"") if end.token in staged else end for end in endings], staged

    async def _end_whole(self, staged: dict[int, Ending], token: int) -> bool:
        """End a job in one call after all; whether that was accepted."""
        end = staged.pop(token, None)
        if end is None:
            return False
        early, ends = _parted([end])
        calls = [*(self._publish([part]) for part in early), self._finish(ends)]
        statuses: list[list[int]] = await self._scripts.run_all(calls)
        return statuses[-1] == [1]

    async def _tell_of_end(self, end: Ending) -> None:
        with suppress(NoPermissionError):
            message = b"".join((end.head, end.value, b"}"))
            await self.redis.publish(self.channel(end.job_id), message)

    @staticmethod
    def _publish(publications: Sequence[Publication]) -> Call:
        args: list[Argument] = []
        for publication in publications:
            args += (publication.job_id, publication.token, publication.first_seq, len(publication.events))
            args += publication.events
        return "publish", args

    @staticmethod
    def _retry(returns: Sequence[Return]) -> Call:
        args: list[Argument] = []
        for one in returns:
            args += (one.job_id, one.token, one.event, int(one.counts), one.delay_ms, one.error)
            args.append(_optional(one.used_tokens))
        return "retry", args

    @staticmethod
    def _finish(endings: Sequence[Ending]) -> Call:
        args: list[Argument] = []
        for one in endings:
            args += (one.job_id, one.token, one.state.value, one.first_seq, len(one.events))
            args += one.events
            args += (one.head, one.value, one.reason, one.result_ttl_ms, _optional(one.used_tokens))
        return "finish", args

    async def cancel(self, job_id: str, ticket: str | None = None) -> CancelReply:
        """Give a ticket back, and end the job if it was the last; without one end it whoever holds some."""
        reply: bytes = await self._scripts.run("cancel", job_id, ticket or "")
        return reply.decode()  # type: ignore[return-value]

    async def set_priority(self, job_id: str, priority: int) -> JobState | None:
        """Change the priority of a job that has not ended. Returns its state, None if there is no job."""
        return _state(await self._scripts.run("reprioritize", job_id, priority))

    async def reschedule(self, job_id: str, delay_ms: int) -> JobState | None:
        """Let a delayed job become due in `delay_ms`; 0: now. Returns its state, None if there is no job."""
        return _state(await self._scripts.run("reschedule", job_id, delay_ms))

    async def pause(self, lane: str) -> bool:
        """Stop claiming from a lane. Returns whether it had been open."""
        return bool(await self._scripts.run("pause", lane))

    async def resume(self, lane: str) -> bool:
        """Claim from a lane again. Returns whether it had been paused."""
        return bool(await self._scripts.run("resume", lane))

    async def forgive(self, subject: str) -> bool:
        """Let `t:<tenant>` or `e:<endpoint>` have again all that its limit gives. Workers hear of it.

        Returns whether some of it had been used.
        """
        return bool(await self._scripts.run("forgive", subject))

    async def requeue(self, job_id: str, request: bytes = b"") -> str:
        """Let a job that ended without a result run again, with another request if one is given.

        With another request it gives its dedup key up. Returns "waiting" or "held"; or why not: the state it
        is in, "not_found" or "payload_lost".
        """
        reply: bytes = await self._scripts.run("requeue", job_id, request)
        return reply.decode()

    async def delete(self, job_id: str) -> str:
        """Forget an ended job now, with its request and its answer.

        Returns "deleted"; or why not: the state of a job that has not ended, or "not_found".
        """
        reply: bytes = await self._scripts.run("delete", job_id)
        return reply.decode()

    async def discard(self, job_ids: Sequence[str]) -> int:
        """Forget dead letters for good. Returns how many of these were some."""
        return sum(await self._scripts.run("discard", *job_ids)) if job_ids else 0

    async def audit(
        self, looks: Sequence[tuple[bytes, bytes]], *, repair: bool = False
    ) -> list[tuple[str, str]]:
        """Look at some of what is in Redis; `looks` are pairs that the script `audit` explains.

        A step is `AUDIT_CHUNK` of them; one round trip for all. Returns pairs: what is wrong, and where. With
        `repair` it has been mended.
        """
        words = [word for look in looks for word in look]
        steps = range(0, len(words), 2 * AUDIT_CHUNK)
        calls: list[Call] = [("audit", (int(repair), *words[at : at + 2 * AUDIT_CHUNK])) for at in steps]
        reply = [
            word.decode("utf-8", "replace") for found in await self._scripts.run_all(calls) for word in found
        ]
        return list(zip(reply[::2], reply[1::2], strict=True))

    async def release(self, tenant: str, dedup_hash: str) -> tuple[str, int] | None:
        """Let a dedup key go. Returns the job that owned it and the ms it had left, -1 without an end.

        None: it was free.
        """
        reply = await self._scripts.run("release", tenant, dedup_hash)
        return (reply[0].decode("utf-8", "replace"), reply[1]) if reply else None

    async def joined(self, proposed_id: str) -> str | None:
        """The job that a caller joined who had proposed this id for its own; None if nobody did."""
        job_id: bytes | None = await self.redis.get(self.keys.of("alias", proposed_id))
        return None if job_id is None else job_id.decode()

    async def request(self, job_id: str) -> bytes | None:
        """The stored request of a job, JSON; None where it has none any more."""
        stored: bytes | None = await self.redis.get(self.keys.of("payload", job_id))
        return stored

    async def tick(
        self,
        worker: str,
        *,
        lease_ms: int,
        lock_ms: int,
        chunk: int = TICK_CHUNK,
        mend_ms: int = 10_000,
        silent_ms: int | None = None,
        is_sure: bool = False,
        away_ms: int = 0,
    ) -> TickReport:
        """Do the maintenance that is due, if this worker process holds the lock or can take it.

        At most `chunk` jobs of each kind in a call, which says when the next is wanted.

        `silent_ms`: how long ago, by its own clock, it had the reply to its last tick; by that a jump of
        Redis' clock is known. Where the report is `in_doubt`, call again at once, with `is_sure`. `away_ms`:
        for how long Redis has just been away for this process; leases that ended for want of it are no
        reason to suspect their jobs.
        """
        jobs = (worker, lock_ms, lease_ms, chunk, _optional(silent_ms), int(is_sure), away_ms)
        calls: list[Call] = [("tick", jobs), ("tend", (worker, mend_ms))]
        (leader, next_ms, *done), (tend_in_ms, woken) = await self._scripts.run_all(calls)
        report = TickReport(leader == 1, next_ms, *done)
        if leader == 2:
            return replace(report, in_doubt=True)
        if not report.leader:
            return report
        return replace(report, next_ms=min(next_ms, tend_in_ms), rearmed=report.rearmed + woken)

    async def purge(self, lane: str, priority: int | None = None, *, chunk: int = 500) -> int:
        """Cancel up to `chunk` waiting or held jobs of a lane; call again until it returns 0."""
        purged, place = 0, b""
        while purged < chunk:
            most = min(PURGE_AT_ONCE, chunk - purged)
            n, place = await self._scripts.run("purge", lane, _optional(priority), most, place)
            purged += n
            if not place:
                break
        return purged

    async def purge_delayed(
        self, lane: str, priority: int | None = None, *, start: int = 0, chunk: int = PURGE_AT_ONCE
    ) -> tuple[int | None, int]:
        """Cancel those of a lane among `chunk` delayed jobs, from the `start`-th on.

        Returns where to go on, None at the end, and how many were cancelled.
        """
        reply: list[int] = await self._scripts.run("purge_delayed", lane, _optional(priority), start, chunk)
        return (None if reply[0] < 0 else reply[0]), reply[1]

    async def replay(self, job_id: str, after: Cursor = START, limit: int = REPLAY_LIMIT) -> Replay | None:
        """A job's state and its events after a cursor; None for an unknown job."""
        reply = (await self.replay_many([(job_id, after)], limit))[0]
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def replay_many(
        self, wanted: Sequence[tuple[str, Cursor]], limit: int = REPLAY_LIMIT
    ) -> list[Replay | ResponseError | None]:
        """The same for many jobs, in one round trip; in its place why one cannot be read."""
        calls: list[Call] = [("replay", (job_id, token, seq, limit)) for job_id, (token, seq) in wanted]
        replies = await self._scripts.run_each(calls)
        return [reply if isinstance(reply, ResponseError) else _replay(reply) for reply in replies]

    async def position(self, job_id: str) -> int | None:
        """How many jobs of its lane would be claimed before it; None if it neither waits nor is held.

        For a held job: how many of its tenant that are held in this lane.
        """
        reply = int(await self._scripts.run("position", job_id))
        return reply if reply >= 0 else None

    async def forget_worker(self, worker: str) -> None:
        """Take a worker process that has stopped off the list, and let go of the maintenance lock."""
        await self._scripts.run("forget_worker", worker)


def _by_bytes(items: Sequence[T], size_of: Callable[[T], int]) -> list[Sequence[T]]:
    """The same in parts that may share a call; a large one is a part of its own."""
    parts: list[Sequence[T]] = []
    began = size = 0
    for at, item in enumerate(items):
        item_size = size_of(item)
        if size + item_size > CALL_BYTES and at > began:
            parts.append(items[began:at])
            began, size = at, 0
        size += item_size
    if items:
        parts.append(items[began:])
    return parts


def _parted(endings: Sequence[Ending]) -> tuple[list[Publication], Sequence[Ending]]:
    """Ends without the events that would make a call too large, and those events, which go before them."""
    large = {end.token for end in endings if _size_of_end(end) > CALL_BYTES and end.events}
    if not large:
        return [], endings
    early: list[Publication] = []
    ends: list[Ending] = []
    for end in endings:
        if end.token not in large:
            ends.append(end)
            continue
        early += _cut(Publication(end.job_id, end.token, end.first_seq, end.events))
        ends.append(end._replace(first_seq=end.first_seq + len(end.events), events=()))
    return early, ends


def _cut(publication: Publication) -> Sequence[Publication]:
    """Parts of a publication that is too large for a call."""
    if _size_of_events(publication) <= CALL_BYTES:
        return (publication,)
    parts: list[Publication] = []
    seq = publication.first_seq
    for events in _by_bytes(publication.events, len):
        parts.append(publication._replace(first_seq=seq, events=tuple(events)))
        seq += len(events)
    return parts


def _size_of_events(publication: Publication) -> int:
    return sum(map(len, publication.events))


def _size_of_end(end: Ending) -> int:
    return len(end.value) + sum(map(len, end.events))


def _database(redis: Redis) -> int:
    """The number of the database that a client talks to, wherever its URL says so."""
    return int(redis.connection_pool.connection_kwargs.get("db") or 0)


def _replay(reply: list[Any]) -> Replay | None:
    if not reply:
        return None
    state, token, seq, more, *events = reply
    if more == 2:  # put together here, and not by copies in the script
        *events, head, result = events
        events.append(b"".join((head, result, b"}")))
    return Replay(JobState(state.decode()), tuple(events), (int(token), int(seq)), more=more == 1)


def _optional(value: int | None) -> Argument:
    return "" if value is None else value


def _state(reply: bytes) -> JobState | None:
    return None if reply == b"not_found" else JobState(reply.decode())


def _outcome(reply: list[Any]) -> EnqueueOutcome:
    match reply[0]:
        case b"full":
            _, waiting, max_waiting, lane, retry_after_ms, when_full = reply
            return Full(waiting, max_waiting, lane.decode() or None, retry_after_ms, when_full.decode())
        case b"conflict":
            return Conflict(reply[1].decode())
        case b"reused":
            _, job_id, hits, age_ms = reply
            return Enqueued(job_id.decode(), deduplicated=True, reuse=Reuse(hits, age_ms))
        case kind:
            return Enqueued(reply[1].decode(), deduplicated=kind == b"joined")


def _claimed(row: list[Any]) -> ClaimedJob:
    (
        job_id,
        token,
        attempt,
        failures,
        waits,
        attempts,
        priority,
        lane,
        tenant,
        waited,
        remaining,
        ttl,
        suspect,
        endpoint,
        payload,
    ) = row
    return ClaimedJob(
        job_id.decode(),
        token,
        attempt,
        failures,
        attempts,
        priority,
        lane.decode(),
        tenant.decode(),
        waited,
        remaining,
        ttl,
        payload,
        endpoint.decode(),
        bool(suspect),
        waits,
    )
