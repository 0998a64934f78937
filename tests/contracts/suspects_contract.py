"""What is done with jobs that may have killed their worker processes, on whatever server the queue is."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from scheduler.model import JobState
from scheduler.queue.inspection.jobs import list_jobs
from scheduler.queue.inspection.status import read_status
from scheduler.queue.limits import RateLimit
from scheduler.queue.records import ClaimedJob
from tests.contracts.queue_contract import OnQueue
from tests.contracts.queue_driver import LANE, LEASE_MS, QueueDriver, new_job


async def crash(q: QueueDriver, *jobs: ClaimedJob) -> None:
    """Lose the worker process that runs these jobs."""
    for job in jobs:
        await q.lose_lease(job)
    while (await q.tick()).reaped:
        pass


async def make_suspects(q: QueueDriver, *names: str, **fields: Any) -> None:
    """Let jobs lose their worker process twice, so that they wait."""
    await q.enqueue(*[new_job(name, **fields) for name in names])
    for _ in range(2):
        await crash(q, *(await q.claim_all()).jobs)
    assert {await q.state(name) for name in names} == {"waiting"}


class SuspectsContract(OnQueue):
    """The behaviour of suspects in a `PromptQueue`."""

    @pytest.mark.parametrize("losses", [0, 1])
    async def test_a_job_is_no_suspect_before_it_has_lost_its_process_twice(
        self, q: QueueDriver, losses: int
    ) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        for _ in range(losses):
            await crash(q, *(await q.claim_all()).jobs)
        jobs = (await q.claim_all()).jobs
        assert [(job.id, job.suspect) for job in jobs] == [("a", False), ("b", False)]

    async def test_a_claim_takes_one_suspect_beside_all_others(self, q: QueueDriver) -> None:
        await make_suspects(q, "s1", "s2", "s3")
        await q.enqueue(new_job("a"), new_job("b"))
        claim = await q.claim_all()
        assert [(job.id, job.suspect) for job in claim.jobs] == [("s1", True), ("a", False), ("b", False)]
        assert [(job.id, job.suspect) for job in (await q.claim_all()).jobs] == [("s2", True)]

    async def test_one_suspect_of_all_lanes(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("x", lane="x"), new_job("y", lane="y"))
        lanes = {"x": 5, "y": 5}
        for _ in range(2):
            await crash(q, *(await q.claim_all(lanes=lanes)).jobs)
        assert await q.claimed_ids(lanes=lanes) == ["x"]

    @pytest.mark.parametrize("priority", [0, 1, 9])
    async def test_a_suspect_of_any_priority_runs_where_nothing_else_waits(
        self, q: QueueDriver, priority: int
    ) -> None:
        await make_suspects(q, "s", priority=priority)
        assert await q.claimed_ids() == ["s"]

    async def test_who_runs_a_suspect_gets_no_other(self, q: QueueDriver) -> None:
        await make_suspects(q, "s", priority=9)
        await q.enqueue(new_job("a"))
        assert await q.claimed_ids(suspects=False) == ["a"]
        assert not (await q.claim_all(suspects=False)).more, "what it may not have wakes nobody"
        assert await q.claimed_ids() == ["s"]

    async def test_an_urgent_suspect_that_is_left_wakes_nobody(self, q: QueueDriver) -> None:
        await make_suspects(q, "s", priority=9)
        await q.enqueue(new_job("a"))
        urgent = q.queue.keys.of("urgent", LANE)
        await q.redis.delete(urgent)
        assert not (await q.claim_all(suspects=False, lanes_reserved={LANE: 1024})).jobs
        assert await q.redis.llen(urgent) == 0, "who listens to it alone would come back at once, for ever"

    async def test_a_suspect_has_its_own_place_among_the_others(self, q: QueueDriver) -> None:
        await make_suspects(q, "s", priority=6)
        await q.enqueue(new_job("urgent", 9), new_job("five"), new_job("six", 6))
        assert await q.claimed_ids() == ["urgent", "s", "six", "five"]

    async def test_the_death_of_the_only_suspect_of_a_process_is_its_own(self, q: QueueDriver) -> None:
        await make_suspects(q, "poison", key="K")
        await q.enqueue(new_job("innocent"))
        jobs = (await q.claim_all()).jobs
        await crash(q, *jobs)
        assert await q.event_types("poison") == ["queued", "retrying", "retrying", "failed"]
        error = (await q.last_event("poison"))["error"]
        assert error["code"] == "poison"
        assert "3 times" in error["message"]
        record = await q.record("poison")
        assert (record["s"], record["r"], record["o"]) == ("failed", "poison", "3")
        assert await q.redis.zrange(q.queue.keys.fixed("dead"), 0, -1) == [b"poison"]
        assert await q.owner("K") is None
        meta = await q.meta()
        assert (meta["t:quarantined"], meta["t:lost"], meta["t:failed"]) == ("1", "4", "1")
        assert not await q.finish(jobs[0]), "whoever ran it is shut out"
        assert await q.claimed_ids() == ["innocent"]

    async def test_poison_among_many_ends_alone(self, q: QueueDriver) -> None:
        names = [f"j{i:03}" for i in range(200)]
        await q.enqueue(*[new_job(name) for name in names])
        deaths = 0
        finished: list[str] = []
        running: tuple[ClaimedJob, ...] = ()
        while len(finished) < 199:
            running = (await q.claim_all()).jobs
            if "j077" in {job.id for job in running}:
                await crash(q, *running)
                deaths += 1
                continue
            for job in running:
                assert await q.finish(job)
                finished.append(job.id)
        assert await q.state("j077") == "failed"
        assert (await q.record("j077"))["r"] == "poison"
        assert deaths == 3
        assert sorted(finished) == [name for name in names if name != "j077"]

    async def test_leases_that_ended_for_want_of_redis_make_no_suspects(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("innocent"))
        for _ in range(4):
            job = await q.claim()
            assert not job.suspect
            await q.tick(away_ms=LEASE_MS)
            await crash(q, job)
        assert await q.state("innocent") == "waiting"
        assert "o" not in await q.record("innocent")
        assert (await q.meta())["t:lost"] == "4", "it was lost, if by nobody's fault"

    async def test_a_suspect_that_is_lost_for_want_of_redis_is_not_quarantined(self, q: QueueDriver) -> None:
        await make_suspects(q, "s")
        job = await q.claim()
        await q.tick("w2", away_ms=LEASE_MS)  # it does not lead, and has seen it
        await crash(q, job)
        assert await q.state("s") == "waiting"
        assert (await q.claim()).suspect

    async def test_a_job_whose_process_dies_after_an_outage_is_not_excused(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        job = await q.claim()
        await q.tick(away_ms=1000, lease_ms=1000)
        await q.pass_ms(2)
        await q.queue.renew(q.worker, [(job.id, job.token)], lease_ms=1000, about=b"{}")
        while (await q.tick(lease_ms=1000)).reaped == 0:
            await asyncio.sleep(0.02)
        assert (await q.record("a"))["o"] == "1"

    async def test_to_be_away_for_a_moment_excuses_nobody(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        job = await q.claim()
        await q.tick(away_ms=LEASE_MS // 4)
        await crash(q, job)
        assert (await q.record("a"))["o"] == "1"

    async def test_a_requeued_job_is_no_suspect_any_more(self, q: QueueDriver) -> None:
        await make_suspects(q, "a")
        await crash(q, await q.claim())
        assert await q.queue.requeue("a") == "waiting"
        again = await q.claim()
        assert (again.id, again.suspect) == ("a", False)

    async def test_a_suspect_that_is_given_back_stays_one(self, q: QueueDriver) -> None:
        await make_suspects(q, "a", "b")
        assert await q.give_back(await q.claim())
        assert await q.claimed_ids() == ["a"]
        job = (await q.claim_all()).jobs[0]
        assert await q.give_back(job, delay_ms=20)
        await q.pass_ms(20)
        assert (await q.tick()).promoted == 1
        assert (await q.claim_all(suspects=False)).jobs == ()
        assert (await q.claim()).suspect

    async def test_a_suspect_that_finishes_is_done(self, q: QueueDriver) -> None:
        await make_suspects(q, "a")
        assert await q.finish(await q.claim())
        assert await q.state("a") == "done"

    async def test_a_suspect_past_its_deadline_expires_and_is_no_poison(self, q: QueueDriver) -> None:
        await make_suspects(q, "a", deadline_ms=60_000)
        job = await q.claim()
        await q.redis.hset(q.queue.keys.of("record", "a"), "x", 1)
        await crash(q, job)
        assert await q.state("a") == "expired"
        assert "t:quarantined" not in await q.meta()

    async def test_a_suspect_can_be_cancelled_purged_and_given_another_priority(self, q: QueueDriver) -> None:
        await make_suspects(q, "a", "b", "c")
        assert await q.queue.set_priority("c", 9) is JobState.WAITING
        assert await q.queue.cancel("a") == "cancelled"
        assert await q.claimed_ids() == ["c"]
        await q.enqueue(new_job("d"))
        assert await q.queue.purge(LANE) == 2
        assert [await q.state(name) for name in "bd"] == ["cancelled", "cancelled"]

    async def test_a_joiner_lifts_a_suspect(self, q: QueueDriver) -> None:
        await make_suspects(q, "c", key="K", content="one")
        await q.enqueue(new_job("joins", 9, key="K", content="one"))
        assert (await q.record("c"))["p"] == "9"
        assert (await q.claim()).priority == 9

    async def test_the_position_of_a_suspect_counts_suspects(self, q: QueueDriver) -> None:
        await make_suspects(q, "s1", "s2")
        await q.enqueue(new_job("a"))
        assert [await q.queue.position(name) for name in ("s1", "s2", "a")] == [0, 1, 0]

    async def test_a_suspect_that_a_limit_holds_comes_back_as_one(self, q: QueueDriver) -> None:
        await make_suspects(q, "a", "b", tenant="acme")
        await q.configure(tenants={"acme": RateLimit(requests=1)})
        await q.drain_limit("t:acme")
        assert (await q.claim_all()).jobs == ()
        held = [name for name in "ab" if await q.state(name) == "held"]
        assert held
        await q.renew_limits("t:acme")
        await q.configure()
        assert (await q.tick()).released == len(held)
        assert await q.claimed_ids() == ["a"]
        assert await q.claimed_ids() == ["b"]

    async def test_maintenance_mends_and_wakes_for_suspects_too(self, q: QueueDriver) -> None:
        await make_suspects(q, "a", "b")
        place = q.queue.keys.suspects_lane(LANE)
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"n": 7, f"n:{LANE}": 7})
        await q.redis.hset(q.queue.keys.fixed("beside"), place, 0)
        await q.redis.delete(q.queue.keys.of("wake", LANE))
        await q.tick(mend_ms=0)
        assert await q.waiting() == await q.waiting(LANE) == 2
        assert await q.redis.llen(q.queue.keys.of("wake", LANE)) == 1
        assert await q.claimed_ids() == ["a"]

    async def test_they_are_counted_and_listed_among_those_that_wait(self, q: QueueDriver) -> None:
        await make_suspects(q, "s1", "s2", priority=6)
        await q.enqueue(new_job("a"))
        (lane,) = [lane for lane in (await read_status(q.queue)).lanes if lane.name == LANE]
        assert (lane.waiting, lane.suspects, lane.by_priority) == (3, 2, {6: 2, 5: 1})
        listed = await list_jobs(q.queue, state=JobState.WAITING)
        assert [job.id for job in listed] == ["s1", "s2", "a"]

    async def test_the_history_tells_each_loss(self, q: QueueDriver) -> None:
        await make_suspects(q, "a")
        await crash(q, await q.claim())
        history = orjson.dumps(await q.history("a"))
        assert history.count(b"lease_lost") == 2
