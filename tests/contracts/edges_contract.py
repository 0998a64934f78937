"""What a queue promises at the edges: exact bounds, equal ranks, damaged records, the lifetimes of keys."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest
from redis.exceptions import ResponseError

from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.records import Conflict, Enqueued, Publication
from tests.contracts.limits_contract import THREE, acme_job, hold, open_gate, states
from tests.contracts.queue_contract import ENDS_WITHOUT_RESULT, OnQueue, reach
from tests.contracts.queue_driver import LANE, LEASE_MS, QueueDriver, audit, event, new_job
from tests.contracts.suspects_contract import make_suspects

AGING_US = 30_000_000


async def at_rank(q: QueueDriver, name: str, rank: int) -> None:
    """Let a waiting or held job have come at that time, in µs."""
    record = await q.record(name)
    place = record["l"] if record["s"] == "waiting" else f"{record['l']} {record['t']}"
    await q.redis.hset(q.queue.keys.of("record", name), "q", rank)
    await q.redis.zadd(q.queue.keys.level(place, int(record["p"])), {name: rank})


class EdgesContract(OnQueue):
    """The behaviour of a `PromptQueue` where it is easy to be off by one."""

    # Order

    async def test_of_equal_ranks_the_higher_level_goes_first(self, q: QueueDriver) -> None:
        base = (await q.now_ms() - 600_000) * 1000
        await q.enqueue(*[new_job(f"p{p}", p) for p in range(8)])
        for p in range(8):
            await at_rank(q, f"p{p}", base + p * AGING_US)
        assert await q.claimed_ids(lanes={LANE: 8}) == [f"p{p}" for p in reversed(range(8))]

    async def test_replacing_a_delayed_job_does_not_take_over_when_that_was_due(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("old", key="K", delay_ms=60_000))
        await q.enqueue(new_job("new", key="K", content="other", dedup=DedupMode.REPLACE))
        await q.enqueue(new_job("next"))
        assert await q.claimed_ids() == ["new", "next"]

    async def test_who_replaces_with_a_delay_comes_in_the_order_of_when_that_is_over(
        self, q: QueueDriver
    ) -> None:
        await q.enqueue(new_job("old", key="K"), new_job("between"))
        await q.enqueue(new_job("new", key="K", content="other", dedup=DedupMode.REPLACE, delay_ms=1))
        await q.pass_ms(1)
        await q.tick()
        assert await q.claimed_ids() == ["between", "new"]

    async def test_contents_of_a_key_that_differ_late_are_a_conflict(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", content="123456789a"))
        assert isinstance((await q.enqueue(new_job("b", key="K", content="123456789b")))[0], Conflict)
        assert isinstance((await q.enqueue(new_job("c", key="K", content="123456789a")))[0], Enqueued)

    async def test_ranks_go_up_even_where_the_clock_stands_behind_the_last_one(self, q: QueueDriver) -> None:
        ahead_us = (await q.now_ms() + 60_000) * 1000
        await q.redis.hset(q.queue.keys.fixed("meta"), "us", ahead_us)
        await q.enqueue(new_job("a"))
        await q.enqueue(new_job("b"))
        assert [int((await q.record(name))["q"]) for name in "ab"] == [ahead_us + 1, ahead_us + 2]

    # Deadlines and lifetimes

    async def test_past_its_deadline_a_running_job_has_no_time_left(self, q: QueueDriver) -> None:
        job = await q.running("a", deadline_ms=60_000)
        await q.pass_deadline("a")
        held = [(job.id, job.token)]
        assert await q.queue.renew(q.worker, held, lease_ms=LEASE_MS, about=b"{}") == [0]

    async def test_a_job_that_is_ready_again_expires_at_its_deadline(self, q: QueueDriver) -> None:
        job = await q.running("a", deadline_ms=60_000)
        await q.give_back(job)
        await q.pass_deadline("a")
        assert (await q.tick()).expired == 1
        assert await q.state("a") == "expired"

    async def test_a_stream_lives_from_its_first_event_on(self, q: QueueDriver) -> None:
        job = await q.running("a")
        stream = q.queue.keys.of("stream", "a")
        await q.publish(job, "a")
        assert await q.redis.pttl(stream) > 3_600_000
        await q.redis.pexpire(stream, 60_000)
        await q.publish(job, "b", first_seq=2)
        assert await q.redis.pttl(stream) <= 60_000, "a lease that is renewed does that, and no event"

    async def test_a_stream_that_begins_with_a_lost_lease_has_its_end_too(self, q: QueueDriver) -> None:
        await q.lose_lease(await q.running("a"))
        assert (await q.tick()).reaped == 1
        assert await q.redis.pttl(q.queue.keys.of("stream", "a")) > 3_600_000

    # Ends and replays

    async def test_an_end_after_events_that_were_left_has_the_next_id(self, q: QueueDriver) -> None:
        job = await q.running("a")
        left = tuple(event("delta", job, seq, text="x") for seq in (1, 2))
        assert await q.finish(job, seq=3, events=left)
        ids = [one["id"] for one in await q.events("a")]
        assert ids == ["0-1", *[f"{job.token}-{seq}" for seq in (1, 2, 3)]]
        assert [one["type"] for one in await q.events("a", (job.token, 2))] == ["done"]
        assert await q.events("a", (job.token, 3)) == []

    async def test_a_replay_from_the_beginning_of_an_attempt_leaves_the_earlier_ones_out(
        self, q: QueueDriver
    ) -> None:
        first = await q.running("a")
        await q.publish(first, "x")
        await q.give_back(first, seq=2)
        again = await q.claim()
        await q.publish(again, "y")
        assert [one["id"] for one in await q.events("a", (again.token, 0))] == [f"{again.token}-1"]

    async def test_a_replay_that_has_just_all_events_goes_on_to_the_end(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, *"abc")
        await q.finish(job, seq=4)
        page = await q.replay("a", (0, 1), limit=3)
        assert not page.more
        assert orjson.loads(page.events[-1])["type"] == "done"
        assert (await q.replay("a", (0, 1), limit=2)).more

    async def test_an_answer_that_has_gone_is_replayed_as_empty(self, q: QueueDriver, untidy: None) -> None:
        await reach(q, JobState.DONE)
        await q.redis.delete(q.queue.keys.of("result", "a"))
        assert (await q.last_event("a"))["result"] == {"text": ""}

    async def test_an_error_that_has_gone_is_replayed_by_its_reason(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await reach(q, JobState.FAILED)
        record = q.queue.keys.of("record", "a")
        await q.redis.hdel(record, "i")
        assert (await q.last_event("a"))["error"]["code"] == "boom"
        await q.redis.hdel(record, "r")
        assert (await q.last_event("a"))["error"]["code"] == "unknown"

    @pytest.mark.parametrize("n", [999, 1000, 1001, 2500])
    async def test_a_write_of_many_events_stores_each_of_them(self, q: QueueDriver, n: int) -> None:
        job = await q.running("a")
        assert await q.publish(job, *["x"] * n)
        stored = await q.redis.lrange(q.queue.keys.of("stream", "a"), 0, -1)
        assert [orjson.loads(one)["id"] for one in stored] == [
            f"{job.token}-{seq}" for seq in range(1, n + 1)
        ]

    async def test_a_history_that_is_too_long_is_cut_to_its_bound(self, q: QueueDriver) -> None:
        job = await q.running("a")
        entries = [[n, "retry", "w", n, f"reason {n}"] for n in range(900)]
        long = orjson.dumps(entries).decode()[1:-1]
        await q.redis.hset(q.queue.keys.of("record", "a"), "y", long)
        assert await q.give_back(job)
        kept = (await q.record("a"))["y"]
        assert 8192 - 40 < len(kept) <= 8192
        assert [entry[0] for entry in await q.history("a")][:4] == [0, 1, 2, 3]

    async def test_an_end_that_broke_off_half_way_is_finished_when_it_comes_again(
        self, q: QueueDriver
    ) -> None:
        job = await q.running("a", key="K", deadline_ms=60_000)
        record = q.queue.keys.of("record", "a")
        await q.redis.hset(record, mapping={"s": "done", "e": await q.now_ms(), "z": 1})
        assert await q.finish(job)
        assert await q.redis.pttl(record) > 0
        assert await q.owner("K") is None
        await audit(q.queue)
        counted = (await q.meta())["t:done"]
        assert await q.finish(job)
        assert (await q.meta())["t:done"] == counted, "once more changes nothing"

    # Claims that come again

    async def test_a_repeated_claim_leaves_out_what_was_given_to_another(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        claim = await q.queue.claim("same", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        await q.lose_lease(claim.jobs[0])
        await q.tick()
        await q.queue.claim("another", "w2", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        again = await q.queue.claim("same", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        assert [(job.id, job.token) for job in again.jobs] == [("b", claim.jobs[1].token)]

    async def test_a_repeated_claim_leaves_out_what_has_lost_its_request(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        claim = await q.queue.claim("same", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        await q.redis.delete(q.queue.keys.of("payload", "a"))
        again = await q.queue.claim("same", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        assert [(job.id, job.token) for job in again.jobs] == [("b", claim.jobs[1].token)]

    # Times

    async def test_a_retry_is_due_after_its_delay_and_a_job_that_is_put_off_comes_after_those_before(
        self, q: QueueDriver
    ) -> None:
        job, before = await q.running("a"), await q.now_ms()
        await q.give_back(job, delay_ms=60_000)
        assert before + 60_000 <= int((await q.record("a"))["u"]) <= await q.now_ms() + 60_000
        await q.enqueue(new_job("b", delay_ms=1))
        assert await q.queue.reschedule("b", 60_000) is JobState.DELAYED
        assert before + 60_000 <= int((await q.record("b"))["q"]) // 1000 <= await q.now_ms() + 61_000
        assert (await q.history("b"))[-1][4] == "due in 60000 ms"
        assert await q.queue.reschedule("b", 1) is JobState.DELAYED
        assert (await q.history("b"))[-1][4] == "due in 1 ms"

    async def test_who_joins_allows_no_attempts_that_the_queue_does_not(self, q: QueueDriver) -> None:
        await q.configure(max_attempts=1)
        await q.enqueue(new_job("a", key="K", max_attempts=1), new_job("b", key="K"))
        assert (await q.record("a"))["a"] == "1"

    # Damage

    async def test_a_member_whose_job_is_elsewhere_goes_and_the_job_stays_as_it_is(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await reach(q, JobState.DONE)
        await q.enqueue(new_job("b"))
        await q.redis.zadd(q.queue.keys.level(LANE, 5), {"a": 1})
        assert await q.claimed_ids() == ["b"]
        assert await q.state("a") == "done"
        assert await q.event_types("a") == ["queued", "done"]

    @pytest.mark.parametrize(("field", "value"), [("q", None), ("p", "urgent"), ("l", None)])
    async def test_a_running_job_whose_record_is_damaged_is_not_given_back(
        self, q: QueueDriver, untidy: None, field: str, value: str | None
    ) -> None:
        job = await q.running("a")
        record = q.queue.keys.of("record", "a")
        await (q.redis.hdel(record, field) if value is None else q.redis.hset(record, field, value))
        before = await q.dump()
        assert not await q.give_back(job)
        assert await q.dump() == before

    async def test_a_delayed_job_without_a_record_counts_no_more(self, q: QueueDriver, untidy: None) -> None:
        await q.enqueue(new_job("gone", delay_ms=1), *[new_job(f"j{n}") for n in range(3)])
        await q.redis.delete(q.queue.keys.of("record", "gone"))
        await q.pass_ms(1)
        await q.tick()
        assert await q.waiting() == 3

    async def test_a_lease_without_a_record_is_told(self, q: QueueDriver, untidy: None) -> None:
        job = await q.running("gone")
        await q.lose_lease(job)
        await q.redis.delete(q.queue.keys.of("record", "gone"))
        await q.tick()
        assert await q.redis.hkeys(q.queue.keys.fixed("garbage")) == [b"gone"]

    async def test_a_key_that_another_job_has_got_lives_on_as_it_is(
        self, q: QueueDriver, untidy: None
    ) -> None:
        job = await q.running("a", key="K", dedup=DedupMode.WINDOW)
        key = q.queue.keys.dedup("default", "K")
        await q.redis.set(key, "another")
        await q.finish(job)
        assert (await q.owner("K"), await q.redis.pttl(key)) == ("another", -1)

    # Wake tokens and counts

    @pytest.mark.parametrize(("priority", "urgent"), [(7, 0), (8, 1), (9, 1)])
    async def test_eight_and_nine_wake_processes_that_have_only_kept_places(
        self, q: QueueDriver, priority: int, urgent: int
    ) -> None:
        await q.enqueue(new_job("a", priority))
        assert await q.redis.llen(q.queue.keys.of("urgent", LANE)) == urgent

    async def test_an_urgent_suspect_wakes_as_any_urgent_job_does(self, q: QueueDriver) -> None:
        await make_suspects(q, "s", priority=8)
        urgent = q.queue.keys.of("urgent", LANE)
        await q.redis.delete(urgent, q.queue.keys.of("wake", LANE))
        await q.tick()
        assert await q.redis.llen(urgent) == 1

    async def test_retries_and_returns_are_counted_apart(self, q: QueueDriver) -> None:
        await q.give_back(await q.running("a"))
        await q.give_back(await q.claim(), counts=False)
        await q.give_back(await q.claim(), counts=False)
        meta = await q.meta()
        assert (meta["t:retried"], meta["t:given_back"]) == ("1", "2")

    async def test_a_delayed_job_whose_record_is_damaged_counts_no_more(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await q.enqueue(new_job("a", delay_ms=1), *[new_job(f"j{n}") for n in range(3)])
        await q.redis.hset(q.queue.keys.of("record", "a"), "p", "urgent")
        await q.pass_ms(1)
        await q.tick()
        assert (await q.waiting(), await q.waiting(LANE)) == (3, 3)

    # Bounds of arguments and settings

    async def test_without_settings_answers_stay_an_hour_and_dead_letters_a_week(
        self, q: QueueDriver
    ) -> None:
        key = q.queue.keys.dedup("default", "K")
        await q.finish(await q.running("a", key="K", dedup=DedupMode.WINDOW))
        await q.finish(await q.running("b"), JobState.FAILED)
        hour_ms, week_ms = 3_600_000, 7 * 24 * 3_600_000
        for where, most_ms in (
            (q.queue.keys.of("record", "a"), hour_ms),
            (key, hour_ms),
            (q.queue.keys.of("record", "b"), week_ms),
        ):
            assert most_ms - 60_000 < await q.redis.pttl(where) <= most_ms, where

    async def test_a_name_may_have_1024_characters_and_no_more(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        longest = replace(q, worker="w" * 1024)
        assert await longest.claimed_ids() == ["a"]
        with pytest.raises(ResponseError):
            await replace(q, worker="w" * 1025).claimed_ids()

    async def test_the_shortest_lease_is_a_millisecond(self, q: QueueDriver) -> None:
        job = await q.running("a")
        assert await q.queue.renew(q.worker, [(job.id, job.token)], lease_ms=1, about=b"{}") == [None]

    async def test_dead_letters_may_go_after_a_millisecond(self, q: QueueDriver, untidy: None) -> None:
        await q.configure(dead_ttl_ms=1)
        await q.finish(await q.running("a"), JobState.FAILED)
        await q.pass_ms(1)
        assert await q.state("a") is None

    # Maintenance

    async def test_what_is_listed_goes_when_its_time_has_come_and_no_earlier(
        self, q: QueueDriver, untidy: None
    ) -> None:
        finished, now_ms = q.queue.keys.fixed("finished"), await q.now_ms()
        await q.redis.zadd(
            finished, {f"old{n}": now_ms - 10 + n for n in range(3)} | {"new": now_ms + 60_000}
        )
        assert (await q.tick()).forgotten == 3
        assert await q.redis.zrange(finished, 0, -1) == [b"new"]

    async def test_who_does_not_lead_asks_again_when_the_leader_may_be_gone_and_not_at_once(
        self, q: QueueDriver
    ) -> None:
        await q.tick("w1")
        leader = q.queue.keys.fixed("leader")
        assert 50_000 < (await q.tick("w2", lock_ms=60_000)).next_ms <= 60_000
        report = None
        while report is None or report.leader:  # on a slow machine the lock may be gone by then
            await q.redis.set(leader, "w1", px=20)
            report = await q.tick("w2")
        assert report.next_ms == 50

    async def test_lanes_are_looked_after_32_at_once(self, q: QueueDriver) -> None:
        await q.redis.sadd(q.queue.keys.fixed("lanes"), *[f"lane{n}" for n in range(40)])
        assert (await q.tick()).next_ms == 50, "there are more"

    async def test_a_lane_without_jobs_gets_no_wake_token(self, q: QueueDriver) -> None:
        await q.finish(await q.running("a"))
        wake = q.queue.keys.of("wake", LANE)
        await q.redis.delete(wake)
        assert (await q.tick()).rearmed == 0
        assert await q.redis.llen(wake) == 0

    async def test_all_places_beside_the_lanes_are_mended(self, q: QueueDriver) -> None:
        beside = q.queue.keys.fixed("beside")
        await q.redis.hset(beside, mapping={f"{LANE} tenant{n}": 1 for n in range(200)})
        await q.tick(mend_ms=0)
        for _ in range(20):
            await q.tick()
        assert await q.redis.hlen(beside) == 0, "none of them has jobs"

    async def test_waiting_work_is_looked_at_once_a_second(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        await q.tick()
        await q.enqueue(new_job("b"))
        await q.tick()
        assert await q.work() == 1

    async def test_one_call_adds_2000_entries_of_work_over_all_lanes(self, q: QueueDriver) -> None:
        lanes = ("x", "y")
        await q.enqueue(*[new_job(f"{lane}{n}", lane=lane) for lane in lanes for n in range(3)])
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={f"mean:{lane}": 500_000 for lane in lanes})
        await q.work_is_due()
        await q.tick()
        assert await q.work("x") + await q.work("y") == 2000

    async def test_one_dead_letter_too_many_is_dropped(self, q: QueueDriver) -> None:
        await q.configure(max_dead=2)
        for name in ("first", "second", "third"):
            await q.finish(await q.running(name), JobState.FAILED)
            await q.pass_ms(1)
        for _ in range(2):
            await q.tick()
        assert await q.redis.zrange(q.queue.keys.fixed("dead"), 0, -1) == [b"second", b"third"]

    @pytest.mark.parametrize("state", [JobState.DONE, *ENDS_WITHOUT_RESULT])
    async def test_whatever_ends_counts_in_the_rate(self, q: QueueDriver, state: JobState) -> None:
        meta = q.queue.keys.fixed("meta")
        await q.tick()
        await q.pass_ms(2)
        await reach(q, state)
        await q.redis.hset(meta, "sampled", 0)
        await q.tick()
        assert float((await q.meta())["rate"]) > 0

    async def test_the_rate_is_in_jobs_a_second(self, q: QueueDriver) -> None:
        for name in "abcd":
            await q.finish(await q.running(name))
        await q.redis.lpush(q.queue.keys.fixed("samples"), f"{await q.now_ms() - 40_000} 0")
        await q.redis.hset(q.queue.keys.fixed("meta"), "sampled", 0)
        await q.tick()
        assert 0.05 < float((await q.meta())["rate"]) <= 0.1, "four in forty seconds"

    async def test_the_rate_is_of_the_last_seven_samples(self, q: QueueDriver) -> None:
        meta = q.queue.keys.fixed("meta")
        for _ in range(9):
            await q.redis.hset(meta, "sampled", 0)
            await q.tick()
        assert await q.redis.llen(q.queue.keys.fixed("samples")) == 7

    async def test_events_without_text_are_no_waste(self, q: QueueDriver) -> None:
        job = await q.running("a", payload=b"{}" * 20)
        told = [
            event("delta", job, seq, **fields)
            for seq, fields in ((1, {"text": "four"}), (2, {"reasoning": "x"}))
        ]
        await q.queue.write(publications=[Publication("a", job.token, 1, tuple(told))])
        await q.lose_lease(job)
        assert (await q.tick()).reaped == 1
        assert (await q.meta())["t:wasted_tokens"] == "11", "(40 + 4) bytes"

    async def test_a_full_chunk_of_lost_leases_brings_the_next_tick_at_once(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        for job in (await q.claim_all()).jobs:
            await q.lose_lease(job)
        first = await q.tick(chunk=1)
        assert (first.reaped, first.next_ms) == (1, 0)

    # Limits

    async def test_one_that_has_less_rank_at_a_higher_level_stays_behind_who_was_released(
        self, q: QueueDriver
    ) -> None:
        await hold(q, acme_job("usual", 5), acme_job("next", 5))
        await open_gate(q)
        await q.tick()
        base = int((await q.record("usual"))["q"])
        await q.enqueue(acme_job("higher", 6))
        await at_rank(q, "higher", base + 2 * AGING_US)
        await q.look_at_held()
        await q.tick()
        assert await states(q, "usual", "next", "higher") == ["waiting", "held", "held"]

    async def test_of_two_as_urgent_the_later_stays_behind_who_was_released(self, q: QueueDriver) -> None:
        await hold(q, acme_job("first", 9), acme_job("second", 9))
        await open_gate(q)
        await q.tick()
        await q.look_at_held()
        await q.tick()
        assert await states(q, "first", "second") == ["waiting", "held"]

    async def test_one_more_that_is_held_does_not_bring_the_look_forward(self, q: QueueDriver) -> None:
        await hold(q, acme_job("a"))
        await q.tick()
        limited = q.queue.keys.fixed("limited")
        due = await q.redis.zrange(limited, 0, -1, withscores=True)
        assert due[0][1] > await q.now_ms(), "when the tenant may begin the next"
        await q.enqueue(acme_job("b", 7))
        assert await q.redis.zrange(limited, 0, -1, withscores=True) == due

    @pytest.mark.parametrize(("a_minute", "at_once"), [(15, 1), (19, 1), (20, 2), (29, 2)])
    async def test_a_tenth_is_rounded_down(self, q: QueueDriver, a_minute: int, at_once: int) -> None:
        await q.configure(tenants={"acme": RateLimit(requests=a_minute)})
        await q.enqueue(*[acme_job(f"j{n}") for n in range(4)])
        assert len(await q.claimed_ids()) == at_once

    async def test_held_jobs_that_only_a_worker_can_free_are_not_looked_at_with_each_tick(
        self, q: QueueDriver
    ) -> None:
        await hold(q, acme_job("usual"), acme_job("next"))
        await open_gate(q)
        await q.tick()
        await q.look_at_held()
        await q.tick()
        ((_, due_ms),) = await q.redis.zrange(q.queue.keys.fixed("limited"), 0, -1, withscores=True)
        assert due_ms > await q.now_ms()

    async def test_a_jump_of_the_clock_gives_nobody_permits(self, q: QueueDriver) -> None:
        await q.tick()
        await hold(q, acme_job("a"))
        await q.redis.zadd(q.queue.keys.fixed("limited"), {f"{LANE} acme": 0})
        await q.put_clock(3_600_000)
        assert (await q.tick(silent_ms=10)).in_doubt
        assert (await q.tick(silent_ms=20, is_sure=True)).released == 0
        assert await q.state("a") == "held"

    async def test_a_limit_that_was_reached_after_a_jump_of_the_clock_holds_for_a_minute_at_most(
        self, q: QueueDriver
    ) -> None:
        await q.configure(tenants=THREE)
        await q.tick()
        await q.put_clock(3_600_000)
        await q.enqueue(*[acme_job(f"j{n}") for n in range(4)])
        assert len(await q.claimed_ids()) == 3
        assert (await q.tick(silent_ms=0)).in_doubt
        now_ms = (await q.tick(silent_ms=0, is_sure=True)).tick_ms or 0
        await q.tick()
        ((_, due_ms),) = await q.redis.zrange(q.queue.keys.fixed("limited"), 0, -1, withscores=True)
        assert now_ms < due_ms <= now_ms + 60_000
        await q.put_clock(60_000)
        assert (await q.tick(silent_ms=60_000)).released == 1
