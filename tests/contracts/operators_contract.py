"""What operators do to single jobs, and to the delayed ones of a lane, on whatever server the queue is."""

from __future__ import annotations

import pytest

from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.records import Enqueued
from tests.contracts.queue_contract import OnQueue, reach
from tests.contracts.queue_driver import LANE, QueueDriver, new_job

HOUR_MS = 3_600_000
LIVE = [JobState.WAITING, JobState.DELAYED, JobState.RUNNING]
ENDS = [state for state in JobState if state.ended]


class OperatorsContract(OnQueue):
    """Rescheduling, deleting, and purging delayed jobs of a `PromptQueue`."""

    async def test_a_delayed_job_can_run_now(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("later", delay_ms=HOUR_MS), new_job("a"))
        assert await q.queue.reschedule("later", 0) is JobState.WAITING
        assert await q.claimed_ids() == ["a", "later"], "it ages from when it is due"

    async def test_a_job_that_is_told_to_run_now_wakes_somebody(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("later", delay_ms=HOUR_MS))
        assert not await q.redis.exists(q.queue.keys.of("wake", LANE))
        await q.queue.reschedule("later", 0)
        assert await q.redis.exists(q.queue.keys.of("wake", LANE))

    @pytest.mark.parametrize("delay_ms", [HOUR_MS, 3 * HOUR_MS], ids=["sooner", "later"])
    async def test_a_delayed_job_can_become_due_at_another_time(self, q: QueueDriver, delay_ms: int) -> None:
        await q.enqueue(new_job("a", delay_ms=2 * HOUR_MS, deadline_ms=4 * HOUR_MS))
        before = await q.now_ms()
        assert await q.queue.reschedule("a", delay_ms) is JobState.DELAYED
        record = await q.record("a")
        assert before + delay_ms <= int(record["u"]) <= await q.now_ms() + delay_ms
        assert int(record["q"]) // 1000 >= before + delay_ms
        assert (await q.history("a"))[-1][1] == "rescheduled"

    async def test_a_retry_that_is_told_to_run_now_keeps_its_place(self, q: QueueDriver) -> None:
        await q.give_back(await q.running("a"), delay_ms=HOUR_MS)
        await q.enqueue(new_job("b"))
        assert await q.queue.reschedule("a", 0) is JobState.WAITING
        assert await q.claimed_ids() == ["a", "b"]

    async def test_a_job_over_its_tenants_limit_is_held_when_it_is_told_to_run_now(
        self, q: QueueDriver
    ) -> None:
        await q.configure(tenants={"acme": RateLimit(1, 0)})
        await q.drain_limit("t:acme")
        await q.enqueue(new_job("a", tenant="acme", delay_ms=HOUR_MS))
        assert await q.queue.reschedule("a", 0) is JobState.HELD

    @pytest.mark.parametrize(
        "state", [state for state in JobState if state not in {JobState.DELAYED, JobState.HELD}]
    )
    async def test_what_is_not_delayed_stays_as_it_is(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state)
        before = await q.record("a")
        assert await q.queue.reschedule("a", HOUR_MS) is state
        assert await q.record("a") == before
        assert await q.queue.reschedule("nobody", 0) is None

    @pytest.mark.parametrize("state", ENDS)
    async def test_an_ended_job_can_be_deleted_with_all_of_its_text(
        self, q: QueueDriver, state: JobState
    ) -> None:
        await reach(q, state, key="K", dedup=DedupMode.WINDOW)
        assert await q.queue.delete("a") == "deleted"
        left = [name for name in await q.dump() if name.endswith(":a") or name.startswith("d:")]
        assert left == []
        assert await q.queue.replay("a") is None
        assert await q.queue.delete("a") == "not_found"
        assert (await q.meta())["t:deleted"] == "1"

    async def test_a_deleted_answer_serves_no_more(self, q: QueueDriver) -> None:
        await reach(q, JobState.DONE, key="K", dedup=DedupMode.WINDOW)
        await q.queue.delete("a")
        assert await q.enqueue(new_job("b", key="K", dedup=DedupMode.WINDOW)) == [Enqueued("b")]

    async def test_deleting_leaves_a_key_to_the_job_that_has_it_now(self, q: QueueDriver) -> None:
        await reach(q, JobState.FAILED, key="K")
        await q.enqueue(new_job("b", key="K"))
        assert await q.queue.delete("a") == "deleted"
        assert await q.owner("K") == "b"

    @pytest.mark.parametrize("state", LIVE)
    async def test_a_job_that_has_not_ended_is_not_deleted(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state)
        assert await q.queue.delete("a") == state.value
        assert await q.state("a") == state.value

    async def test_a_late_end_does_not_bring_a_deleted_job_back(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.finish(job, JobState.FAILED)
        await q.queue.delete("a")
        assert not await q.finish(job)
        assert await q.state("a") is None

    async def test_delayed_jobs_of_a_lane_are_purged_in_chunks(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"a{i}", i, delay_ms=HOUR_MS + i) for i in range(5)])
        await q.enqueue(new_job("other", lane="other", delay_ms=HOUR_MS - 1000), new_job("waits"))
        start, purged = await q.queue.purge_delayed(LANE, chunk=3)
        assert (start, purged) == (1, 2), "one of the first three is of another lane"
        assert start is not None
        assert await q.queue.purge_delayed(LANE, start=start, chunk=3) == (1, 3)
        assert await q.queue.purge_delayed(LANE, start=1, chunk=3) == (None, 0)
        assert {await q.state(f"a{i}") for i in range(5)} == {"cancelled"}
        assert [await q.state(name) for name in ("other", "waits")] == ["delayed", "waiting"]
        assert await q.waiting() == 2

    async def test_purging_delayed_jobs_can_be_limited_to_a_priority(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"p{p}", p, delay_ms=HOUR_MS) for p in range(10)])
        assert await q.queue.purge_delayed(LANE, 4) == (None, 1)
        assert await q.state("p4") == "cancelled"
