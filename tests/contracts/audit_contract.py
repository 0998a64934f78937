"""What `admin audit` finds and mends, on whatever server the queue is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import pytest

from scheduler import admin
from scheduler.admin import PROBLEMS
from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from tests.contracts.queue_contract import OnQueue
from tests.contracts.queue_driver import LANE, QueueDriver, audit, new_job

Breaking: TypeAlias = Callable[[QueueDriver], Awaitable[str]]

PROBLEM_OF: dict[str, Breaking] = {}


def breaks(kind: str) -> Callable[[Breaking], Breaking]:
    """A way to break a queue, and what the audit is to call it."""

    def note(breaking: Breaking) -> Breaking:
        PROBLEM_OF[f"{kind} {breaking.__name__}"] = breaking
        return breaking

    return note


@breaks("no_home")
async def waits_nowhere(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.zrem(q.queue.keys.level(LANE, 5), "a")
    await q.redis.hset(q.queue.keys.fixed("meta"), f"b:{LANE}", 0)
    await recount(q)
    return "a"


@breaks("no_home")
async def is_held_nowhere(q: QueueDriver) -> str:
    await q.configure(tenants={"acme": RateLimit(requests=1)})
    await q.drain_limit("t:acme")
    await q.enqueue(new_job("a", tenant="acme"), new_job("b", tenant="acme"))
    await q.redis.zrem(q.queue.keys.level(f"{LANE} acme", 5), "a")
    await recount(q)
    return "a"


@breaks("no_home")
async def is_due_never(q: QueueDriver) -> str:
    await q.enqueue(new_job("a", delay_ms=60_000))
    await q.redis.zrem(q.queue.keys.fixed("delayed"), "a")
    await recount(q)
    return "a"


@breaks("no_home")
async def runs_without_a_lease(q: QueueDriver) -> str:
    await q.running("a")
    await q.redis.zrem(q.queue.keys.fixed("leases"), "a")
    return "a"


@breaks("stray")
async def lease_without_a_job(q: QueueDriver) -> str:
    await q.redis.zadd(q.queue.keys.fixed("leases"), {"nobody": 1})
    return f"{q.queue.keys.fixed('leases')} nobody"


@breaks("stray")
async def waits_and_is_done(q: QueueDriver) -> str:
    await q.finish(await q.running("a"))
    await q.redis.zadd(q.queue.keys.level(LANE, 5), {"a": 1})
    await q.redis.hset(q.queue.keys.fixed("meta"), f"b:{LANE}", 1 << 5)
    await recount(q)
    return f"{q.queue.keys.level(LANE, 5)} a"


@breaks("stray")
async def waits_in_another_level_too(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.zadd(q.queue.keys.level("other", 3), {"a": 1})
    await q.redis.sadd(q.queue.keys.fixed("lanes"), "other")
    await recount(q)
    return f"{q.queue.keys.level('other', 3)} a"


@breaks("stray")
async def deadline_of_nobody(q: QueueDriver) -> str:
    far = await q.now_ms() + 60_000
    await q.redis.zadd(q.queue.keys.fixed("deadlines"), {"nobody": far})
    return f"{q.queue.keys.fixed('deadlines')} nobody"


@breaks("stray")
async def dead_letter_of_nobody(q: QueueDriver) -> str:
    far = await q.now_ms() + 60_000
    await q.redis.zadd(q.queue.keys.fixed("dead"), {"nobody": far})
    return f"{q.queue.keys.fixed('dead')} nobody"


@breaks("no_payload")
async def lost_its_request(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.delete(q.queue.keys.of("payload", "a"))
    return "a"


@breaks("no_deadline")
async def deadline_nobody_watches(q: QueueDriver) -> str:
    await q.enqueue(new_job("a", deadline_ms=60_000))
    await q.redis.zrem(q.queue.keys.fixed("deadlines"), "a")
    return "a"


@breaks("expiring")
async def live_record_that_would_go(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.pexpire(q.queue.keys.of("record", "a"), 60_000)
    return q.queue.keys.of("record", "a")


@breaks("expiring")
async def live_request_that_would_go(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.pexpire(q.queue.keys.of("payload", "a"), 60_000)
    return q.queue.keys.of("payload", "a")


@breaks("no_expiry")
async def stream_that_stays(q: QueueDriver) -> str:
    job = await q.running("a")
    await q.publish(job, "x")
    await q.finish(job, seq=2)
    await q.redis.persist(q.queue.keys.of("stream", "a"))
    return q.queue.keys.of("stream", "a")


@breaks("no_expiry")
async def alias_that_stays(q: QueueDriver) -> str:
    await q.redis.set(q.queue.keys.of("alias", "x"), "a")
    return q.queue.keys.of("alias", "x")


@breaks("orphan")
async def stream_without_a_job(q: QueueDriver) -> str:
    await q.redis.rpush(q.queue.keys.of("stream", "gone"), "{}")
    return q.queue.keys.of("stream", "gone")


@breaks("unlisted")
async def ended_and_on_no_list(q: QueueDriver) -> str:
    await q.finish(await q.running("a"), JobState.FAILED)
    await q.redis.zrem(q.queue.keys.fixed("dead"), "a")
    return "a"


@breaks("dedup_without_owner")
async def dedup_key_of_nobody(q: QueueDriver) -> str:
    await q.redis.set(q.queue.keys.dedup("acme", "K"), "gone")
    return q.queue.keys.dedup("acme", "K")


@breaks("dedup_without_owner")
async def dedup_key_of_a_done_job(q: QueueDriver) -> str:
    await q.finish(await q.running("a", key="K"))
    await q.redis.set(q.queue.keys.dedup("default", "K"), "a")
    return q.queue.keys.dedup("default", "K")


@breaks("dedup_without_owner")
async def dedup_key_of_another_key(q: QueueDriver) -> str:
    await q.enqueue(new_job("a", key="K"))
    await q.redis.set(q.queue.keys.dedup("default", "L"), "a")
    return q.queue.keys.dedup("default", "L")


@breaks("damaged")
async def rank_that_is_no_number(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.hset(q.queue.keys.of("record", "a"), "q", "soon")
    return "a"


@breaks("damaged")
async def record_of_another_type(q: QueueDriver) -> str:
    await q.redis.set(q.queue.keys.of("record", "a"), "what?")
    return "a"


@breaks("count")
async def bound_counts_wrongly(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"), new_job("b", delay_ms=60_000))
    await q.redis.hset(q.queue.keys.fixed("meta"), f"n:{LANE}", 7)
    return f"n:{LANE}"


@breaks("bitmap")
async def levels_in_use_are_not_known(q: QueueDriver) -> str:
    await q.enqueue(new_job("a"))
    await q.redis.hset(q.queue.keys.fixed("meta"), f"b:{LANE}", 0)
    return LANE


async def recount(q: QueueDriver) -> None:
    """Let counts be right, so that there is one thing wrong and not two."""
    await q.tick(mend_ms=0)


class AuditContract(OnQueue):
    """The behaviour of `scheduler.admin.audit`."""

    @pytest.mark.parametrize("case", [case for case in PROBLEM_OF if not case.startswith("damaged")])
    async def test_a_problem_is_found_left_alone_and_mended_when_asked(
        self, q: QueueDriver, case: str
    ) -> None:
        await self._found_and_mended(q, case)

    @pytest.mark.parametrize("case", [case for case in PROBLEM_OF if case.startswith("damaged")])
    @pytest.mark.usefixtures("untidy")
    async def test_a_damaged_record_is_found_and_put_aside_when_asked(
        self, q: QueueDriver, case: str
    ) -> None:
        await self._found_and_mended(q, case)
        assert await q.redis.hkeys(q.queue.keys.fixed("garbage")) == [b"a"]

    async def test_a_dead_letter_that_is_mended_keeps_its_own_time(self, q: QueueDriver) -> None:
        await q.configure(dead_ttl_ms=100_000_000, result_ttl_ms=1000)
        await q.finish(await q.running("a"), JobState.FAILED)
        ended_ms = await q.now_ms() - 40_000_000
        record, dead = q.queue.keys.of("record", "a"), q.queue.keys.fixed("dead")
        await q.redis.hset(record, "e", ended_ms)
        await q.redis.persist(record)
        await q.redis.persist(q.queue.keys.of("payload", "a"))
        await q.redis.zrem(dead, "a")
        assert (await admin.audit(q.queue, repair=True)).counts == {"no_expiry": 2, "unlisted": 1}
        for kind in ("record", "payload"):
            left_ms = await q.redis.pttl(q.queue.keys.of(kind, "a"))
            assert 59_000_000 < left_ms <= 60_000_000, kind
        assert 0 <= await q.redis.zscore(dead, "a") - (ended_ms + 100_000_000) < 1_000_000

    async def _found_and_mended(self, q: QueueDriver, case: str) -> None:
        kind, _, _ = case.partition(" ")
        where = await PROBLEM_OF[case](q)
        for _ in range(2):
            report = await admin.audit(q.queue)
            assert [(one.kind, one.where) for one in report.problems] == [(kind, where)], report.problems
        mended = await admin.audit(q.queue, repair=True)
        assert (kind, where) in [(one.kind, one.where) for one in mended.problems]
        assert (await admin.audit(q.queue)).problems == []

    @pytest.mark.parametrize("case", [case for case in PROBLEM_OF if case.startswith("no_home")])
    async def test_a_job_without_a_home_runs_after_all(self, q: QueueDriver, case: str) -> None:
        await PROBLEM_OF[case](q)
        await admin.audit(q.queue, repair=True)
        await q.configure()
        await q.redis.zadd(q.queue.keys.fixed("delayed"), {"a": 1}, xx=True)
        await q.redis.zadd(q.queue.keys.fixed("leases"), {"a": 1}, xx=True)
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"reap_after": 0, "tick": await q.now_ms()})
        await q.look_at_held()
        await q.tick()
        assert "a" in await q.claimed_ids()

    async def test_a_delayed_job_without_a_home_comes_at_its_own_time(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", delay_ms=60_000))
        delayed = q.queue.keys.fixed("delayed")
        due_ms = await q.redis.zscore(delayed, "a")
        await q.redis.zrem(delayed, "a")
        await admin.audit(q.queue, repair=True)
        assert await q.redis.zscore(delayed, "a") == due_ms

    async def test_who_runs_a_job_whose_lease_was_gone_keeps_it(self, q: QueueDriver) -> None:
        await runs_without_a_lease(q)
        job = (await q.record("a"))["k"]
        await admin.audit(q.queue, repair=True)
        held = [("a", int(job))]
        assert await q.queue.renew(q.worker, held, lease_ms=60_000, about=b"{}") != ["lost"]

    async def test_a_job_without_its_request_fails_where_its_caller_sees_it(self, q: QueueDriver) -> None:
        await lost_its_request(q)
        await admin.audit(q.queue, repair=True)
        assert (await q.last_event("a"))["error"]["code"] == "payload_lost"

    async def test_all_kinds_of_problems_are_explained(self) -> None:
        assert {case.split()[0] for case in PROBLEM_OF} | {"unknown_key"} == PROBLEMS.keys()

    async def test_a_key_of_no_known_kind_is_told_and_left(self, q: QueueDriver) -> None:
        await q.redis.set(f"{q.queue.keys.prefix}what:ever", "1")
        for repair in (True, False):
            report = await admin.audit(q.queue, repair=repair)
            assert [(one.kind, one.where) for one in report.problems] == [
                ("unknown_key", f"{q.queue.keys.prefix}what:ever")
            ]
        await q.redis.delete(f"{q.queue.keys.prefix}what:ever")

    async def test_jobs_of_every_fate_are_no_problem(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("waits", key="K"), new_job("late", delay_ms=60_000, deadline_ms=90_000))
        await q.finish(await q.running("window", 9, key="W", dedup=DedupMode.WINDOW))
        await q.finish(await q.running("failed", 9), JobState.FAILED)
        await q.publish(await q.running("runs", 9), "x")
        await q.queue.renew(q.worker, [], lease_ms=60_000, about=b"{}")
        await q.queue.share_endpoints(q.worker, ["chat.0"], holds_ms=1000)
        report = await admin.audit(q.queue)
        assert (report.jobs, report.problems) == (5, [])
        assert report.keys > 15

    async def test_many_jobs_are_looked_at_in_many_steps(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{i}") for i in range(1500)])
        for i in range(0, 1500, 3):
            await q.redis.zrem(q.queue.keys.level(LANE, 5), f"j{i}")
        await recount(q)
        report = await admin.audit(q.queue, repair=True)
        assert report.counts["no_home"] == 500
        assert not (await admin.audit(q.queue)).problems
        assert await q.claimed_ids()
        await audit(q.queue)
