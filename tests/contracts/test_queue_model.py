"""The scripts against a plain Python model of the queue, step by step, with an audit of Redis after each.

Nothing here waits: deadlines, delays, leases and limits are so long that they end only where a step says so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import fakeredis
import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import ClaimedJob, Conflict, Enqueued, Full, NewJob, Offer, TickReport
from tests.contracts.queue_driver import QueueDriver, audit, new_job, text

T = TypeVar("T")

LANES = ("a", "b")
NO_BOUND = 10**9
FAR_MS = 10**9
LEASE_MS = FAR_MS
LIVE = ("waiting", "delayed", "held", "running")

# One request, and the next after a minute: until a step says that the minute is over.
LIMIT = RateLimit(requests=1)
LIMITED: dict[str, dict[str, RateLimit]] = {"nobody": {}, "t": {"t": LIMIT}, "everybody": {"*": LIMIT}}
ENDPOINT = "a.0"
SUBJECTS = st.sampled_from(["t:default", "t:default", "t:t", f"e:{ENDPOINT}"])

# Lane, priority, dedup key, content, dedup mode, tenant, deadline, delay.
SPEC = st.tuples(
    st.sampled_from(LANES),
    st.integers(0, 9),
    st.sampled_from([None, "K", "K", "L"]),
    st.sampled_from(["one", "one", "two"]),
    st.sampled_from(DedupMode),
    st.sampled_from(["default", "default", "t"]),
    st.sampled_from([None, None, FAR_MS, 2 * FAR_MS]),
    st.sampled_from([None, None, FAR_MS, 2 * FAR_MS]),
)


def job_of(number: int, spec: tuple[Any, ...]) -> NewJob:
    """Jobs sort by name as they were made, in each example anew: what is drawn stays the same on a replay."""
    lane, priority, key, content, mode, tenant, deadline_ms, delay_ms = spec
    fields = {"key": key, "content": content, "dedup": mode} if key else {}
    return new_job(
        f"j{number:03}",
        priority,
        lane=lane,
        tenant=tenant,
        deadline_ms=deadline_ms,
        delay_ms=delay_ms,
        **fields,
    )


@dataclass(slots=True)
class ModelJob:
    """What the model knows of a job. Times that end it are levels: 0 has come, None never comes."""

    id: str
    lane: str
    priority: int
    tenant: str
    key: str | None
    content: str | None
    mode: DedupMode
    deadline: int | None
    due: int
    state: str = "waiting"
    rank: int = 0
    attempts: int = 0
    failures: int = 0
    lost: int = 0
    token: int = 0
    tickets: set[str] = field(default_factory=set)
    request_is_kept: bool = True

    @property
    def counted(self) -> bool:
        return self.state in {"waiting", "delayed", "held"}

    @property
    def suspect(self) -> bool:
        return self.lost >= 2

    @property
    def held_lane(self) -> tuple[str, str]:
        return self.lane, self.tenant


class QueueModel(RuleBasedStateMachine):
    """Drives one queue; subclasses of `connect` say on which server."""

    connect: Callable[[], Redis]
    script_flags: bool
    begins_with_suspects = False

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis: Any = type(self).connect()
        self.q = QueueDriver(PromptQueue(self.redis, "model", script_flags=self.script_flags))
        self.jobs: dict[str, ModelJob] = {}
        self.owners: dict[tuple[str, str], str] = {}
        self.aliases: dict[str, str] = {}
        self.numbers = itertools.count(1)
        self.sent: list[NewJob] = []
        self.attempts: list[ClaimedJob] = []
        self.seqs: dict[int, int] = {}
        self.paused: set[str] = set()
        self.newest_token = 0
        self.newest_rank = 0
        self.claims = 0
        self.last_claim: tuple[str, dict[str, int], int, list[tuple[str, int]]] | None = None
        self.spent: set[str] = set()  # subjects that have used what they may
        self.released: dict[tuple[str, str], ModelJob] = {}  # the last of a held lane

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def do(self, call: Awaitable[T]) -> T:
        return self.loop.run_until_complete(call)

    @initialize(
        max_waiting=st.sampled_from([3, 6, 100]),
        lane_bound=st.sampled_from([2, 100]),
        when_full=st.sampled_from(["reject", "shed", "block"]),
        aging_ms=st.sampled_from([0, 30_000, 1_000_000]),
        limited=st.sampled_from(["everybody", "everybody", "t", "nobody"]),
        endpoint_limited=st.booleans(),
        spent=st.booleans(),
        specs=st.lists(SPEC, min_size=4, max_size=8),
    )
    def configure(
        self,
        *,
        max_waiting: int,
        lane_bound: int,
        when_full: str,
        aging_ms: int,
        limited: str,
        endpoint_limited: bool,
        spent: bool,
        specs: list[tuple[Any, ...]],
    ) -> None:
        self.max_waiting, self.lane_bounds = max_waiting, {"a": NO_BOUND, "b": lane_bound}
        self.when_full, self.aging_us = when_full, aging_ms * 1000
        self.conf: dict[str, str | int] = {
            "max_waiting": max_waiting,
            "max_waiting__b": lane_bound,
            "when_full": when_full,
            "aging_ms": aging_ms,
        }
        self.do(self.redis.flushall())
        self.limit("nobody", endpoint_limited=False)
        self.send([job_of(next(self.numbers), spec) for spec in specs if self.begins_with_suspects])
        self.crash()
        self.spent.clear()
        self.limit(limited, endpoint_limited)
        for subject in ("t:default", "t:t") if spent else ():
            self.spend_limit(subject)
        self.send([job_of(next(self.numbers), spec) for spec in specs if not self.begins_with_suspects])

    def limit(self, limited: str, endpoint_limited: bool) -> None:
        self.limited, self.endpoint_limited = LIMITED[limited], endpoint_limited
        endpoints = {ENDPOINT: LIMIT} if endpoint_limited else {}
        self.do(self.q.configure(tenants=self.limited, endpoints=endpoints, **self.conf))

    # What the model expects

    def end(self, job: ModelJob, state: str, *, by_token: int = 0) -> None:
        """`by_token` is the attempt that ended it; any other end shuts all attempts out."""
        self.move(job, state)
        job.token = by_token
        owned = (job.tenant, job.key or "")
        keeps_window = state == "done" and job.mode is DedupMode.WINDOW
        if self.owners.get(owned) == job.id and not keeps_window:
            del self.owners[owned]

    def move(self, job: ModelJob, state: str) -> None:
        job.state = state
        if not self.held(job.held_lane):
            self.released.pop(job.held_lane, None)

    def held(self, held_lane: tuple[str, str]) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state == "held" and job.held_lane == held_lane]

    def may_begin(self, tenant: str) -> bool:
        return not self.is_limited(tenant) or f"t:{tenant}" not in self.spent

    def is_limited(self, tenant: str) -> bool:
        return bool({tenant, "*"} & self.limited.keys())

    def ready_state(self, job: ModelJob) -> str:
        behind = self.is_limited(job.tenant) and self.held(job.held_lane)
        return "held" if behind or not self.may_begin(job.tenant) else "waiting"

    def count(self, lane: str | None = None) -> int:
        return sum(job.counted and lane in {None, job.lane} for job in self.jobs.values())

    def order(self, job: ModelJob) -> tuple[int, int]:
        if job.priority >= 8 or self.aging_us == 0:
            return 9 - job.priority, job.rank
        return 2, job.rank + (9 - job.priority) * self.aging_us

    def expected_enqueue(self, new: NewJob) -> tuple[str, str]:
        """What an enqueue answers, and what it does to the model."""
        if new.job_id in self.jobs:
            return "exists", new.job_id
        replaced: ModelJob | None = None
        if new.dedup_hash is not None:
            if new.job_id in self.aliases:
                joined = self.jobs[self.aliases[new.job_id]]
                return ("reused" if joined.state == "done" else "joined"), joined.id
            owner = self.jobs.get(self.owners.get((new.tenant, new.dedup_hash), ""))
            if owner is not None and new.dedup is DedupMode.REPLACE:
                replaced = owner if owner.counted else None
            elif owner is not None and (owner.state in LIVE or new.dedup is DedupMode.WINDOW):
                return self.expected_join(owner, new)
        rank = 0
        if not self.make_room(new, replaced):
            return "full", ""
        if replaced is not None:
            rank = replaced.rank if replaced.state != "delayed" and not new.delay_ms else 0
            self.end(replaced, "cancelled")
            replaced.request_is_kept = False
        self.create(new, rank)
        return "new", new.job_id

    def expected_join(self, owner: ModelJob, new: NewJob) -> tuple[str, str]:
        if owner.content != new.content_hash:
            return "conflict", owner.id
        self.aliases[new.job_id] = owner.id
        if owner.state == "done":
            return "reused", owner.id
        owner.tickets.add(new.job_id)
        owner.priority = max(owner.priority, new.priority)
        if owner.deadline is not None:
            later = new.deadline_ms
            owner.deadline = None if later is None else max(owner.deadline, later)
        due = new.delay_ms or 0
        if owner.state == "delayed" and not owner.attempts and due < owner.due:
            owner.due, owner.rank = due, 0
            owner.state = "delayed" if due else self.ready_state(owner)
        if new.dedup is DedupMode.WINDOW:
            owner.mode = DedupMode.WINDOW
        return "joined", owner.id

    def make_room(self, new: NewJob, replaced: ModelJob | None) -> bool:
        moves = replaced is not None and replaced.lane == new.lane
        lane_full = self.count(new.lane) >= self.lane_bounds[new.lane] and not moves
        if not lane_full and (replaced is not None or self.count() < self.max_waiting):
            return True
        if self.when_full != "shed":
            return False
        victims = [
            job
            for job in self.jobs.values()
            if job.counted
            and not job.attempts
            and job.priority < new.priority
            and (job.lane == new.lane or not lane_full)
        ]
        if not victims:
            return False
        self.end(min(victims, key=lambda job: (job.priority, -job.rank)), "shed")
        return True

    def create(self, new: NewJob, rank: int) -> None:
        job = ModelJob(
            new.job_id,
            new.lane,
            new.priority,
            new.tenant,
            new.dedup_hash,
            new.content_hash,
            new.dedup,
            new.deadline_ms,
            new.delay_ms or 0,
            "delayed",
            rank,
            tickets={new.job_id},
        )
        if not new.delay_ms:
            job.state = self.ready_state(job)
        self.jobs[job.id] = job
        if job.key is not None:
            self.owners[job.tenant, job.key] = job.id

    async def learn_ranks(self) -> None:
        """Ranks are the server's: the model takes them over, and checks that they are new."""
        for job in self.jobs.values():
            if job.rank or job.state not in LIVE:
                continue
            job.rank = int((await self.q.record(job.id))["q"])
            if not job.due:
                assert job.rank > self.newest_rank
                self.newest_rank = job.rank

    # Steps

    @rule(specs=st.lists(SPEC, min_size=1, max_size=3), again=st.booleans())
    def enqueue(self, specs: list[tuple[Any, ...]], again: bool) -> None:
        jobs = [job_of(next(self.numbers), spec) for spec in specs]
        self.send(jobs)
        if again:
            self.send([job for job in jobs if job in self.sent])

    def send(self, jobs: list[NewJob]) -> None:
        if not jobs:
            return
        before = dict(self.aliases)
        outcomes = self.do(self.q.queue.enqueue(jobs))
        for job, outcome in zip(jobs, outcomes, strict=True):
            kind, job_id = self.expected_enqueue(job)
            match kind:
                case "full":
                    assert isinstance(outcome, Full), (job, outcome)
                case "conflict":
                    assert outcome == Conflict(job_id)
                case _:
                    assert isinstance(outcome, Enqueued), (job, outcome, before)
                    said = (outcome.job_id, outcome.deduplicated, outcome.reuse is not None)
                    assert said == (job_id, kind in {"joined", "reused"}, kind == "reused"), (job, before)
                    self.sent.append(job)
            self.do(self.learn_ranks())

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        self.send([data.draw(st.sampled_from(self.sent))])

    @rule(
        limit=st.integers(1, 6),
        quota_a=st.integers(0, 4),
        quota_b=st.integers(0, 4),
        room=st.sampled_from([None, None, 1, 9]),
        suspects=st.booleans(),
        reserved=st.sampled_from([0, 0, 1, 3]),
        reserved_a=st.sampled_from([0, 0, 1, 3]),
    )
    def claim(
        self,
        limit: int,
        quota_a: int,
        quota_b: int,
        room: int | None,
        *,
        suspects: bool,
        reserved: int = 0,
        reserved_a: int = 0,
    ) -> None:
        self.claims += 1
        quotas = {"a": quota_a, "b": quota_b}
        claim_id = f"c{self.claims}"
        offers = {} if room is None else {"a": [Offer(ENDPOINT, room, min(reserved_a, room))]}
        lanes_reserved = {"a": reserved_a} if room is None else {}
        expected, no_permit = self.expected_claim(
            dict(quotas), limit, room, suspects=suspects, reserved=reserved, reserved_a=reserved_a
        )
        claim = self.do(
            self.q.queue.claim(
                claim_id,
                "w1",
                quotas,
                limit=limit,
                lease_ms=LEASE_MS,
                reserved=reserved,
                lanes_reserved=lanes_reserved,
                suspects=suspects,
                offers=offers,
            )
        )
        assert [job.id for job in claim.jobs] == expected
        assert claim.without_permit.keys() == no_permit
        left = [
            job.priority
            for job in self.jobs.values()
            if job.state == "waiting" and not job.suspect and job.lane not in self.paused | no_permit
        ]
        assert (claim.more, claim.more_urgent) == (bool(left), max(left, default=0) >= 8)
        for got in claim.jobs:
            assert got.endpoint == (ENDPOINT if offers and got.lane == "a" else "")
            job = self.jobs[got.id]
            assert got.token > self.newest_token
            self.newest_token = job.token = got.token
            assert (got.attempt, got.failures, got.suspect) == (job.attempts, job.failures, job.suspect)
            assert (got.priority, got.lane, got.tenant) == (job.priority, job.lane, job.tenant)
            assert (got.remaining_ms is None) == (job.deadline is None)
            self.attempts.append(got)
            self.seqs[got.token] = 0
        if claim.jobs:
            self.last_claim = (claim_id, quotas, limit, [(got.id, got.token) for got in claim.jobs])

    def expected_claim(
        self,
        quotas: dict[str, int],
        limit: int,
        room: int | None,
        *,
        suspects: bool,
        reserved: int,
        reserved_a: int,
    ) -> tuple[list[str], set[str]]:
        """The jobs that it takes, and the lanes that it leaves for want of a permit."""
        taken: list[str] = []
        no_permit: set[str] = set()
        for job in sorted((job for job in self.jobs.values() if job.state == "waiting"), key=self.order):
            if len(taken) == limit:
                break
            if job.lane in self.paused | no_permit or not quotas[job.lane] or (job.suspect and not suspects):
                continue
            bound = room is not None and job.lane == "a"
            reserved_here = reserved_a if job.lane == "a" else 0
            if job.priority < 8:
                if limit - len(taken) <= reserved or (not bound and quotas[job.lane] <= reserved_here):
                    continue
                if bound and room is not None and room <= reserved_here:
                    continue
            if bound and self.endpoint_limited and f"e:{ENDPOINT}" in self.spent:
                # an endpoint without room is not asked for a permit
                no_permit |= {"a"} if room else set()
                quotas["a"] = 0
                continue
            if bound and not room:
                continue
            if job.deadline == 0:
                self.end(job, "expired")
                continue
            if not self.may_begin(job.tenant):
                job.state = "held"
                continue
            quotas[job.lane] -= 1
            suspects = suspects and not job.suspect
            job.state, job.attempts = "running", job.attempts + 1
            self.spent.add(f"t:{job.tenant}")
            if bound and room is not None:
                self.spent.add(f"e:{ENDPOINT}")
                room -= 1
            taken.append(job.id)
        return taken, no_permit

    @rule(subject=SUBJECTS)
    def renew_limit(self, subject: str) -> None:
        self.spent.discard(subject)
        self.do(self.q.renew_limits(subject))

    @rule(subject=SUBJECTS)
    def spend_limit(self, subject: str) -> None:
        self.spent.add(subject)
        self.do(self.q.drain_limit(subject))

    @rule(limited=st.sampled_from([None, None, None, *LIMITED]), endpoint_limited=st.booleans())
    def change_limits(self, limited: str | None, endpoint_limited: bool) -> None:
        if limited is None:
            return
        self.spent.clear()
        self.do(self.q.renew_limits("t:default", "t:t", f"e:{ENDPOINT}"))
        self.limit(limited, endpoint_limited)

    @precondition(lambda self: self.last_claim)
    @rule()
    def claim_again(self) -> None:
        assert self.last_claim is not None
        claim_id, quotas, limit, got = self.last_claim
        claim = self.do(self.q.queue.claim(claim_id, "w1", quotas, limit=limit, lease_ms=LEASE_MS))
        still = [
            (job_id, token)
            for job_id, token in got
            if self.jobs[job_id].state == "running" and self.jobs[job_id].token == token
        ]
        assert [(job.id, job.token) for job in claim.jobs] == still

    def draw_attempt(self, data: st.DataObject) -> ClaimedJob:
        # mostly a current one
        current = [one for one in self.attempts if self.stands(one)]
        return data.draw(st.sampled_from(self.attempts + current * 4))

    def stands(self, attempt: ClaimedJob) -> bool:
        job = self.jobs[attempt.id]
        return job.state == "running" and job.token == attempt.token

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), n=st.integers(1, 3), again=st.booleans())
    def publish(self, data: st.DataObject, n: int, again: bool) -> None:
        attempt = self.draw_attempt(data)
        first = self.seqs[attempt.token] + 1
        for _ in range(1 + again):
            accepted = self.do(self.q.publish(attempt, *"abc"[:n], first_seq=first))
            assert accepted == self.stands(attempt)
        if self.stands(attempt):
            self.seqs[attempt.token] += n

    @precondition(lambda self: self.attempts)
    @rule(
        data=st.data(),
        state=st.sampled_from([JobState.DONE, JobState.DONE, JobState.FAILED, JobState.EXPIRED]),
        again=st.booleans(),
    )
    def finish(self, data: st.DataObject, state: JobState, again: bool) -> None:
        attempt = self.draw_attempt(data)
        job = self.jobs[attempt.id]
        ended_by_it = job.token == attempt.token and job.state not in LIVE
        seq = self.seqs[attempt.token] + 1
        for _ in range(1 + again):
            accepted = self.do(self.q.finish(attempt, state, seq=seq))
            assert accepted == (self.stands(attempt) or ended_by_it)
            if accepted and not ended_by_it:
                self.end(job, state.value, by_token=attempt.token)
                self.seqs[attempt.token] += 1
                ended_by_it = True

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), counts=st.booleans(), delay_ms=st.sampled_from([0, 0, FAR_MS]), again=st.booleans())
    def give_back(self, data: st.DataObject, counts: bool, delay_ms: int, again: bool) -> None:
        attempt = self.draw_attempt(data)
        job = self.jobs[attempt.id]
        returned_by_it = job.token == attempt.token and job.counted
        seq = self.seqs[attempt.token] + 1
        for _ in range(1 + again):
            accepted = self.do(self.q.give_back(attempt, counts=counts, delay_ms=delay_ms, seq=seq))
            assert accepted == (self.stands(attempt) or returned_by_it)
            if accepted and not returned_by_it:
                job.state, job.due = ("delayed", delay_ms) if delay_ms else (self.ready_state(job), 0)
                job.failures += counts
                self.seqs[attempt.token] = seq
                returned_by_it = True

    @precondition(lambda self: any(self.stands(attempt) for attempt in self.attempts))
    @rule(data=st.data(), overdue=st.booleans(), lost_before=st.booleans())
    def lose_lease(self, data: st.DataObject, overdue: bool, lost_before: bool) -> None:
        attempt = data.draw(st.sampled_from([one for one in self.attempts if self.stands(one)]))
        self.lose(attempt, overdue=overdue, lost_before=lost_before)

    def lose(self, attempt: ClaimedJob, *, overdue: bool, lost_before: bool) -> None:
        job = self.jobs[attempt.id]
        if lost_before and not job.lost:
            job.lost = 1
            self.do(self.redis.hset(self.q.queue.keys.of("record", job.id), "o", 1))
        if overdue and job.deadline is not None:
            job.deadline = 0
            self.do(self.redis.hset(self.q.queue.keys.of("record", job.id), "x", 1))
        self.do(self.q.lose_lease(attempt))
        returns = job.deadline != 0 and not job.suspect
        if job.deadline == 0:
            self.end(job, "expired")
        elif job.suspect:
            self.end(job, "failed")
        else:
            job.lost += 1
            job.state, job.due = self.ready_state(job), 0
        assert self.tick().reaped == 1
        if returns:
            self.learn_token(job)

    def crash(self) -> None:
        """A worker process dies for the second time with all that it can have."""
        self.claim(100, 100, 100, None, suspects=True)
        for attempt in [one for one in self.attempts if self.stands(one)]:
            self.lose(attempt, overdue=False, lost_before=True)

    def learn_token(self, job: ModelJob) -> None:
        token = int(self.do(self.q.record(job.id))["k"])
        assert token > self.newest_token
        self.newest_token = job.token = token

    def live(self, *states: str) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.state in states]

    @precondition(lambda self: self.live("delayed"))
    @rule(data=st.data())
    def come_due(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.live("delayed")))
        self.do(self.redis.hset(self.q.queue.keys.of("record", job.id), "u", 1))
        self.do(self.redis.zadd(self.q.queue.keys.fixed("delayed"), {job.id: 1}))
        job.state, job.due = self.ready_state(job), 0
        assert self.tick().promoted == 1

    @precondition(lambda self: any(job.deadline for job in self.jobs.values() if job.counted))
    @rule(data=st.data())
    def pass_deadline(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from([job for job in self.jobs.values() if job.counted and job.deadline]))
        self.do(self.redis.hset(self.q.queue.keys.of("record", job.id), "x", 1))
        self.do(self.redis.zadd(self.q.queue.keys.fixed("deadlines"), {job.id: 1}))
        job.deadline = 0

    @rule(times=st.integers(1, 3))
    def maintain(self, times: int) -> None:
        for _ in range(times):
            self.tick()

    def tick(self) -> TickReport:
        self.do(self.q.look_at_held())
        report = self.do(self.q.tick(lease_ms=LEASE_MS, mend_ms=FAR_MS))
        overdue = [job for job in self.jobs.values() if job.counted and job.deadline == 0]
        assert report.expired == len(overdue)
        for job in overdue:
            self.end(job, "expired")
        assert report.released == sum(self.release(tenant) for tenant in ("default", "t"))
        return report

    def release(self, tenant: str) -> int:
        """What a tick does with the held jobs of a tenant: of a limited one it lets one go, of others all."""
        limited = self.is_limited(tenant)
        released: list[ModelJob] = []
        while not (limited and released) and self.may_begin(tenant):
            held = [job for job in self.live("held") if job.tenant == tenant and self.goes_first(job)]
            if not held:
                break
            released.append(min(held, key=self.order))
            released[-1].state = "waiting"
        for job in released:
            if self.held(job.held_lane):
                self.released[job.held_lane] = job
            else:
                self.released.pop(job.held_lane, None)
        return len(released)

    def goes_first(self, job: ModelJob) -> bool:
        """Whether nobody who was released before it, and is to be claimed before it, still waits."""
        last = self.released.get(job.held_lane)
        if last is None or last.state != "waiting" or not self.is_limited(job.tenant):
            return True
        return self.order(job) < self.order(last)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), again=st.booleans())
    def cancel(self, data: st.DataObject, again: bool) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        ticket = data.draw(st.sampled_from([None, "stranger", job.id, *sorted(job.tickets)]))
        for _ in range(1 + again):
            reply = self.do(self.q.queue.cancel(job.id, ticket))
            if job.state not in LIVE:
                assert reply == ("cancelled" if self.reason(job) == "cancelled" else "ended")
                continue
            job.tickets.discard(ticket or "")
            if ticket is not None and (job.tickets or ticket == "stranger"):
                assert reply == "ticket_returned"
                continue
            assert reply == "cancelled"
            self.end(job, "cancelled")

    def reason(self, job: ModelJob) -> str | None:
        record = self.do(self.q.record(job.id))
        return record.get("r") if record["s"] == "cancelled" else None

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), priority=st.integers(0, 9))
    def set_priority(self, data: st.DataObject, priority: int) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        assert self.do(self.q.queue.set_priority(job.id, priority)) == job.state
        if job.state in LIVE:
            job.priority = priority

    @rule(lane=st.sampled_from(LANES))
    def pause(self, lane: str) -> None:
        assert self.do(self.q.queue.pause(lane)) == (lane not in self.paused)
        self.paused.add(lane)

    @rule(lane=st.sampled_from(LANES))
    def resume(self, lane: str) -> None:
        assert self.do(self.q.queue.resume(lane)) == (lane in self.paused)
        self.paused.discard(lane)

    @rule(lane=st.sampled_from(LANES), priority=st.none() | st.integers(0, 9), chunk=st.integers(1, 3))
    def purge(self, lane: str, priority: int | None, chunk: int) -> None:
        self.do(self.q.look_at_held())
        expected = sorted(
            (
                job
                for job in self.live("waiting", "held")
                if job.lane == lane and priority in {None, job.priority}
            ),
            key=lambda job: (
                job.priority,
                job.tenant if job.state == "held" else "!" * job.suspect,
                -job.rank,
            ),
        )[:chunk]
        assert self.do(self.q.queue.purge(lane, priority, chunk=chunk)) == len(expected)
        for job in expected:
            self.end(job, "cancelled")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), again=st.booleans())
    def requeue(self, data: st.DataObject, again: bool) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        ended = job.state not in {*LIVE, "done"}
        comes_to = self.ready_state(job) if ended else job.state
        if ended and not job.request_is_kept:
            comes_to, ended = "payload_lost", False
        for _ in range(1 + again):
            assert self.do(self.q.queue.requeue(job.id)) == comes_to
        if not ended:
            return
        job.state, job.rank, job.deadline, job.due, job.failures = comes_to, 0, None, 0, 0
        job.lost = 0
        job.tickets = {job.id}
        if job.key is not None:
            self.owners.setdefault((job.tenant, job.key), job.id)
        self.learn_token(job)
        self.do(self.learn_ranks())

    # What holds after every step

    @invariant()
    def everything_fits_together(self) -> None:
        if not hasattr(self, "max_waiting"):
            return
        self.compare(self.do(audit(self.q.queue)).values)

    def compare(self, found: dict[str, Any]) -> None:
        records = {name[2:]: text(value) for name, value in found.items() if name.startswith("j:")}
        assert records.keys() == self.jobs.keys()
        for job in self.jobs.values():
            record = records[job.id]
            assert (record["s"], int(record["p"])) == (job.state, job.priority), job
            assert int(record.get("n", 0)) == job.attempts
            if job.state in LIVE:
                assert int(record["q"]) == job.rank, job
                assert (int(record.get("f", 0)), int(record.get("o", 0))) == (job.failures, job.lost)
                assert ("x" in record) == (job.deadline is not None)
        owners = {name: value.decode() for name, value in found.items() if name.startswith("d:")}
        key = self.q.queue.keys
        prefix = len(key.prefix)
        assert owners == {
            key.dedup(tenant, dedup_hash)[prefix:]: owner
            for (tenant, dedup_hash), owner in self.owners.items()
        }
        self.newest_token = max(
            self.newest_token, int(text(found["meta"]).get("token", 0)) if "meta" in found else 0
        )
        assert {name: job.decode() for name, job in found.get("released", {}).items()} == {
            f"{lane} {tenant}".encode(): job.id for (lane, tenant), job in self.released.items()
        }
        ranks = [job.rank for job in self.live(*LIVE)]
        assert len(set(ranks)) == len(ranks)

    @precondition(lambda self: self.live("waiting", "held"))
    @rule()
    def ask_positions(self) -> None:
        lanes = [
            [job for job in self.live("waiting") if job.lane == lane and job.suspect == suspect]
            for lane in LANES
            for suspect in (False, True)
        ]
        lanes += [self.held((lane, tenant)) for lane in LANES for tenant in ("default", "t")]
        for lane in lanes:
            for at, job in enumerate(sorted(lane, key=self.order)):
                assert self.do(self.q.queue.position(job.id)) == at

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def read_events(self, data: st.DataObject) -> None:
        job = self.jobs[data.draw(st.sampled_from(sorted(self.jobs)))]
        replay = self.do(self.q.replay(job.id))
        events = [orjson.loads(raw) for raw in replay.events]
        assert replay.state == job.state
        cursors = [tuple(map(int, event["id"].split("-"))) for event in events]
        assert cursors == sorted(set(cursors))
        assert replay.last == cursors[-1]
        for (token, seq), (next_token, next_seq) in itertools.pairwise(cursors):
            assert next_seq == (seq + 1 if next_token == token else 1)
        assert [event["type"] for event in events].count(job.state) == (job.state not in LIVE)


