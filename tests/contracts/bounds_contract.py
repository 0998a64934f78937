"""The exact bounds of what a queue accepts, searches and keeps."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from redis.exceptions import ResponseError

from scheduler import admin
from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.records import Enqueued, Full
from tests.contracts.limits_contract import acme_job
from tests.contracts.queue_contract import HOUR_MS, OnQueue, fail, reach
from tests.contracts.queue_driver import LANE, QueueDriver, new_job
from tests.contracts.suspects_contract import make_suspects


class BoundsContract(OnQueue):
    """The behaviour of a `PromptQueue` at its bounds: the last that fits, and the first that does not."""

    # Arguments

    @pytest.mark.parametrize(
        ("script", "arguments"),
        [
            ("enqueue", (1, "a", LANE)),
            ("enqueue", ("many",)),
            ("claim", ("c", "w1", 1000, 1, 0, 1, 1000, LANE, 1)),
            ("claim", ("c", "w1", 1000, 1, 0, "maybe", 1000)),
            ("publish", ("a", 1, 1, 2, "{}")),
            ("publish", ("a", 1, 1, "few", "{}")),
            ("finish", ("a", 1, "done", 1, 2, "{}")),
            ("finish", ("a", 1, "waiting", 1, 0, "{", "{}", "", 1000, "")),
            ("retry", ("a", 1, "{}")),
            ("configure", (1, 0, 0, "max_waiting")),
            ("audit", (0, "job")),
            ("tick", ("w1", "long", 1000, 10, "", 0, 0)),
            ("tend", ("w1", "long")),
            ("purge", (LANE, "", "many", "")),
            ("purge", ("no name", "", 1, "")),
            ("renew", ("w1", "long", "{}")),
            ("reschedule", ("a", "soon")),
            ("reprioritize", ("a", "high")),
            ("share_endpoints", ("w1", "long", "chat.0")),
            ("forgive", ("no name",)),
        ],
    )
    async def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(
        self, q: QueueDriver, script: str, arguments: tuple[str | int, ...]
    ) -> None:
        await q.tick()
        await q.running("a")
        before = await q.dump()
        with pytest.raises(ResponseError, match=r"ARGV|argument|pair"):
            await q.queue._scripts.run(script, *arguments)
        assert await q.dump() == before

    async def test_a_purge_of_no_job_and_a_write_of_no_event_are_in_order(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.enqueue(new_job("b"))
        assert await q.publish(job)
        assert (await q.queue._scripts.run("purge", LANE, "", 0, ""))[0] == 0
        assert await q.state("b") == "waiting"

    # Settings and limits

    async def test_another_limit_forgets_what_was_used_under_the_former(self, q: QueueDriver) -> None:
        await q.configure(tenants={"a": RateLimit(requests=1), "b": RateLimit(requests=1)})
        await q.drain_limit("t:a")
        await q.drain_limit("t:b")
        await q.configure(tenants={"a": RateLimit(requests=1), "b": RateLimit(requests=2)})
        buckets = [q.queue.keys.of("bucket", subject) for subject in ("t:a", "t:b")]
        assert [await q.redis.exists(bucket) for bucket in buckets] == [1, 0]

    async def test_any_number_of_tenants_may_have_limits(self, q: QueueDriver) -> None:
        for n in (999, 1000, 1001, 5000):
            await q.configure(tenants={f"tenant{i}": RateLimit(requests=i + 1) for i in range(n)})
            assert await q.redis.hlen(q.queue.keys.fixed("limits")) == n

    async def test_a_queue_may_keep_nothing(self, q: QueueDriver, untidy: None) -> None:
        await q.configure(max_finished=0, max_dead=0, spare_bytes=0)
        await q.finish(await q.running("done"))
        await q.finish(await q.running("failed"), JobState.FAILED)
        await q.enqueue(new_job("cancelled"))
        await q.queue.cancel("cancelled")
        assert await q.queue.request("cancelled") is None
        await q.tick()
        assert [await q.state(name) for name in ("done", "failed", "cancelled")] == [None] * 3

    async def test_a_queue_and_a_lane_may_have_no_room_at_all(self, q: QueueDriver) -> None:
        await q.configure(max_waiting__chat=0)
        assert isinstance((await q.enqueue(new_job("a")))[0], Full)
        assert isinstance((await q.enqueue(new_job("b", lane="other")))[0], Enqueued)
        await q.configure(max_waiting=0)
        assert isinstance((await q.enqueue(new_job("c")))[0], Full)

    # Dedup keys

    async def test_a_released_key_says_whose_it_was_and_is_free(self, q: QueueDriver) -> None:
        await q.configure(dedup_ttl_ms=HOUR_MS)
        assert await q.queue.release("default", "K") is None
        await q.enqueue(new_job("a", key="K"))
        assert await q.queue.release("default", "K") == ("a", -1)
        await q.finish(await q.claim())
        await q.finish(await q.running("b", key="L", dedup=DedupMode.WINDOW))
        owner, left_ms = await q.queue.release("default", "L") or ("", 0)
        assert owner == "b"
        assert HOUR_MS - 60_000 < left_ms <= HOUR_MS
        assert await q.owner("L") is None

    @pytest.mark.parametrize(
        ("joined", "reused", "is_brief"),
        [
            (None, 999, False),
            (None, 1000, True),
            (999, None, False),
            (1000, None, True),
            (400, 599, False),
            (400, 600, True),
        ],
    )
    async def test_the_thousandth_alias_of_an_answer_is_the_last_that_lives_as_long(
        self, q: QueueDriver, joined: int | None, reused: int | None, is_brief: bool
    ) -> None:
        await q.finish(await q.running("a", key="K", dedup=DedupMode.WINDOW))
        record = q.queue.keys.of("record", "a")
        for field, value in (("j", joined), ("H", reused)):
            if value is not None:
                await q.redis.hset(record, field, value)
        await q.enqueue(new_job("x", key="K", dedup=DedupMode.WINDOW))
        assert (await q.redis.pttl(q.queue.keys.of("alias", "x")) <= 60_000) == is_brief

    # Room

    async def test_a_token_of_room_is_left_once_for_those_that_were_refused(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=2, when_full="block")
        await q.enqueue(new_job("a"), new_job("b"))
        space = q.queue.keys.fixed("space")
        assert isinstance((await q.enqueue(new_job("c")))[0], Full)
        lengths = []
        for _ in range(2):
            await q.claim()
            lengths.append(await q.redis.llen(space))
            await q.redis.delete(space)
        assert lengths == [1, 0]

    async def test_a_call_that_sheds_stops_when_that_has_cost_enough(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=100, when_full="shed")
        await q.enqueue(*[new_job(f"old{n}", 0) for n in range(100)])
        rows: list[Any] = []
        for n in range(100):
            rows += ["" if value is None else value for value in new_job(f"new{n}", 5)]
        # 32 for the delayed jobs, and for each job 1 for the level that is read and 3 for the end.
        assert len(await q.queue._scripts.run("enqueue", 100, *rows)) == (256 - 32) // 4

    @pytest.mark.parametrize(("ran", "sheds"), [(0, True), (1, True), (14, True), (15, True), (16, False)])
    async def test_shedding_looks_behind_fifteen_that_have_run(
        self, q: QueueDriver, ran: int, sheds: bool
    ) -> None:
        await q.enqueue(*[new_job(f"ran{n}", 3) for n in range(ran)])
        for job in (await q.claim_all()).jobs:
            await q.give_back(job)
        await q.enqueue(new_job("newer", 3), new_job("older", 3))
        await q.backdate("newer", 60)
        await q.backdate("older", 90)
        await q.configure(max_waiting=ran + 2, when_full="shed")
        (outcome,) = await q.enqueue(new_job("urgent", 9))
        assert isinstance(outcome, Enqueued) == sheds
        assert await q.state("older") == "waiting"
        assert await q.state("newer") == ("shed" if sheds else "waiting")

    @pytest.mark.parametrize(("later", "sheds"), [(126, True), (127, True), (128, False)])
    async def test_shedding_looks_at_the_128_delayed_jobs_that_are_due_last(
        self, q: QueueDriver, later: int, sheds: bool
    ) -> None:
        await q.enqueue(new_job("soonest", 1, delay_ms=60_000))
        for at in range(0, later, 100):
            some = range(at, min(later, at + 100))
            await q.enqueue(*[new_job(f"later{n}", 9, delay_ms=90_000) for n in some])
        await q.configure(max_waiting=later + 1, when_full="shed")
        await q.enqueue(new_job("urgent", 5))
        assert await q.state("soonest") == ("shed" if sheds else "delayed")

    async def test_shedding_compares_sixteen_lanes(self, q: QueueDriver) -> None:
        lanes = [f"lane{n}" for n in range(16)]
        await q.configure(max_waiting=16, when_full="shed")
        await q.enqueue(*[new_job(lane, 1, lane=lane) for lane in lanes])
        for lane in reversed(lanes):
            await q.enqueue(new_job(f"urgent {lane}", 5))
            assert await q.state(lane) == "shed"

    async def test_a_held_job_that_came_in_the_same_call_is_shed_too(self, q: QueueDriver) -> None:
        await q.configure(tenants={"acme": RateLimit(requests=1)}, max_waiting=2, when_full="shed")
        await q.drain_limit("t:acme")
        await q.enqueue(new_job("a", 5), new_job("b", 1))
        await q.enqueue(new_job("c", 5), acme_job("held", 5), new_job("d", 9))
        assert await q.state("b") == "shed"
        assert await q.state("d") == "waiting"

    async def test_a_job_that_is_hastened_and_held_wakes_nobody(self, q: QueueDriver) -> None:
        await q.configure(tenants={"acme": RateLimit(requests=1)})
        await q.drain_limit("t:acme")
        await q.enqueue(acme_job("a", key="K", delay_ms=60_000))
        await q.enqueue(acme_job("b", key="K"))
        assert await q.state("a") == "held"
        assert await q.redis.llen(q.queue.keys.of("wake", LANE)) == 0

    @pytest.mark.parametrize("policy", ["reject", "shed"])
    async def test_what_a_call_ends_makes_room_for_one_other_of_that_call(
        self, q: QueueDriver, policy: str
    ) -> None:
        await q.configure(max_waiting=3, when_full=policy)
        await q.enqueue(new_job("a", key="K"), new_job("b"))
        replacing = new_job("new", key="K", content="other", dedup=DedupMode.REPLACE)
        outcomes = await q.enqueue(replacing, new_job("c"), new_job("d"))
        assert [isinstance(outcome, Full) for outcome in outcomes] == [False, False, True]
        outcomes = await q.enqueue(new_job("e", 9), new_job("f", 5))
        assert [isinstance(outcome, Full) for outcome in outcomes] == [policy == "reject", True]

    @pytest.mark.parametrize("state", [JobState.RUNNING, JobState.DELAYED])
    async def test_a_join_that_raises_a_job_that_does_not_wait_makes_nothing_ready(
        self, q: QueueDriver, state: JobState
    ) -> None:
        await reach(q, state, key="K")
        await q.enqueue(new_job("joins", 9, key="K", delay_ms=90_000))
        assert (await q.record("a"))["p"] == "9"
        assert await q.claimed_ids() == []

    async def test_a_large_answer_lives_as_long_as_its_job(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.finish(job, value=orjson.dumps({"text": "x" * 2_000_000}), result_ttl_ms=120_000)
        left_ms = await q.redis.pttl(q.queue.keys.of("result", "a"))
        assert 60_000 < left_ms <= 120_000

    # History

    @pytest.mark.parametrize(("length", "kept"), [(499, 499), (500, 500), (501, 500), (2000, 500)])
    async def test_history_keeps_500_bytes_of_an_error(self, q: QueueDriver, length: int, kept: int) -> None:
        await fail(q, await q.running("a"), b"x" * length)
        assert (await q.history("a"))[-1][4] == "x" * kept

    # Lanes

    async def test_an_unused_lane_is_forgotten_with_all_of_its_keys(self, q: QueueDriver) -> None:
        lanes = {"unused", "paused", "waits"}
        await q.enqueue(*[new_job(lane, lane=lane) for lane in lanes])
        for lane in ("unused", "paused"):
            await q.finish(await q.claim(lanes={lane: 1}))
        await q.queue.pause("paused")
        await q.configure()
        await q.redis.sadd(q.queue.keys.fixed("lanes"), LANE)
        await q.work_is_due()
        await q.tick(mend_ms=0)
        await q.tick(mend_ms=0)
        left = {lane.decode() for lane in await q.redis.smembers(q.queue.keys.fixed("lanes"))}
        assert left == {LANE, "paused", "waits"}
        assert [name for name in await q.meta() if name.endswith(":unused")] == []
        for kind in ("wake", "urgent", "work"):
            assert not await q.redis.exists(q.queue.keys.of(kind, "unused"))

    # Repairs

    async def test_a_lease_that_was_missing_lasts_ten_seconds(self, q: QueueDriver) -> None:
        await q.running("a")
        await q.redis.delete(q.queue.keys.fixed("leases"))
        before_ms = await q.now_ms()
        await admin.audit(q.queue, repair=True)
        ends_ms = await q.redis.zscore(q.queue.keys.fixed("leases"), "a")
        assert before_ms + 10_000 <= ends_ms <= await q.now_ms() + 10_000

    async def test_a_bitmap_beside_a_lane_is_mended(self, q: QueueDriver) -> None:
        await make_suspects(q, "s")
        beside = q.queue.keys.fixed("beside")
        await q.redis.hset(beside, f"{LANE} !", 1)
        assert (await admin.audit(q.queue, repair=True)).problems
        assert await q.redis.hget(beside, f"{LANE} !") == str(2**5).encode()
