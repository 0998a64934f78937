"""What limits on tenants and endpoints promise, on whatever server the queue is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import Limits, RateLimit
from scheduler.queue.records import ClaimedJob, Conflict, Enqueued, Full, Offer
from tests.contracts.queue_contract import OnQueue, repeat
from tests.contracts.queue_driver import LANE, QueueDriver, ending, new_job, returning
from tests.patience import SOON_S

ACME = "acme"
PARKED_AT_ONCE = 64

# A limit of one to nineteen lets one go at once, and the next many seconds later; of thirty, three at once.
ONE = {ACME: RateLimit(requests=1)}
THREE = {ACME: RateLimit(requests=30)}


def acme_job(name: str, priority: int = 5, **fields: Any) -> Any:
    return new_job(name, priority, **{"tenant": ACME, **fields})


async def use_up(q: QueueDriver, tenant: str = ACME) -> None:
    """Let a tenant have used all that it may for a while."""
    await q.drain_limit(f"t:{tenant}")


async def hold(q: QueueDriver, *jobs: Any) -> None:
    """Enqueue jobs of a tenant that may not begin any."""
    await q.configure(tenants=ONE)
    await use_up(q)
    await q.enqueue(*jobs)
    assert {await q.state(job.job_id) for job in jobs} == {"held"}


async def open_gate(q: QueueDriver, tenant: str = ACME) -> None:
    await q.renew_limits(f"t:{tenant}")


async def states(q: QueueDriver, *names: str) -> list[str | None]:
    return [await q.state(name) for name in names]


async def tokens_back_at_us(q: QueueDriver, subject: str) -> int:
    """When all tokens of a subject are back."""
    saved: bytes | None = await q.redis.get(q.queue.keys.of("bucket", subject))
    return int(saved.split()[1]) if saved else 0


class LimitsContract(OnQueue):
    """The behaviour of limits in a `PromptQueue`."""

    @pytest.mark.parametrize(
        ("limits", "kinds"),
        [
            (Limits(), ""),
            (Limits({"a": RateLimit()}), ""),
            (Limits({"a": RateLimit(1)}), "t"),
            (Limits({}, {"e": RateLimit(None, 1)}), "e"),
            (Limits({"a": RateLimit(1)}, {"e": RateLimit(1)}), "te"),
        ],
    )
    async def test_the_settings_say_what_is_limited_at_all(
        self, q: QueueDriver, limits: Limits, kinds: str
    ) -> None:
        await q.queue.configure(conf={}, routes={"chat": b"{}"}, limits=limits)
        assert await q.redis.hget(q.queue.keys.fixed("conf"), "limits") == kinds.encode()

    # Requests of a tenant

    async def test_a_process_that_serves_other_routes_takes_no_limit_away(self, q: QueueDriver) -> None:
        chat = Limits(endpoints={"chat.0": RateLimit(requests=1)}, tenants={"acme": RateLimit(requests=5)})
        await q.queue.configure(conf={"max_waiting:chat": 7}, routes={"chat": b"{}"}, limits=chat)
        small = Limits(endpoints={"small.0": RateLimit(requests=2)}, tenants={"*": RateLimit(tokens=9)})
        await q.queue.configure(conf={"max_waiting:small": 8}, routes={"small": b"{}"}, limits=small)
        conf = await q.redis.hgetall(q.queue.keys.fixed("conf"))
        assert conf == {b"max_waiting:chat": b"7", b"max_waiting:small": b"8", b"limits": b"te"}
        limits = await q.redis.hgetall(q.queue.keys.fixed("limits"))
        assert limits == {b"e:chat.0": b"1 0", b"e:small.0": b"2 0", b"t:*": b"0 9"}, (
            "tenants are the queue's"
        )

    async def test_limits_of_ones_own_routes_and_of_routes_that_are_gone_go(self, q: QueueDriver) -> None:
        for route in ("chat", "gone"):
            limits = Limits(endpoints={f"{route}.0": RateLimit(requests=1)})
            await q.queue.configure(conf={f"max_waiting:{route}": 7}, routes={route: b"{}"}, limits=limits)
        await q.queue.forget_routes(["gone"])
        await q.queue.configure(conf={}, routes={"chat": b"{}"})
        assert await q.redis.hgetall(q.queue.keys.fixed("conf")) == {b"limits": b""}
        assert await q.redis.hgetall(q.queue.keys.fixed("limits")) == {}

    async def test_a_tenth_of_the_limit_goes_at_once_and_the_rest_is_held(self, q: QueueDriver) -> None:
        await q.configure(tenants=THREE)
        await q.enqueue(*[acme_job(f"j{i}") for i in range(10)])
        claim = await q.claim_all()
        assert [job.id for job in claim.jobs] == ["j0", "j1", "j2"]
        assert not claim.more
        assert set(await states(q, *[f"j{i}" for i in range(3, 10)])) == {"held"}

    @pytest.mark.parametrize(
        ("first", "then"),
        [(RateLimit(requests=100), RateLimit(tokens=100)), (RateLimit(tokens=10_000), RateLimit(requests=1))],
    )
    async def test_what_is_not_limited_is_not_charged(
        self, q: QueueDriver, first: RateLimit, then: RateLimit
    ) -> None:
        await q.configure(tenants={ACME: first})
        await q.finish(await q.running("a", tenant=ACME), used_tokens=50)
        await q.configure(tenants={ACME: then})
        await q.enqueue(acme_job("b"))
        assert await q.claimed_ids() == ["b"]

    async def test_worker_processes_hear_that_a_limit_was_forgiven(self, q: QueueDriver) -> None:
        async with q.redis.pubsub() as pubsub:
            await pubsub.subscribe(q.queue.control_channel)
            assert (await pubsub.get_message(timeout=SOON_S))["type"] == "subscribe"
            await q.queue.forgive("e:chat.0")
            message = await pubsub.get_message(timeout=SOON_S)
        assert message is not None
        assert orjson.loads(message["data"]) == {"forgive": "e:chat.0"}

    async def test_others_pass_who_is_held(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE)
        await q.enqueue(*[acme_job(f"a{i}", 9) for i in range(5)], new_job("other", 0), new_job("more", 1))
        assert await q.claimed_ids(3) == ["a0", "more", "other"]

    async def test_being_held_counts_no_attempt_and_no_failure(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE)
        await q.enqueue(acme_job("first"), acme_job("held"))
        await q.claim_all()
        assert {"n", "f", "k", "v"} & (await q.record("held")).keys() == set()
        assert await q.event_types("held") == ["queued"]
        await open_gate(q)
        await q.tick()
        job = await q.claim()
        assert (job.id, job.attempt, job.failures) == ("held", 1, 0)

    async def test_held_jobs_are_released_in_the_order_of_claiming(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE, aging_ms=30_000)
        await use_up(q)
        await q.enqueue(*[acme_job(f"p{p}", p) for p in (5, 9, 0, 8, 7)], acme_job("p5-later", 5))
        order = []
        for _ in range(6):
            await open_gate(q)
            assert (await q.tick()).released == 1
            order += await q.claimed_ids()
        assert order == ["p9", "p8", "p7", "p5", "p5-later", "p0"]

    async def test_the_lanes_of_a_tenant_share_its_limit_in_the_order_of_claiming(
        self, q: QueueDriver
    ) -> None:
        await q.configure(tenants=ONE)
        await use_up(q)
        for i in range(6):
            await q.enqueue(acme_job(f"{'ab'[i % 2]}{i}", lane="ab"[i % 2]))
        order = []
        for _ in range(6):
            await open_gate(q)
            assert (await q.tick()).released == 1
            order += await q.claimed_ids(lanes={"a": 9, "b": 9})
        assert order == ["a0", "b1", "a2", "b3", "a4", "b5"]

    async def test_one_claim_over_several_lanes_sees_its_own_charges(self, q: QueueDriver) -> None:
        await q.configure(tenants=THREE)
        await q.enqueue(*[acme_job(f"a{i}", lane="a") for i in range(4)], acme_job("b", lane="b"))
        assert len(await q.claimed_ids(lanes={"a": 9, "b": 9})) == 3

    async def test_who_has_held_jobs_in_a_lane_stands_behind_them(self, q: QueueDriver) -> None:
        await hold(q, acme_job("first"))
        await open_gate(q)
        await q.enqueue(acme_job("second"), acme_job("elsewhere", lane="other"))
        assert await states(q, "first", "second", "elsewhere") == ["held", "held", "waiting"]

    async def test_who_is_over_its_limit_does_not_come_before_the_others_at_all(self, q: QueueDriver) -> None:
        await hold(q, acme_job("held", 9))
        assert await q.redis.llen(q.queue.keys.of("wake", LANE)) == 0
        await q.enqueue(new_job("other"))
        assert await q.claimed_ids() == ["other"]

    async def test_each_tenant_that_is_not_named_has_the_limit_of_all_for_itself(
        self, q: QueueDriver
    ) -> None:
        await q.configure(tenants={"*": RateLimit(requests=1), "vip": RateLimit()})
        await q.enqueue(
            *[new_job(f"{t}{i}", tenant=t) for i in range(2) for t in ("a", "b", "vip", "default")]
        )
        assert await q.claimed_ids() == ["a0", "b0", "vip0", "default0", "vip1"]

    async def test_a_limit_that_is_taken_away_holds_nobody_any_more(self, q: QueueDriver) -> None:
        await hold(q, *[acme_job(f"j{i}") for i in range(5)])
        await q.configure()
        assert (await q.tick()).released == 5
        assert await q.claimed_ids() == [f"j{i}" for i in range(5)]

    async def test_a_limit_that_is_raised_holds_fewer(self, q: QueueDriver) -> None:
        await hold(q, *[acme_job(f"j{i}") for i in range(5)])
        await q.configure(tenants=THREE)
        await q.redis.delete(q.queue.keys.of("bucket", f"t:{ACME}"))
        assert (await q.tick()).released == 3

    # Releasing

    async def test_what_is_released_wakes_its_lane(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"))
        await open_gate(q)
        waiter = asyncio.create_task(q.queue.wait_for_work([LANE], 10))
        await asyncio.sleep(0.02)
        assert not waiter.done()
        await q.tick()
        await asyncio.wait_for(waiter, SOON_S)

    async def test_tick_comes_when_the_next_may_be_released(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(requests=600_000)})
        slack_us = (60_000 - 1) * 112
        await q.enqueue(acme_job("first"))  # it loads the script, which takes its time on fakeredis
        await q.finish(await q.claim())
        whole_us = (await q.now_ms() + 150) * 1000 + slack_us
        await q.redis.set(q.queue.keys.of("bucket", f"t:{ACME}"), f"{whole_us} 0")
        await q.enqueue(acme_job("a"))
        assert await q.state("a") == "held"
        report = await q.tick()
        assert (report.released, report.next_ms <= 151) == (0, True)
        while not (report := await q.tick()).released:
            await q.pass_ms(report.next_ms)
        assert await q.claimed_ids() == ["a"]

    async def test_no_more_are_released_while_those_before_wait(self, q: QueueDriver) -> None:
        await hold(q, *[acme_job(f"j{i}") for i in range(5)])
        await open_gate(q)
        released = []
        for _ in range(3):
            await q.look_at_held()
            released.append((await q.tick()).released)
        assert released == [1, 0, 0]
        await q.queue.cancel("j0")
        await q.look_at_held()
        assert (await q.tick()).released == 1
        assert await states(q, "j1", "j2") == ["waiting", "held"]

    async def test_a_more_urgent_one_does_not_stand_behind_those_that_were_released(
        self, q: QueueDriver
    ) -> None:
        await hold(q, acme_job("usual"), acme_job("next"))
        await open_gate(q)
        await q.tick()
        await q.enqueue(acme_job("low", 3), acme_job("urgent", 9))
        await q.look_at_held()
        await q.tick()
        assert await states(q, "usual", "next", "low", "urgent") == ["waiting", "held", "held", "waiting"]
        assert await q.claimed_ids() == ["urgent"]
        assert await states(q, "usual", "next") == ["held", "held"]

    async def test_releasing_goes_in_chunks_and_comes_back_at_once(self, q: QueueDriver) -> None:
        await hold(q, *[acme_job(f"j{i}") for i in range(5)])
        await q.configure()
        reports = [await q.tick(chunk=2) for _ in range(3)]
        assert [report.released for report in reports] == [2, 2, 1]
        assert [report.next_ms for report in reports] == [0, 0, 250]

    async def test_a_damaged_record_is_set_aside_when_it_is_released(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await hold(q, acme_job("bad"), acme_job("good"))
        await q.redis.hdel(q.queue.keys.of("record", "bad"), "q")
        await q.configure()
        await q.tick()
        assert await q.redis.hkeys(q.queue.keys.fixed("garbage")) == [b"bad"]
        assert (await q.last_event("bad"))["error"]["code"] == "record_damaged"
        assert await q.claimed_ids() == ["good"]
        assert await q.waiting() == 0

    # A held job in everything else

    async def test_a_held_job_can_be_cancelled(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a", key="K", deadline_ms=60_000), acme_job("b"))
        assert await repeat(q, lambda: q.queue.cancel("a", "a")) == "cancelled"
        assert await q.event_types("a") == ["queued", "cancelled"]
        assert await q.waiting() == 1

    async def test_a_new_priority_moves_a_held_job(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a", 3), acme_job("b", 3))
        assert await repeat(q, lambda: q.queue.set_priority("b", 7)) is JobState.HELD
        await open_gate(q)
        await q.tick()
        assert await states(q, "a", "b") == ["held", "waiting"]

    async def test_a_held_job_expires_at_its_deadline(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a", deadline_ms=1))
        await q.pass_ms(1)
        assert (await q.tick()).expired == 1
        assert await q.event_types("a") == ["queued", "expired"]

    async def test_held_jobs_are_purged_with_their_lane(self, q: QueueDriver) -> None:
        await hold(q, acme_job("low", 1), acme_job("high", 9), acme_job("other", lane="other"))
        await q.enqueue(new_job("waits", 1), new_job("urgent", 8))
        assert await q.queue.purge(LANE, 1) == 2
        assert await states(q, "low", "waits", "high", "urgent") == [
            "cancelled",
            "cancelled",
            "held",
            "waiting",
        ]
        assert await q.queue.purge(LANE, chunk=1) == 1
        assert await states(q, "high", "urgent") == ["held", "cancelled"]
        assert [await q.queue.purge(LANE), await q.queue.purge(LANE)] == [1, 0]
        assert (await q.last_event("high"))["reason"] == "purged"
        assert await q.state("other") == "held"

    async def test_a_requeued_job_is_held_where_its_tenant_is_over_its_limit(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"))
        await q.queue.cancel("a")
        assert await repeat(q, lambda: q.queue.requeue("a")) == "held"
        assert await q.redis.llen(q.queue.keys.of("wake", LANE)) == 0

    async def test_a_duplicate_joins_a_held_job(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a", 3, key="K", deadline_ms=60_000), acme_job("b", 5))
        joined = Enqueued("a", deduplicated=True)
        assert await q.enqueue(acme_job("x", 7, key="K", deadline_ms=90_000)) == [joined]
        assert await q.enqueue(acme_job("y", key="K", content="other")) == [Conflict("a")]
        record = await q.record("a")
        assert (record["s"], record["p"]) == ("held", "7")
        assert int(record["x"]) - await q.now_ms() > 80_000
        await open_gate(q)
        await q.tick()
        assert await states(q, "a", "b") == ["waiting", "held"]

    async def test_a_hastened_job_is_held_where_its_tenant_is_over_its_limit(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE)
        await use_up(q)
        await q.enqueue(acme_job("a", key="K", delay_ms=60_000, deadline_ms=90_000))
        await q.enqueue(acme_job("x", key="K"))
        assert await q.state("a") == "held"
        assert "x" not in await q.record("a")

    async def test_replacing_takes_the_place_of_a_held_job(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a", key="K"), acme_job("between"))
        assert await q.enqueue(acme_job("b", key="K", dedup=DedupMode.REPLACE)) == [Enqueued("b")]
        assert await states(q, "a", "b") == ["cancelled", "held"]
        await open_gate(q)
        await q.tick()
        assert await states(q, "b", "between") == ["waiting", "held"]

    async def test_the_bound_counts_held_jobs(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"), acme_job("b"))
        assert (await q.waiting(), await q.waiting(LANE)) == (2, 2)
        assert await q.queue.unfinished([LANE]) == 2
        await q.configure(tenants=ONE, max_waiting=2)
        assert isinstance((await q.enqueue(new_job("c")))[0], Full)

    async def test_a_held_job_may_be_shed(self, q: QueueDriver) -> None:
        await hold(q, acme_job("low", 1), acme_job("low-newer", 1), acme_job("mid", 4))
        await q.configure(tenants=ONE, max_waiting=4, when_full="shed")
        await q.enqueue(new_job("waits", 2))
        for shed in ("low-newer", "low", "waits", "mid"):
            assert await q.enqueue(new_job(f"over-{shed}", 5)) == [Enqueued(f"over-{shed}")]
            assert await q.state(shed) == "shed"

    async def test_a_full_lane_sheds_its_own_held_jobs(self, q: QueueDriver) -> None:
        await hold(q, acme_job("mine", 2), acme_job("other", 1, lane="other"))
        await q.configure(tenants=ONE, max_waiting__chat=1, when_full="shed")
        await q.enqueue(new_job("new", 5))
        assert await states(q, "mine", "other") == ["shed", "held"]

    async def test_the_position_of_a_held_job_is_that_among_its_tenants(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"w{i}", 9) for i in range(3)])
        await hold(q, *[acme_job(f"p{p}", p) for p in (5, 9, 7)])
        assert [await q.queue.position(name) for name in ("p9", "p7", "p5")] == [0, 1, 2]

    async def test_maintenance_mends_counts_and_bitmaps_of_held_jobs(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a", 3), acme_job("b", 7))
        await q.enqueue(new_job("c"))
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"n": 77, f"n:{LANE}": -3})
        await q.redis.hset(q.queue.keys.fixed("beside"), f"{LANE} {ACME}", 0)
        await q.tick(mend_ms=0)
        assert (await q.waiting(), await q.waiting(LANE)) == (3, 3)
        await open_gate(q)
        await q.tick()
        assert await q.state("b") == "waiting"

    async def test_a_job_without_a_place_among_the_held_is_no_obstacle(self, q: QueueDriver) -> None:
        await q.redis.zadd(q.queue.keys.fixed("limited"), {f"{LANE} nobody": 1})
        await q.tick()
        assert await q.redis.zcard(q.queue.keys.fixed("limited")) == 0

    @pytest.mark.parametrize("way", ["promoted", "returned", "lost"])
    async def test_whoever_comes_back_is_held_where_its_tenant_is_over_its_limit(
        self, q: QueueDriver, way: str
    ) -> None:
        await q.configure(tenants=ONE)
        if way == "promoted":
            await use_up(q)
            await q.enqueue(acme_job("a", delay_ms=1))
            await q.pass_ms(1)
            assert (await q.tick()).promoted == 1
        else:
            job = await q.running("a", tenant=ACME)
            if way == "returned":
                assert await repeat(q, lambda: q.give_back(job))
            else:
                await q.lose_lease(job)
                assert (await q.tick()).reaped == 1
        assert await q.state("a") == "held"

    async def test_a_returned_job_keeps_its_place_among_the_held(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE)
        job = await q.running("first", tenant=ACME)
        await q.enqueue(acme_job("second"))
        await q.give_back(job)
        await open_gate(q)
        await q.tick()
        assert await states(q, "first", "second") == ["waiting", "held"]

    async def test_a_paused_lane_keeps_what_is_released(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"))
        await q.queue.pause(LANE)
        await open_gate(q)
        assert (await q.tick()).released == 1
        assert await q.claimed_ids() == []
        await q.queue.resume(LANE)
        assert await q.claimed_ids() == ["a"]

    async def test_a_held_job_replays_as_queued(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"))
        replay = await q.replay("a")
        assert (replay.state, replay.last) == (JobState.HELD, (0, 1))

    @pytest.mark.parametrize("tenant", ["a/b", "a@b+c", "x:y"])
    @pytest.mark.parametrize("lane", ["org/model-7b", "a:1", "w:5:chat"])
    async def test_any_lane_and_tenant_can_be_held(self, q: QueueDriver, lane: str, tenant: str) -> None:
        await q.configure(tenants={"*": RateLimit(requests=1)})
        await q.enqueue(*[new_job(name, lane=lane, tenant=tenant) for name in "ab"])
        assert await q.claimed_ids(lanes={lane: 9}) == ["a"]
        await open_gate(q, tenant)
        await q.tick()
        assert await q.claimed_ids(lanes={lane: 9}) == ["b"]

    # Parking costs what it must, once

    async def test_a_claim_parks_a_bounded_number_and_says_that_there_is_more(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE)
        await self._enqueue_many(q, 3 * PARKED_AT_ONCE)
        await q.enqueue(new_job("other", 1))
        await use_up(q)
        for parked in (PARKED_AT_ONCE, 2 * PARKED_AT_ONCE):
            claim = await q.claim_all(1)
            assert (claim.jobs, claim.more) == ((), True)
            assert await q.redis.llen(q.queue.keys.of("wake", LANE)) == 1
            assert await self._held(q) == parked
        claim = await q.claim_all(2)
        assert [job.id for job in claim.jobs] == []
        assert (await q.claim()).id == "other"
        assert await self._held(q) == 3 * PARKED_AT_ONCE

    @staticmethod
    async def _enqueue_many(q: QueueDriver, n: int) -> None:
        for start in range(0, n, 128):
            await q.enqueue(*[acme_job(f"j{i:06}", 9) for i in range(start, min(start + 128, n))])

    @staticmethod
    async def _held(q: QueueDriver) -> int:
        return int(await q.redis.zcard(q.queue.keys.level(q.queue.keys.held_lane(LANE, ACME), 9)))

    # Tokens of a tenant

    async def test_tokens_are_reckoned_with_by_the_bytes_of_the_request(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=1000)})
        await q.enqueue(*[acme_job(f"j{i}", payload=b"x" * 200) for i in range(4)])
        # a tenth of the limit, 100 tokens, is there at once, and who comes to the last of them may go over
        assert await q.claimed_ids() == ["j0", "j1"]
        assert await states(q, "j2", "j3") == ["held", "held"]

    async def test_one_request_may_be_larger_than_the_limit(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=10)})
        await q.enqueue(acme_job("big", payload=b"x" * 4000), acme_job("next"))
        assert await q.claimed_ids() == ["big"]
        assert await q.state("next") == "held"

    @pytest.mark.parametrize("end", [ending, returning])
    async def test_what_was_used_takes_the_place_of_the_estimate(
        self, q: QueueDriver, end: Callable[..., Any]
    ) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=1000)})
        job = await q.running("a", tenant=ACME, payload=b"x" * 400)
        estimated_us = await tokens_back_at_us(q, f"t:{ACME}")
        await self._write(q, end(job, used_tokens=150))
        interval_us = 60_000_000 / (1000 - 100 + 1)
        corrected_us = await tokens_back_at_us(q, f"t:{ACME}")
        assert corrected_us - estimated_us == pytest.approx(50 * interval_us, abs=2)

    async def test_tokens_that_were_not_used_come_back(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=100)})
        job = await q.running("a", tenant=ACME, payload=b"x" * 4000)
        await q.enqueue(acme_job("b"))
        assert await q.state("b") == "held"
        await self._write(q, ending(job, used_tokens=1))
        await q.look_at_held()
        assert (await q.tick()).released == 1

    async def test_the_estimate_stands_where_nobody_knows(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=1000)})
        job = await q.running("a", tenant=ACME, payload=b"x" * 400)
        before = await tokens_back_at_us(q, f"t:{ACME}")
        await q.finish(job)
        assert await tokens_back_at_us(q, f"t:{ACME}") == before

    @pytest.mark.parametrize("end", [ending, returning])
    async def test_tokens_are_corrected_once_however_often_the_end_is_written(
        self, q: QueueDriver, end: Callable[..., Any]
    ) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=1000, requests=600)})
        job = await q.running("a", tenant=ACME, payload=b"x" * 400)
        await repeat(q, lambda: self._write(q, end(job, used_tokens=5000)))

    async def test_a_write_that_is_refused_corrects_nothing(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(tokens=1000)})
        job = await q.running("a", tenant=ACME)
        await q.queue.cancel("a")
        before = await tokens_back_at_us(q, f"t:{ACME}")
        await self._write(q, ending(job, used_tokens=5000))
        assert await tokens_back_at_us(q, f"t:{ACME}") == before

    @staticmethod
    async def _write(q: QueueDriver, end: Any) -> Any:
        return await q.queue.write(**{"endings" if hasattr(end, "state") else "returns": [end]})

    async def test_requests_and_tokens_both_have_to_be_there(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(requests=600, tokens=600)})
        for kind in ("requests", "tokens"):
            await q.drain_limit(f"t:{ACME}", kind)
            await q.enqueue(acme_job(kind))
            assert await q.state(kind) == "held"
            await q.queue.purge(LANE)

    # What is kept of limits

    async def test_a_claim_charges_once_however_often_it_is_sent(self, q: QueueDriver) -> None:
        await q.configure(
            tenants={ACME: RateLimit(requests=600, tokens=6000)},
            endpoints={"chat.0": RateLimit(requests=600)},
        )
        await q.enqueue(*[acme_job(f"j{i}") for i in range(3)])

        async def claim() -> Any:
            claim = await q.queue.claim(
                "same", "w1", {LANE: 2}, limit=2, lease_ms=60_000, offers={LANE: [Offer("chat.0", 9)]}
            )
            return [(job.id, job.token, job.endpoint) for job in claim.jobs]

        claimed = await repeat(q, claim)
        assert [(job_id, endpoint) for job_id, _, endpoint in claimed] == [("j0", "chat.0"), ("j1", "chat.0")]

    async def test_what_has_been_used_is_forgotten_once_it_is_all_back(self, q: QueueDriver) -> None:
        await q.configure(tenants={ACME: RateLimit(requests=600)})
        await q.running("a", tenant=ACME)
        left_ms = await q.redis.pttl(q.queue.keys.of("bucket", f"t:{ACME}"))
        assert 0 < left_ms <= 60_000 / 541 + 1

    async def test_a_tenant_that_is_forgiven_begins_anew(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"), acme_job("b"))
        await q.tick()
        assert await q.queue.forgive(f"t:{ACME}")
        assert not await q.queue.forgive(f"t:{ACME}"), "it has used nothing since"
        assert (await q.tick()).released == 1
        assert await q.claimed_ids() == ["a"]

    async def test_an_endpoint_that_is_forgiven_has_its_permits_again(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"x": RateLimit(requests=1)})
        await q.drain_limit("e:x")
        await q.enqueue(new_job("a"))
        offers = {LANE: [Offer("x", 1)]}
        assert await q.claimed_ids(offers=offers) == []
        assert await q.queue.forgive("e:x")
        assert await q.claimed_ids(offers=offers) == ["a"]

    async def test_without_limits_nothing_is_kept_of_them(self, q: QueueDriver) -> None:
        await q.configure()
        await q.finish(await q.running("a", tenant=ACME), used_tokens=10)
        found = await q.dump()
        assert not [name for name in found if name.startswith(("l:", "limit", "released"))]

    @pytest.mark.parametrize("limit", ["", "many 1", "1", "-1 0", "0 0"])
    async def test_a_limit_that_cannot_be_read_limits_nothing(self, q: QueueDriver, limit: str) -> None:
        await q.configure(tenants=ONE)
        await q.redis.hset(q.queue.keys.fixed("limits"), f"t:{ACME}", limit)
        await q.enqueue(acme_job("a"), acme_job("b"))
        assert len(await q.claimed_ids()) == 2

    @pytest.mark.parametrize("garbage", ["", "soon 0", "1 2 3"])
    async def test_a_count_that_cannot_be_read_begins_anew(self, q: QueueDriver, garbage: str) -> None:
        await q.configure(tenants=ONE)
        bucket = q.queue.keys.of("bucket", f"t:{ACME}")
        await q.redis.set(bucket, garbage)
        await q.enqueue(acme_job("a"), acme_job("b"))
        assert await q.claimed_ids() == ["a"]
        await q.redis.delete(bucket)
        await q.redis.lpush(bucket, "no string")
        await q.look_at_held()
        await q.tick()
        assert await q.claimed_ids() == ["b"]

    # Endpoints

    async def test_a_job_gets_a_permit_of_the_least_busy_endpoint_that_has_one(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"first": RateLimit(requests=20), "second": RateLimit(requests=1)})
        await q.enqueue(*[new_job(f"j{i}") for i in range(5)])
        claim = await q.claim_all(offers={LANE: [Offer("first", 9), Offer("second", 9), Offer("free", 9)]})
        assert [job.endpoint for job in claim.jobs] == ["first", "second", "free", "first", "free"]
        assert (claim.more, claim.without_permit) == (False, {})

    async def test_an_endpoint_gets_no_more_than_it_has_room_for(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"first": RateLimit(requests=600)})
        await q.enqueue(*[new_job(f"j{i}") for i in range(4)])
        claim = await q.claim_all(offers={LANE: [Offer("first", 2), Offer("free", 1)]})
        assert [job.endpoint for job in claim.jobs] == ["first", "free", "first"]
        assert (claim.more, claim.without_permit) == (True, {})

    async def test_endpoints_share_by_weight_and_by_what_they_have_to_do(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"light": RateLimit(requests=600)})
        await q.enqueue(*[new_job(f"j{i}") for i in range(9)])
        light, heavy = (
            Offer("light", 9, outstanding=0, weight=0.5),
            Offer("heavy", 9, outstanding=2, weight=2),
        )
        claim = await q.claim_all(offers={LANE: [light, heavy]})
        assert Counter(job.endpoint for job in claim.jobs) == {"heavy": 7, "light": 2}  # 2 + 7 and 2: 4 to 1

    async def test_of_several_endpoints_the_one_that_has_least_to_do_comes_first(
        self, q: QueueDriver
    ) -> None:
        await q.enqueue(new_job("a"))
        offers = [
            Offer("first", 9, outstanding=3),
            Offer("second", 9, outstanding=1),
            Offer("third", 9, outstanding=2),
        ]
        claim = await q.claim_all(offers={LANE: offers})
        assert [job.endpoint for job in claim.jobs] == ["second"]

    async def test_without_a_permit_a_lane_is_left_alone_and_others_go_on(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"only": RateLimit(requests=1)})
        await q.enqueue(*[new_job(f"a{i}", 9, lane="a") for i in range(3)], new_job("b", 1, lane="b"))
        await q.redis.delete(q.queue.keys.of("wake", "a"), q.queue.keys.of("wake", "b"))
        claim = await q.claim_all(lanes={"a": 9, "b": 9}, offers={"a": [Offer("only", 9)]})
        assert [(job.id, job.endpoint) for job in claim.jobs] == [("a0", "only"), ("b", "")]
        assert not claim.more
        assert claim.without_permit.keys() == {"a"}
        assert 59_000 < claim.without_permit["a"].wait_ms <= 60_000
        assert await q.redis.llen(q.queue.keys.of("wake", "a")) == 0
        assert await states(q, "a1", "a2") == ["waiting", "waiting"]

    async def test_the_wait_is_until_the_first_permit(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"slow": RateLimit(requests=1), "fast": RateLimit(requests=6)})
        await q.enqueue(*[new_job(f"j{i}") for i in range(3)])
        claim = await q.claim_all(offers={LANE: [Offer("slow", 9), Offer("fast", 9)]})
        assert [job.endpoint for job in claim.jobs] == ["slow", "fast"]
        assert 9_000 < claim.without_permit[LANE].wait_ms <= 10_000

    async def test_places_that_an_endpoint_keeps_go_to_the_urgent_alone(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{p}", priority=p) for p in (5, 7, 8, 9)])
        offers = {LANE: [Offer("small", 1, reserved=1), Offer("large", 3, reserved=1)]}
        claim = await q.claim_all(offers=offers)
        assert {job.id: job.endpoint for job in claim.jobs} == {"j9": "small", "j8": "large", "j7": "large"}
        assert (claim.more, claim.more_urgent, claim.without_permit) == (True, False, {})

    async def test_an_empty_lane_waits_for_no_permit(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"only": RateLimit(requests=1)})
        await q.drain_limit("e:only")
        claim = await q.claim_all(offers={LANE: [Offer("only", 9)]})
        assert (claim.jobs, claim.more, claim.without_permit) == ((), False, {})

    async def test_a_lane_without_a_permit_parks_nobody(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE, endpoints={"only": RateLimit(requests=1)})
        await q.enqueue(acme_job("a"))
        await use_up(q)
        await q.drain_limit("e:only")
        assert LANE in (await q.claim_all(offers={LANE: [Offer("only", 9)]})).without_permit
        assert await q.state("a") == "waiting"

    async def test_who_is_held_takes_no_permit_of_an_endpoint(self, q: QueueDriver) -> None:
        await q.configure(tenants=ONE, endpoints={"only": RateLimit(requests=1)})
        await q.enqueue(acme_job("a", 9), new_job("b"))
        await use_up(q)
        claim = await q.claim_all(offers={LANE: [Offer("only", 9)]})
        assert [(job.id, job.endpoint) for job in claim.jobs] == [("b", "only")]

    async def test_the_tokens_of_an_endpoint_are_corrected_at_the_end(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"only": RateLimit(tokens=1000)})
        await q.enqueue(new_job("a", payload=b"x" * 400))
        (job,) = (await q.claim_all(offers={LANE: [Offer("only", 9)]})).jobs
        before = await tokens_back_at_us(q, "e:only")
        await self._write(q, ending(job, used_tokens=1000))
        moved_us = await tokens_back_at_us(q, "e:only") - before
        assert moved_us == pytest.approx(900 * 60_000_000 / 901, abs=2)

    async def test_the_record_remembers_a_limited_endpoint_for_this_attempt_alone(
        self, q: QueueDriver
    ) -> None:
        await q.configure(endpoints={"only": RateLimit(requests=1)})
        await q.enqueue(new_job("a"))
        (job,) = (await q.claim_all(offers={LANE: [Offer("only", 9), Offer("free", 9)]})).jobs
        assert (await q.record("a"))["v"] == "only"
        await q.give_back(job)
        (job,) = (await q.claim_all(offers={LANE: [Offer("only", 9), Offer("free", 9)]})).jobs
        assert job.endpoint == "free"
        assert "v" not in await q.record("a")

    # Moving on to another endpoint

    async def _running_at(self, q: QueueDriver, endpoint: str) -> ClaimedJob:
        await q.enqueue(new_job("a", payload=b"x" * 400))
        (job,) = (await q.claim_all(offers={LANE: [Offer(endpoint, 9)]})).jobs
        return job

    async def test_an_attempt_moves_on_with_a_permit(self, q: QueueDriver) -> None:
        await q.configure(endpoints={name: RateLimit(requests=1, tokens=1000) for name in ("x", "y")})
        job = await self._running_at(q, "x")
        assert await repeat(q, lambda: q.queue.take_permit(job, "y")) == 0
        before = [await tokens_back_at_us(q, f"e:{name}") for name in ("x", "y")]
        await self._write(q, ending(job, used_tokens=200))
        after = [await tokens_back_at_us(q, f"e:{name}") for name in ("x", "y")]
        assert after[0] == before[0]
        assert after[1] > before[1]

    async def test_without_a_permit_it_hears_when_one_comes(self, q: QueueDriver) -> None:
        await q.configure(endpoints={name: RateLimit(requests=1) for name in ("x", "y")})
        job = await self._running_at(q, "x")
        await q.drain_limit("e:y")
        wait_ms = await q.queue.take_permit(job, "y")
        assert isinstance(wait_ms, int)
        assert 50_000 < wait_ms <= 60_000, "a request a minute"
        assert (await q.record("a"))["v"] == "x"

    async def test_an_endpoint_without_a_limit_needs_no_permit(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"x": RateLimit(tokens=1000)})
        job = await self._running_at(q, "x")
        before = await tokens_back_at_us(q, "e:x")
        assert await repeat(q, lambda: q.queue.take_permit(job, "free")) == 0
        await self._write(q, ending(job, used_tokens=5000))
        assert await tokens_back_at_us(q, "e:x") == before

    async def test_who_has_lost_its_job_gets_no_permit(self, q: QueueDriver) -> None:
        await q.configure(endpoints={"y": RateLimit(requests=1)})
        job = await self._running_at(q, "x")
        await q.queue.cancel("a")
        assert await q.queue.take_permit(job, "y") == "lost"
        assert await q.redis.exists(q.queue.keys.of("bucket", "e:y")) == 0