class LimitsModel(QueueModel):
    """The same with fewer kinds of steps: more of them meet jobs that are held."""

    cancel = pause = resume = purge = requeue = None  # type: ignore[assignment]  # a rule taken away
    publish = send_again = claim_again = read_events = change_limits = None  # type: ignore[assignment]  # a rule taken away


class SuspectsModel(QueueModel):
    """The same with fewer kinds of steps, and all jobs suspects at first."""

    publish = send_again = claim_again = read_events = change_limits = None  # type: ignore[assignment]  # a rule taken away
    pause = resume = None  # type: ignore[assignment]  # a rule taken away
    begins_with_suspects = True


def _run(machine: type[QueueModel], *, examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=bool(os.environ.get("CI")),  # elsewhere each run looks somewhere else
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_scripts_do_what_the_model_does() -> None:
    class OnFakeredis(QueueModel):
        connect = staticmethod(fakeredis.FakeAsyncRedis)
        script_flags = False

    _run(OnFakeredis, examples=30)


def test_the_scripts_hold_and_release_as_the_model_does() -> None:
    class OnFakeredis(LimitsModel):
        connect = staticmethod(fakeredis.FakeAsyncRedis)
        script_flags = False

    _run(OnFakeredis, examples=30)


def test_the_scripts_keep_suspects_apart_as_the_model_does() -> None:
    class OnFakeredis(SuspectsModel):
        connect = staticmethod(fakeredis.FakeAsyncRedis)
        script_flags = False

    _run(OnFakeredis, examples=40)


def test_the_scripts_do_what_the_model_does_on_a_real_server(valkey_url: str) -> None:
    class OnValkey(QueueModel):
        connect = staticmethod(lambda: Redis.from_url(valkey_url))
        script_flags = True

    _run(OnValkey, examples=20)
