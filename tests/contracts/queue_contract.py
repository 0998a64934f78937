"""What the queue promises, on whatever server it runs.

A subclass gives the fixture `queue`: a `PromptQueue` on an empty server. After every test all that is on the
server is audited, except where the test asks for `untidy` because it put garbage there itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import orjson
import pytest
from redis.exceptions import OutOfMemoryError, ResponseError

from scheduler import admin
from scheduler.model import DedupMode, JobState
from scheduler.queue.inspection.jobs import read_job
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import (
    START,
    ClaimedJob,
    Conflict,
    Cursor,
    Enqueued,
    Full,
    Publication,
    Replay,
    Return,
    Reuse,
    WriteOutcome,
)
from tests.contracts.queue_driver import (
    LANE,
    LEASE_MS,
    QueueDriver,
    audit,
    deltas,
    drain,
    ending,
    event,
    new_job,
    returning,
)
from tests.patience import SOON_S

ENDS_WITHOUT_RESULT = [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.SHED]


async def reach(q: QueueDriver, state: JobState, name: str = "a", **fields: Any) -> None:
    """Bring a new job into a state, in a queue that is otherwise empty."""
    match state:
        case JobState.WAITING:
            await q.enqueue(new_job(name, **fields))
        case JobState.DELAYED:
            await q.enqueue(new_job(name, delay_ms=60_000, **fields))
        case JobState.RUNNING:
            await q.running(name, **fields)
        case JobState.DONE | JobState.FAILED:
            await q.finish(await q.running(name, **fields), state)
        case JobState.CANCELLED:
            await q.enqueue(new_job(name, **fields))
            await q.queue.cancel(name)
        case JobState.EXPIRED:
            await q.enqueue(new_job(name, deadline_ms=1, **fields))
            await q.pass_ms(1)
            await q.tick()
        case JobState.SHED:
            await q.configure(max_waiting=1, when_full="shed")
            await q.enqueue(new_job(name, **fields))
            await q.enqueue(new_job("urgent", 9))
            await q.finish(await q.claim())
            await q.configure()
    assert await q.state(name) == state.value


HOUR_MS = 3_600_000


async def fail(q: QueueDriver, job: ClaimedJob, error: bytes) -> None:
    """Let an attempt fail with these words, and its job go back at once."""
    back = Return(job.id, job.token, event("retrying", job, 1), True, 0, error)
    assert not (await q.queue.write(returns=[back])).refused


class OnQueue:
    """What the contracts of a queue have in common: a driver, and an audit at the end."""

    @pytest.fixture
    async def queue(self) -> PromptQueue:
        raise NotImplementedError("a subclass says which server the queue is on")

    @pytest.fixture
    async def q(self, queue: PromptQueue, request: pytest.FixtureRequest) -> AsyncIterator[QueueDriver]:
        yield QueueDriver(queue)
        if "untidy" not in request.fixturenames:
            await audit(queue)
            assert not (await admin.audit(queue)).problems, "what operators run finds nothing either"

    @pytest.fixture
    def untidy(self) -> None:
        """The test leaves garbage behind, so that an audit would find it."""


def cursor_of(event: bytes) -> Cursor:
    token, _, seq = orjson.loads(event)["id"].partition("-")
    return int(token), int(seq)


class QueueContract(OnQueue):
    """The behaviour of a `PromptQueue`."""

    # Order

    async def test_equal_priorities_are_claimed_in_the_order_of_their_enqueue(self, q: QueueDriver) -> None:
        names = [f"job-{i:03d}" for i in reversed(range(100))]
        await q.enqueue(*[new_job(name) for name in names])
        assert await q.claimed_ids() == names

    async def test_no_two_jobs_share_a_rank(self, q: QueueDriver) -> None:
        for call in range(3):
            await q.enqueue(*[new_job(f"{call}-{i}", delay_ms=500 if i % 2 else None) for i in range(64)])
        ranks = [int((await q.record(f"{call}-{i}"))["q"]) for call in range(3) for i in range(64)]
        assert len(set(ranks)) == len(ranks)
        assert all(before < after for before, after in pairwise(ranks[0:64:2]))

    async def test_a_rank_has_all_digits_of_a_microsecond(self, q: QueueDriver) -> None:
        before = await q.now_ms() * 1000
        await q.enqueue(*[new_job(f"j{i}") for i in range(3)])
        level = await q.redis.zrange(q.queue.keys.level(LANE, 5), 0, -1, withscores=True)
        ranks = [int(score) for _, score in level]
        assert ranks == [int((await q.record(f"j{i}"))["q"]) for i in range(3)]
        assert ranks == [ranks[0], ranks[0] + 1, ranks[0] + 2]
        assert 0 <= ranks[0] - before < 10_000_000

    async def test_nine_then_eight_come_before_whatever_has_aged(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("old", 7), new_job("eight", 8), new_job("nine", 9))
        await q.backdate("old", 20)
        assert await drain(q) == ["nine", "eight", "old"]

    async def test_below_eight_a_level_is_worth_the_aging_time(self, q: QueueDriver) -> None:
        await q.configure(aging_ms=30_000)
        await q.enqueue(new_job("seven", 7), new_job("five-59", 5), new_job("five-61", 5))
        await q.backdate("five-59", 59)
        await q.backdate("five-61", 61)
        assert await q.claimed_ids() == ["five-61", "seven", "five-59"]

    async def test_aging_is_thirty_seconds_unless_configured(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("six", 6), new_job("five-29", 5), new_job("five-31", 5))
        await q.backdate("five-29", 29)
        await q.backdate("five-31", 31)
        assert await q.claimed_ids() == ["five-31", "six", "five-29"]

    async def test_without_aging_priorities_are_strict(self, q: QueueDriver) -> None:
        await q.configure(aging_ms=0)
        await q.enqueue(*[new_job(f"p{p}", p) for p in (0, 3, 9, 1, 8, 5)])
        await q.backdate("p0", 10_000)
        assert await drain(q) == ["p9", "p8", "p5", "p3", "p1", "p0"]

    async def test_one_claim_in_twenty_goes_to_the_oldest_that_has_waited_past_its_bound(
        self, q: QueueDriver
    ) -> None:
        await q.enqueue(*[new_job(f"n{i:02d}", 9) for i in range(60)], new_job("old", 1), new_job("older", 2))
        await q.backdate("old", 9 * 30)
        await q.backdate("older", 9 * 30 + 5)
        order = await drain(q)
        assert order.index("older") == 19
        assert order.index("old") == 39

    async def test_one_claim_in_twenty_holds_inside_one_claim_of_many(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"n{i:02d}", 9) for i in range(60)], new_job("old", 1))
        await q.backdate("old", 9 * 30)
        assert (await q.claimed_ids(50)).index("old") == 19

    async def test_who_has_not_waited_past_its_bound_gets_no_such_turn(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"n{i:02d}", 9) for i in range(25)], new_job("low", 1))
        await q.backdate("low", 100)
        assert (await drain(q))[-1] == "low"

    async def test_a_retry_keeps_its_enqueue_time(self, q: QueueDriver) -> None:
        first = await q.running("first")
        await q.enqueue(new_job("second"))
        assert await q.give_back(first)
        assert await drain(q) == ["first", "second"]

    async def test_a_retry_with_a_delay_comes_back_to_its_old_place(self, q: QueueDriver) -> None:
        first = await q.running("first")
        await q.enqueue(new_job("second"))
        assert await q.give_back(first, delay_ms=1)
        await q.pass_ms(1)
        await q.tick()
        assert await drain(q) == ["first", "second"]

    async def test_a_delayed_job_is_not_claimed_before_it_is_due(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("later", delay_ms=60_000))
        assert (await q.tick()).promoted == 0
        assert await q.claimed_ids() == []
        assert await q.state("later") == "delayed"

    async def test_a_delayed_job_ages_from_when_it_is_due(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("delayed", delay_ms=30), new_job("at-once"))
        await q.pass_ms(30)
        await q.enqueue(new_job("after"))
        assert (await q.tick()).promoted == 1
        assert await q.claimed_ids() == ["at-once", "delayed", "after"]

    async def test_jobs_with_the_same_delay_keep_their_order(self, q: QueueDriver) -> None:
        names = [f"job-{i:02d}" for i in reversed(range(20))]
        await q.enqueue(*[new_job(name, delay_ms=2) for name in names])
        await q.pass_ms(3)
        await q.tick()
        assert await q.claimed_ids() == names

    async def test_tick_says_when_the_next_job_is_due(self, q: QueueDriver) -> None:
        for n in range(100):
            await q.enqueue(new_job(f"soon{n}", delay_ms=150))
            report = await q.tick()
            if not report.promoted:  # on a slow machine it is due by then
                break
        assert 0 < report.next_ms <= 150

    # Position

    @pytest.mark.parametrize("aging_ms", [0, 30_000])
    async def test_position_is_the_order_of_the_claims(self, q: QueueDriver, aging_ms: int) -> None:
        await q.configure(aging_ms=aging_ms)
        priorities = [5, 9, 0, 7, 8, 3, 5, 1, 9, 7, 2, 4, 6, 8, 0, 5]
        names = [f"job-{i}" for i in range(len(priorities))]
        await q.enqueue(*[new_job(name, p) for name, p in zip(names, priorities, strict=True)])
        for i, name in enumerate(names):
            await q.backdate(name, i * 37 % 100)
        positions = {name: await q.queue.position(name) for name in names}
        assert sorted(positions, key=lambda name: positions[name] or 0) == await q.claimed_ids()
        assert set(positions.values()) == set(range(len(names)))

    async def test_position_counts_those_that_have_aged_just_as_much_at_a_higher_level(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await q.configure(aging_ms=1000)
        await q.enqueue(new_job("low", 5), new_job("high", 6))
        rank = int((await q.record("high"))["q"]) - 1_000_000
        await q.redis.hset(q.queue.keys.of("record", "low"), "q", rank)
        await q.redis.zadd(q.queue.keys.level(LANE, 5), {"low": rank})
        assert (await q.queue.position("high"), await q.queue.position("low")) == (0, 1)
        assert await q.claimed_ids() == ["high", "low"]

    async def test_whatever_has_aged_nine_comes_first(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"p{p}", p) for p in range(10)])
        for p in range(8):
            await q.backdate(f"p{p}", 10_000)
        assert [await q.queue.position(f"p{p}") for p in (9, 8, 7, 6, 0)] == [0, 1, 2, 3, 9]

    async def test_a_job_that_stands_in_no_level_is_before_its_own(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        await q.redis.zrem(q.queue.keys.level(LANE, 5), "b")
        assert await q.queue.position("b") == 0

    async def test_only_a_waiting_job_has_a_position(self, q: QueueDriver) -> None:
        await q.running("running")
        await q.enqueue(new_job("delayed", delay_ms=60_000))
        assert [await q.queue.position(name) for name in ("running", "delayed", "unknown")] == [None] * 3

    # Claims

    async def test_a_claim_takes_the_best_over_several_lanes(self, q: QueueDriver) -> None:
        await q.enqueue(
            new_job("a5", 5, lane="a"),
            new_job("b7", 7, lane="b"),
            new_job("b9", 9, lane="b"),
            new_job("c6", 6, lane="c"),
        )
        assert await q.claimed_ids(3, lanes={"a": 9, "b": 9, "c": 9}) == ["b9", "b7", "c6"]

    async def test_a_claim_takes_of_a_lane_at_most_its_quota(self, q: QueueDriver) -> None:
        await q.enqueue(
            *[new_job(f"a{i}", 9, lane="a") for i in range(5)],
            *[new_job(f"b{i}", 1, lane="b") for i in range(5)],
        )
        claim = await q.claim_all(10, lanes={"a": 2, "b": 1, "c": 3})
        assert [job.id for job in claim.jobs] == ["a0", "a1", "b0"]
        assert claim.more
        assert await q.claimed_ids(10, lanes={"a": 0, "b": 1}) == ["b1"]

    async def test_a_claim_takes_only_the_named_lanes(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", lane="a"), new_job("b", lane="b"))
        claim = await q.claim_all(lanes={"b": 5})
        assert [job.id for job in claim.jobs] == ["b"]
        assert not claim.more

    async def test_a_claim_says_whether_work_was_left(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        assert (await q.claim_all(1)).more
        assert not (await q.claim_all(1)).more
        assert not (await q.claim_all(1)).more

    async def test_a_big_claim_takes_many_levels_and_pages_in_order(self, q: QueueDriver) -> None:
        names = [f"{p}-{i:03d}" for p in (9, 8, 7) for i in range(40)]
        await q.enqueue(*[new_job(name, int(name[0])) for name in names])
        claim = await q.claim_all(110)
        assert [job.id for job in claim.jobs] == names[:110]
        assert await q.claimed_ids() == names[110:]

    async def test_a_claim_brings_no_more_than_one_call_can(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{i:03}") for i in range(130)])
        claim = await q.claim_all(1000)
        assert ([job.id for job in claim.jobs], claim.more) == ([f"j{i:03}" for i in range(128)], True)

    async def test_a_claimed_job_carries_its_record(self, q: QueueDriver) -> None:
        await q.enqueue(
            new_job(
                "a",
                7,
                tenant="acme",
                deadline_ms=5000,
                max_attempts=4,
                result_ttl_ms=7000,
                payload=b'{"x":"\xc3\xa9"}',
            )
        )
        job = await q.claim()
        assert (job.id, job.lane, job.tenant, job.priority) == ("a", LANE, "acme", 7)
        assert (job.attempt, job.failures, job.max_attempts, job.result_ttl_ms) == (1, 0, 4, 7000)
        assert job.payload == b'{"x":"\xc3\xa9"}'
        assert job.remaining_ms is not None
        assert 4000 < job.remaining_ms <= 5000
        assert 0 <= job.waited_ms < 1000

    async def test_what_was_not_given_stays_open(self, q: QueueDriver) -> None:
        job = await q.running("a")
        assert (job.tenant, job.remaining_ms, job.max_attempts, job.result_ttl_ms) == (
            "default",
            None,
            None,
            None,
        )

    async def test_attempts_and_failures_are_counted(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.give_back(job, counts=True)
        second = await q.claim()
        assert (second.attempt, second.failures) == (2, 1)
        await q.give_back(second, counts=False)
        third = await q.claim()
        assert (third.attempt, third.failures) == (3, 1)

    async def test_waited_counts_from_when_a_job_became_ready(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        await q.backdate("a", 42)
        assert 42_000 <= (await q.claim()).waited_ms < 43_000

    # Dedup

    async def test_a_duplicate_joins_the_waiting_job(self, q: QueueDriver) -> None:
        assert await q.enqueue(new_job("a", key="K")) == [Enqueued("a")]
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("a", deduplicated=True)]
        assert await q.state("b") is None
        assert await drain(q) == ["a"]

    async def test_a_duplicate_joins_inside_one_call(self, q: QueueDriver) -> None:
        assert await q.enqueue(new_job("a", key="K"), new_job("b", key="K")) == [
            Enqueued("a"),
            Enqueued("a", True),
        ]

    async def test_a_duplicate_joins_the_running_job(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("a", deduplicated=True)]
        assert await q.finish(job)
        assert await q.claimed_ids() == []

    async def test_a_duplicate_joins_a_delayed_job(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", delay_ms=60_000))
        assert await q.enqueue(new_job("b", key="K", delay_ms=90_000)) == [Enqueued("a", True)]
        assert await q.state("a") == "delayed"

    @pytest.mark.parametrize("state", [JobState.DONE, *ENDS_WITHOUT_RESULT])
    async def test_the_key_is_free_once_the_job_has_ended(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state, key="K")
        assert await q.owner("K") is None
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("b")]
        assert await q.owner("K") == "b"

    async def test_dedup_keys_are_per_tenant(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", tenant="one"))
        assert await q.enqueue(new_job("b", key="K", tenant="two")) == [Enqueued("b")]
        assert await q.enqueue(new_job("c", key="K")) == [Enqueued("c")]
        assert await q.enqueue(new_job("d", key="K", tenant="two")) == [Enqueued("b", True)]

    async def test_other_content_under_the_same_key_is_a_conflict(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", content="one"))
        assert await q.enqueue(new_job("b", key="K", content="two")) == [Conflict("a")]
        assert await q.enqueue(new_job("c", key="K", content="one")) == [Enqueued("a", True)]
        assert await q.state("b") is None

    async def test_a_join_raises_the_priority_and_keeps_the_place_in_time(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 3, key="K"), new_job("b", 7))
        rank = (await q.record("a"))["q"]
        await q.enqueue(new_job("c", 7, key="K"))
        record = await q.record("a")
        assert (record["p"], record["q"]) == ("7", rank)
        assert await q.claimed_ids() == ["a", "b"]

    async def test_a_join_does_not_lower_the_priority(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 7, key="K"))
        await q.enqueue(new_job("b", 3, key="K"))
        assert (await q.claim()).priority == 7

    async def test_a_join_raises_the_priority_of_a_running_job_for_its_next_attempt(
        self, q: QueueDriver
    ) -> None:
        job = await q.running("a", 3, key="K")
        await q.enqueue(new_job("b", 8, key="K"))
        await q.give_back(job)
        assert (await q.claim()).priority == 8

    async def test_a_join_takes_the_latest_deadline(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", deadline_ms=10_000))
        await q.enqueue(new_job("b", key="K", deadline_ms=90_000))
        await q.enqueue(new_job("c", key="K", deadline_ms=20_000))
        remaining = (await q.claim()).remaining_ms
        assert remaining is not None
        assert 80_000 < remaining <= 90_000

    async def test_a_join_without_a_deadline_takes_it_away(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", deadline_ms=60_000))
        await q.enqueue(new_job("b", key="K"))
        await q.enqueue(new_job("c", key="K", deadline_ms=60_000))
        assert await q.redis.zscore(q.queue.keys.fixed("deadlines"), "a") is None
        assert (await q.claim()).remaining_ms is None

    async def test_a_join_moves_the_deadline_of_a_running_job(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K", deadline_ms=10_000)
        await q.enqueue(new_job("b", key="K", deadline_ms=90_000))
        (left,) = await q.queue.renew(q.worker, [(job.id, job.token)], lease_ms=LEASE_MS, about=b"{}")
        assert isinstance(left, int)
        assert 80_000 < left <= 90_000

    async def test_a_join_takes_the_earliest_due_time(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", delay_ms=60_000))
        await q.enqueue(new_job("b", key="K", delay_ms=10_000))
        await q.enqueue(new_job("c", key="K", delay_ms=30_000))
        due = int((await q.record("a"))["u"]) - await q.now_ms()
        assert 9_000 < due <= 10_000

    async def test_a_join_that_wants_it_now_makes_a_delayed_job_ready(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("first"))
        await q.enqueue(new_job("a", key="K", delay_ms=60_000))
        await q.enqueue(new_job("b", key="K"))
        await q.enqueue(new_job("last"))
        assert await q.claimed_ids() == ["first", "a", "last"]

    async def test_a_join_does_not_shorten_a_back_off(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        await q.give_back(job, delay_ms=60_000)
        await q.enqueue(new_job("b", key="K"))
        assert await q.state("a") == "delayed"

    async def test_a_join_keeps_the_result_for_the_longer_time(self, q: QueueDriver) -> None:
        await q.configure(result_ttl_ms=50_000, max_result_ttl_ms=200_000)
        for asked, joins, kept in ((None, 90_000, 90_000), (90_000, 20_000, 90_000), (20_000, None, 50_000)):
            await q.enqueue(new_job(f"a{kept}{asked}", key="K", result_ttl_ms=asked))
            await q.enqueue(new_job(f"b{kept}{asked}", key="K", result_ttl_ms=joins))
            job = await q.claim()
            await q.finish(job, result_ttl_ms=asked or 50_000)
            assert kept - 30_000 < await q.redis.pttl(q.queue.keys.of("result", job.id)) <= kept

    async def test_a_join_while_it_runs_keeps_the_result_for_longer_too(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        await q.enqueue(new_job("b", key="K", result_ttl_ms=90_000_000))
        await q.finish(job, result_ttl_ms=1000)
        assert await q.redis.pttl(q.queue.keys.of("result", "a")) > 80_000_000

    async def test_a_join_allows_the_larger_number_of_attempts(self, q: QueueDriver) -> None:
        await q.configure(max_attempts=4, max_attempts__code=9)
        for lane, first, joins, allowed in (
            (LANE, None, 5, 5),
            (LANE, None, 3, None),
            (LANE, 7, 5, 7),
            (LANE, 2, None, 4),
            ("code", 5, None, 9),
        ):
            name = f"{lane}-{first}-{joins}"
            await q.enqueue(new_job(f"a-{name}", lane=lane, key=name, max_attempts=first))
            await q.enqueue(new_job(f"b-{name}", lane=lane, key=name, max_attempts=joins))
            assert (await q.claim(lanes={lane: 1})).max_attempts == allowed, name

    async def test_no_request_keeps_its_result_for_longer_than_the_settings_allow(
        self, q: QueueDriver
    ) -> None:
        await q.configure(max_result_ttl_ms=60_000)
        job = await q.running("a", result_ttl_ms=10**10)
        assert job.result_ttl_ms == 60_000
        await q.finish(job, result_ttl_ms=10**10)
        assert await q.redis.pttl(q.queue.keys.of("result", "a")) <= 60_000

    async def test_joining_is_outside_the_bound(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1)
        await q.enqueue(new_job("a", key="K"))
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("a", True)]
        assert await q.waiting() == 1

    async def test_a_window_serves_the_finished_answer_again(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K", dedup=DedupMode.WINDOW)
        await q.finish(job)
        (again,) = await q.enqueue(new_job("b", key="K", dedup=DedupMode.WINDOW))
        assert isinstance(again, Enqueued)
        assert (again.job_id, again.deduplicated) == ("a", True)
        assert (await q.last_event("a"))["result"] == {"text": "a"}

    async def test_an_answer_that_serves_again_has_its_age_and_is_counted(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K", dedup=DedupMode.WINDOW)
        await q.enqueue(new_job("joined", key="K", dedup=DedupMode.WINDOW))
        await q.finish(job)
        for hits, name in enumerate(["b", "c", "c"], start=1):
            began = await q.now_ms()
            await q.pass_ms(5)
            (again,) = await q.enqueue(new_job(name, key="K", dedup=DedupMode.WINDOW))
            assert isinstance(again, Enqueued)
            assert again.reuse is not None
            ended_ms = int((await q.record("a"))["e"])
            assert again.reuse.hits == min(hits, 2), "the same call again is no other hit"
            assert began + 5 - ended_ms <= again.reuse.age_ms <= await q.now_ms() - ended_ms
        assert (await q.record("a"))["H"] == "2"

    async def test_a_window_joins_what_is_still_at_work(self, q: QueueDriver) -> None:
        await q.running("a", key="K", dedup=DedupMode.WINDOW)
        assert await q.enqueue(new_job("b", key="K", dedup=DedupMode.WINDOW)) == [Enqueued("a", True)]

    async def test_a_window_begins_at_the_end_and_ends_after_its_time(self, q: QueueDriver) -> None:
        await q.configure(dedup_ttl_ms=300_000)
        key = q.queue.keys.dedup("default", "K")
        job = await q.running("a", key="K", dedup=DedupMode.WINDOW)
        assert await q.redis.pttl(key) == -1
        await q.finish(job)
        assert 240_000 < await q.redis.pttl(key) <= 300_000
        await q.redis.pexpire(key, 1)
        await q.pass_ms(1)
        assert await q.enqueue(new_job("b", key="K", dedup=DedupMode.WINDOW)) == [Enqueued("b")]

    async def test_the_answer_is_kept_as_long_as_its_window(self, q: QueueDriver) -> None:
        await q.configure(dedup_ttl_ms=60_000)
        job = await q.running("a", key="K", dedup=DedupMode.WINDOW)
        await q.publish(job, "x")
        await q.finish(job, seq=2, result_ttl_ms=1000)
        for kind in ("record", "result", "stream"):
            assert await q.redis.pttl(q.queue.keys.of(kind, "a")) > 50_000, kind

    async def test_only_an_answer_opens_a_window(self, q: QueueDriver) -> None:
        await q.finish(await q.running("a", key="K", dedup=DedupMode.WINDOW), JobState.FAILED)
        assert await q.enqueue(new_job("b", key="K", dedup=DedupMode.WINDOW)) == [Enqueued("b")]

    async def test_other_content_inside_a_window_is_a_conflict(self, q: QueueDriver) -> None:
        await q.finish(await q.running("a", key="K", dedup=DedupMode.WINDOW))
        assert await q.enqueue(new_job("b", key="K", content="x", dedup=DedupMode.WINDOW)) == [Conflict("a")]

    async def test_a_window_does_not_bind_who_did_not_ask_for_it(self, q: QueueDriver) -> None:
        await q.finish(await q.running("a", key="K", dedup=DedupMode.WINDOW))
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("b")]
        assert await q.redis.pttl(q.queue.keys.dedup("default", "K")) == -1

    async def test_a_join_in_window_mode_opens_a_window_for_the_job(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        await q.enqueue(new_job("b", key="K", dedup=DedupMode.WINDOW))
        await q.finish(job)
        (again,) = await q.enqueue(new_job("c", key="K", dedup=DedupMode.WINDOW))
        assert isinstance(again, Enqueued)
        assert (again.job_id, again.reuse is not None) == ("a", True)

    async def test_replacing_ends_the_waiting_job_and_takes_its_place(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"), new_job("between"))
        assert await q.enqueue(new_job("b", key="K", content="new", dedup=DedupMode.REPLACE)) == [
            Enqueued("b")
        ]
        ended = await q.last_event("a")
        assert (ended["type"], ended["reason"]) == ("cancelled", "replaced")
        assert await q.owner("K") == "b"
        assert await q.claimed_ids() == ["b", "between"]

    async def test_replacing_takes_the_newcomers_priority_at_the_old_time(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 5, key="K"), new_job("seven", 7))
        await q.enqueue(new_job("b", 7, key="K", dedup=DedupMode.REPLACE))
        assert await q.claimed_ids() == ["b", "seven"]

    async def test_a_replacement_waits_from_its_own_enqueue(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"))
        await q.backdate("a", 42)
        before = await q.now_ms()
        await q.enqueue(new_job("b", key="K", dedup=DedupMode.REPLACE))
        info = await read_job(q.queue, "b")
        assert info is not None
        assert info.enqueued_at_ms >= before
        assert (await q.claim()).waited_ms < 42_000

    async def test_a_replacement_that_is_requeued_keeps_its_enqueue(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"))
        await q.backdate("a", 42)
        await q.enqueue(new_job("b", key="K", dedup=DedupMode.REPLACE))
        enqueued = await read_job(q.queue, "b")
        await q.queue.cancel("b")
        assert await q.queue.requeue("b") == "waiting"
        again = await read_job(q.queue, "b")
        assert enqueued is not None
        assert again is not None
        assert again.enqueued_at_ms == enqueued.enqueued_at_ms
        assert (await q.claim()).waited_ms < 42_000

    async def test_replacing_a_delayed_job_starts_its_own_delay(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K", delay_ms=10_000))
        await q.enqueue(new_job("b", key="K", delay_ms=50_000, dedup=DedupMode.REPLACE))
        assert (await q.state("a"), await q.state("b")) == ("cancelled", "delayed")
        assert int((await q.record("b"))["u"]) - await q.now_ms() > 40_000

    async def test_replacing_never_runs_the_newcomer_before_its_delay(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"))
        await q.enqueue(new_job("b", key="K", delay_ms=50_000, dedup=DedupMode.REPLACE))
        assert await q.claimed_ids() == []

    async def test_replacing_lets_a_running_job_go_on_and_owns_the_key(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        assert await q.enqueue(new_job("b", key="K", dedup=DedupMode.REPLACE)) == [Enqueued("b")]
        assert await q.finish(job)
        assert await q.owner("K") == "b"
        assert await q.enqueue(new_job("c", key="K")) == [Enqueued("b", True)]
        assert await q.claimed_ids() == ["b"]

    async def test_replacing_is_outside_the_bound(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1)
        await q.enqueue(new_job("a", key="K"))
        assert await q.enqueue(new_job("b", key="K", dedup=DedupMode.REPLACE)) == [Enqueued("b")]
        assert await q.waiting() == 1

    async def test_replacing_in_another_lane_keeps_to_the_bound_of_that_lane(self, q: QueueDriver) -> None:
        await q.configure(max_waiting__code=1)
        await q.enqueue(new_job("full", lane="code"), new_job("a", key="K"))
        replacing = new_job("b", lane="code", key="K", dedup=DedupMode.REPLACE)
        assert isinstance((await q.enqueue(replacing))[0], Full)
        assert await q.state("a") == "waiting", "what could not be replaced stays"
        assert await q.claimed_ids(lanes={"code": 1}) == ["full"]
        assert await q.enqueue(replacing) == [Enqueued("b")]
        assert await q.state("a") == "cancelled"

    async def test_the_key_is_released_only_by_its_owner(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        await q.enqueue(new_job("b", key="K", dedup=DedupMode.REPLACE))
        await q.queue.cancel("a")
        assert await q.owner("K") == "b"
        assert not await q.finish(job)
        await q.queue.cancel("b")
        assert await q.owner("K") is None

    # Tickets and ids

    async def test_cancelling_gives_a_ticket_back_and_the_last_one_ends_the_job(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(name, key="K") for name in ("a", "b", "c")])
        assert await q.queue.cancel("a", "a") == "ticket_returned"
        assert await q.queue.cancel("a", "b") == "ticket_returned"
        assert await q.state("a") == "waiting"
        assert await q.queue.cancel("a", "c") == "cancelled"
        assert await q.event_types("a") == ["queued", "cancelled"]

    async def test_a_ticket_given_back_twice_counts_once(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(name, key="K") for name in ("a", "b")])
        assert await q.queue.cancel("a", "b") == "ticket_returned"
        assert await q.queue.cancel("a", "b") == "ticket_returned"
        assert await q.state("a") == "waiting"

    async def test_a_ticket_of_somebody_else_ends_nothing(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        assert await q.queue.cancel("a", "stranger") == "ticket_returned"
        assert await q.state("a") == "waiting"

    async def test_the_owner_can_leave_before_somebody_joins(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"), new_job("b", key="K"))
        await q.queue.cancel("a", "a")
        await q.enqueue(new_job("c", key="K"))
        assert await q.queue.cancel("a", "b") == "ticket_returned"
        assert await q.queue.cancel("a", "c") == "cancelled"

    async def test_without_a_ticket_the_job_ends_whoever_holds_some(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"), new_job("b", key="K"))
        assert await q.queue.cancel("a") == "cancelled"
        assert await q.state("a") == "cancelled"

    async def test_an_id_that_exists_is_that_job(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", payload=b"1"))
        assert await q.enqueue(new_job("a", 9, payload=b"2")) == [Enqueued("a")]
        job = await q.claim()
        assert (job.payload, job.priority) == (b"1", 5)
        await q.finish(job)
        assert await q.enqueue(new_job("a")) == [Enqueued("a")]
        assert await q.state("a") == "done"

    # The bound

    async def test_the_bound_is_exact(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=10)
        outcomes = await q.enqueue(*[new_job(f"j{i}", delay_ms=60_000 if i % 3 else None) for i in range(12)])
        assert [isinstance(outcome, Enqueued) for outcome in outcomes] == [True] * 10 + [False] * 2
        assert await q.waiting() == 10
        await q.queue.cancel("j1")
        assert await q.enqueue(new_job("x"), new_job("y")) == [
            Enqueued("x"),
            Full(10, 10, None, 1000, "reject"),
        ]

    async def test_running_and_ended_jobs_are_not_counted(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1)
        job = await q.running("a")
        assert await q.enqueue(new_job("b")) == [Enqueued("b")]
        await q.finish(job)
        assert isinstance((await q.enqueue(new_job("c")))[0], Full)

    async def test_a_lane_has_its_own_bound(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=10, max_waiting__small=2)
        outcomes = await q.enqueue(
            *[new_job(f"s{i}", lane="small") for i in range(3)], new_job("big", lane="big")
        )
        assert outcomes[2] == Full(2, 2, "small", 1000, "reject")
        assert outcomes[3] == Enqueued("big")
        assert await q.waiting("small") == 2

    async def test_a_refusal_estimates_when_there_will_be_room(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1000)
        await q.redis.hset(q.queue.keys.fixed("meta"), "rate", "20.000")
        await q.configure(max_waiting=1)
        await q.enqueue(new_job("a"))
        (full,) = await q.enqueue(new_job("b"))
        assert isinstance(full, Full)
        assert full.retry_after_ms == 100
        await q.configure(max_waiting=1, max_waiting__chat=1)
        await q.redis.hset(q.queue.keys.fixed("meta"), "rate", "0.001")
        (full,) = await q.enqueue(new_job("b"))
        assert isinstance(full, Full)
        assert full.retry_after_ms == 10_000

    async def test_returned_jobs_are_never_refused(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=2)
        await q.enqueue(new_job("a"), new_job("b"))
        a, b = (await q.claim_all()).jobs
        await q.enqueue(new_job("c"), new_job("d"))
        assert await q.give_back(a)
        await q.lose_lease(b)
        assert (await q.tick()).reaped == 1
        assert await q.waiting() == 4
        assert isinstance((await q.enqueue(new_job("e")))[0], Full)

    async def test_shedding_drops_the_least_urgent_and_newest(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=4, when_full="shed")
        await q.enqueue(new_job("low-1", 1), new_job("low-2", 1), new_job("mid", 4), new_job("top", 7))
        assert await q.enqueue(new_job("new-5", 5), new_job("new-6", 6)) == [
            Enqueued("new-5"),
            Enqueued("new-6"),
        ]
        assert [await q.state(name) for name in ("low-2", "low-1", "mid")] == ["shed", "shed", "waiting"]
        shed = await q.last_event("low-2")
        assert (shed["type"], shed["reason"]) == ("shed", "queue_full")
        assert await q.waiting() == 4

    async def test_shedding_drops_the_newest_over_all_lanes(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=3, when_full="shed")
        await q.enqueue(new_job("a1", 1, lane="a"), new_job("b1", 1, lane="b"), new_job("a2", 1, lane="a"))
        for shed in ("a2", "b1", "a1"):
            await q.enqueue(new_job(f"over-{shed}", 5))
            assert await q.state(shed) == "shed"

    async def test_shedding_needs_a_newcomer_that_outranks(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1, when_full="shed")
        await q.enqueue(new_job("a", 5))
        assert await q.enqueue(new_job("b", 5)) == [Full(1, 1, None, 1000, "shed")]
        assert await q.state("a") == "waiting"

    async def test_shedding_spares_what_has_run(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=2, when_full="shed")
        job = await q.running("ran", 1)
        await q.enqueue(new_job("fresh", 2))
        await q.give_back(job)
        await q.enqueue(new_job("new", 9))
        assert (await q.state("ran"), await q.state("fresh")) == ("waiting", "shed")
        assert isinstance((await q.enqueue(new_job("newer", 5)))[0], Full)

    async def test_shedding_looks_through_all_lanes_but_for_a_full_one(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=3, max_waiting__b=1, when_full="shed")
        await q.enqueue(new_job("a1", 1, lane="a"), new_job("b2", 2, lane="b"), new_job("c3", 3, lane="c"))
        await q.enqueue(new_job("b5", 5, lane="b"))
        assert [await q.state(name) for name in ("a1", "b2", "c3")] == ["waiting", "shed", "waiting"]
        await q.enqueue(new_job("c5", 5, lane="c"))
        assert [await q.state(name) for name in ("a1", "b5", "c3")] == ["shed", "waiting", "waiting"]

    async def test_shedding_drops_one_for_one(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{i}", 1) for i in range(5)])
        await q.configure(max_waiting=2, when_full="shed")
        assert await q.enqueue(new_job("urgent", 9)) == [Enqueued("urgent")]
        assert await q.waiting() == 5

    async def test_shedding_takes_delayed_jobs_that_never_ran(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"night-{i}", 1, delay_ms=60_000 + i, key=f"N{i}") for i in range(3)])
        tried = await q.running("tried", 0)
        await q.give_back(tried, delay_ms=90_000)
        await q.configure(max_waiting=4, when_full="shed")
        assert await q.enqueue(new_job("a", 1)) != [Enqueued("a")], "it does not outrank them"
        assert await q.enqueue(new_job("a", 9), new_job("b", 2)) == [Enqueued("a"), Enqueued("b")]
        assert [await q.state(f"night-{i}") for i in range(3)] == ["delayed", "shed", "shed"]
        assert await q.state("tried") == "delayed"

    async def test_a_full_lane_sheds_its_own_delayed_jobs(self, q: QueueDriver) -> None:
        await q.enqueue(
            new_job("here", 1, delay_ms=60_000), new_job("there", 0, lane="code", delay_ms=90_000)
        )
        await q.configure(max_waiting__chat=1, when_full="shed")
        assert await q.enqueue(new_job("urgent", 9)) == [Enqueued("urgent")]
        assert [await q.state("here"), await q.state("there")] == ["shed", "delayed"]

    async def test_the_less_urgent_goes_whether_it_waits_or_is_delayed(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("waits", 1), new_job("delayed", 2, delay_ms=60_000))
        await q.configure(max_waiting=2, when_full="shed")
        await q.enqueue(new_job("urgent", 9))
        assert [await q.state("waits"), await q.state("delayed")] == ["shed", "delayed"]

    async def test_a_full_queue_that_blocks_lets_in_who_waits_for_room(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1, when_full="block")
        await q.enqueue(new_job("a"))
        assert await q.enqueue(new_job("b")) == [Full(1, 1, None, 1000, "block")]
        waiter = asyncio.create_task(q.queue.wait_for_space(10))
        await asyncio.sleep(0.02)
        assert not waiter.done()
        await q.claim()
        await asyncio.wait_for(waiter, SOON_S)
        assert await q.enqueue(new_job("b")) == [Enqueued("b")]

    async def test_who_gets_in_tells_the_next_while_there_is_room(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=3, when_full="block")
        await q.enqueue(*[new_job(f"j{i}") for i in range(3)])
        waiters = [asyncio.create_task(self._enter(q, f"w{i}")) for i in range(3)]
        await asyncio.sleep(0.02)
        assert len(await q.claimed_ids()) == 3
        await asyncio.wait_for(asyncio.gather(*waiters), SOON_S)
        assert sorted(await q.claimed_ids()) == ["w0", "w1", "w2"]

    @staticmethod
    async def _enter(q: QueueDriver, name: str) -> None:
        while not isinstance((await q.enqueue(new_job(name)))[0], Enqueued):
            await q.queue.wait_for_space(10)

    async def test_a_full_lane_gives_no_token_of_room(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=10, max_waiting__chat=1, when_full="block")
        await q.enqueue(new_job("a"))
        await q.queue.wait_for_space(0.01)
        assert isinstance((await q.enqueue(new_job("b")))[0], Full)
        assert await q.redis.llen(q.queue.keys.fixed("space")) == 0

    async def test_waiting_for_room_ends_after_its_time(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1, when_full="block")
        await q.enqueue(new_job("a"), new_job("b"))
        await asyncio.wait_for(q.queue.wait_for_space(0.01), SOON_S)

    # Leases, tokens, fencing

    async def test_tokens_grow_with_every_claim(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{i}") for i in range(5)])
        jobs = [*(await q.claim_all(3)).jobs, *(await q.claim_all(3)).jobs]
        await q.give_back(jobs[0])
        jobs.append(await q.claim())
        tokens = [job.token for job in jobs]
        assert tokens == sorted(set(tokens))

    async def test_a_write_with_an_old_token_is_refused(self, q: QueueDriver) -> None:
        old = await q.running("a")
        await q.give_back(old)
        new = await q.claim()
        assert not await q.publish(old, "late", first_seq=2)
        assert not await q.give_back(old, seq=3)
        assert not await q.finish(old, seq=3)
        assert await q.state("a") == "running"
        assert await q.event_types("a") == ["queued", "retrying"]
        assert await q.publish(new, "fresh")
        assert await q.finish(new, seq=2)

    async def test_a_returned_job_takes_no_more_of_its_old_attempt(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.give_back(job)
        assert not await q.publish(job, "late", first_seq=2)
        assert not await q.finish(job, seq=2)
        assert await q.state("a") == "waiting"

    async def test_an_ended_job_takes_no_more_events(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.finish(job)
        assert not await q.publish(job, "late", first_seq=2)
        assert not await q.give_back(job, seq=2)
        assert await q.event_types("a") == ["queued", "done"]

    async def test_writes_about_unknown_jobs_are_refused(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.finish(job)
        await q.redis.delete(q.queue.keys.of("record", "a"), q.queue.keys.of("stream", "a"))
        await q.redis.zrem(q.queue.keys.fixed("finished"), "a")
        outcome = await q.queue.write(
            publications=[deltas(job, "x")], returns=[returning(job)], endings=[ending(job)]
        )
        assert outcome == WriteOutcome(frozenset({("a", job.token)}))
        assert await q.state("a") is None

    async def test_the_token_of_a_lost_attempt_no_longer_stands_before_the_next_claim(
        self, q: QueueDriver
    ) -> None:
        job = await q.running("a")
        await q.lose_lease(job)
        await q.tick()
        assert not await q.give_back(job)
        assert (await q.record("a"))["k"] != str(job.token)

    async def test_a_late_worker_whose_token_still_stands_may_finish(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.lose_lease(job)
        assert await q.finish(job)
        assert (await q.tick()).reaped == 0
        assert await q.state("a") == "done"

    async def test_renewing_tells_of_deadlines_and_losses(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("open"), new_job("bound", deadline_ms=50_000), new_job("gone"))
        jobs = (await q.claim_all()).jobs
        await q.queue.cancel("gone")
        held = [(job.id, job.token) for job in jobs] + [("unknown", 1), ("open", 99)]
        open_, bound, *lost = await q.queue.renew(q.worker, held, lease_ms=LEASE_MS, about=b"{}")
        assert open_ is None
        assert isinstance(bound, int)
        assert 40_000 < bound <= 50_000
        assert lost == ["lost"] * 3

    async def test_a_renewed_lease_ends_later(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        job = await q.claim(lease_ms=1)
        before = await q.redis.zscore(q.queue.keys.fixed("leases"), "a")
        await q.queue.renew(q.worker, [("a", job.token)], lease_ms=LEASE_MS, about=b"{}")
        after = await q.redis.zscore(q.queue.keys.fixed("leases"), "a")
        assert before is not None
        assert after is not None
        assert after > before + 50_000

    async def test_a_worker_process_that_renews_is_listed_with_what_it_says(self, q: QueueDriver) -> None:
        await q.queue.renew("w9", [], lease_ms=LEASE_MS, about=b'{"pid":1}')
        assert await q.redis.zrange(q.queue.keys.fixed("workers"), 0, -1) == [b"w9"]
        assert await q.redis.get(q.queue.keys.of("worker", "w9")) == b'{"pid":1}'
        await q.queue.forget_worker("w9")
        assert await q.redis.zcard(q.queue.keys.fixed("workers")) == 0
        assert await q.redis.get(q.queue.keys.of("worker", "w9")) is None

    async def test_a_stopping_leader_lets_go_of_the_lock(self, q: QueueDriver) -> None:
        await q.tick("w1")
        await q.queue.forget_worker("w2")
        assert not (await q.tick("w2")).leader
        await q.queue.forget_worker("w1")
        assert (await q.tick("w2")).leader

    # Reaping

    async def test_what_a_lost_attempt_has_cost_is_counted(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "x" * 100, "y" * 60)
        bytes_ = 160 + await q.redis.strlen(q.queue.keys.of("payload", "a"))
        await q.lose_lease(job)
        await q.tick()
        silent = await q.claim()
        await q.lose_lease(silent)
        await q.tick()
        totals = await q.redis.hmget(q.queue.keys.fixed("meta"), "t:lost", "t:repeated", "t:wasted_tokens")
        assert [int(n) for n in totals] == [2, 1, bytes_ // 4], "no engine was called by the second"

    async def test_what_an_attempt_that_broke_off_has_cost_is_counted_once(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "x" * 100, "y" * 60)
        bytes_ = 160 + await q.redis.strlen(q.queue.keys.of("payload", "a"))
        for _ in range(2):
            assert await q.give_back(job, seq=3)
        unheard = await q.claim()
        assert await q.give_back(unheard)
        totals = await q.redis.hmget(q.queue.keys.fixed("meta"), "t:retried", "t:repeated", "t:wasted_tokens")
        assert [int(n) for n in totals] == [2, 1, bytes_ // 4], "the second had no answer yet"

    async def test_a_lost_lease_returns_the_job_at_its_own_place(self, q: QueueDriver) -> None:
        job = await q.running("a", 6)
        await q.enqueue(new_job("b", 6))
        await q.publish(job, "half an ans")
        await q.lose_lease(job)
        assert (await q.tick()).reaped == 1
        assert await q.event_types("a") == ["queued", "delta", "retrying"]
        assert (await q.last_event("a"))["error"]["code"] == "lease_lost"
        assert not await q.publish(job, "wer", first_seq=2)
        assert not await q.finish(job, seq=2)
        again, _ = (await q.claim_all()).jobs
        assert (again.id, again.attempt, again.failures, again.priority) == ("a", 2, 0, 6)
        assert (await q.record("a"))["o"] == "1"

    async def test_a_lease_that_stands_is_not_reaped(self, q: QueueDriver) -> None:
        await q.running("a")
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"reap_after": 0, "tick": await q.now_ms()})
        assert (await q.tick()).reaped == 0
        assert await q.state("a") == "running"

    async def test_after_an_outage_nothing_is_reaped_for_one_lease(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.lose_lease(job)
        outage = {"reap_after": 0, "tick": await q.now_ms() - 200}
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping=outage)
        assert (await q.tick(lease_ms=300)).reaped == 0
        assert (await q.tick(lease_ms=300)).reaped == 0
        resumed_at = await q.now_ms()
        while (await q.tick(lease_ms=300)).reaped == 0:
            await asyncio.sleep(0.02)
        assert await q.now_ms() - resumed_at >= 250
        assert await q.state("a") == "waiting"

    async def test_the_first_tick_of_all_counts_as_after_an_outage(self, q: QueueDriver) -> None:
        await q.running("a")
        await q.redis.zadd(q.queue.keys.fixed("leases"), {"a": 1})
        assert (await q.tick()).reaped == 0

    async def test_a_leader_ticks_often_enough_to_be_no_outage_itself(self, q: QueueDriver) -> None:
        assert (await q.tick(lease_ms=500)).next_ms <= 125
        assert (await q.tick(lease_ms=60_000)).next_ms == 250

    # A clock that jumps

    async def test_delayed_work_goes_on_soon_after_the_clock_was_put_back(self, q: QueueDriver) -> None:
        await q.tick()
        await q.enqueue(new_job("a", delay_ms=20))
        await q.put_clock(-HOUR_MS)
        await q.enqueue(new_job("b", delay_ms=20, deadline_ms=60_000))
        assert (await q.tick()).leader
        promoted = 0
        while promoted < 2:
            promoted += (await q.tick()).promoted
        assert sorted(await q.claimed_ids()) == ["a", "b"]

    async def test_a_clock_that_was_put_back_keeps_no_dead_leader_and_no_dead_lease(
        self, q: QueueDriver
    ) -> None:
        await q.tick("w1", lease_ms=100)
        await q.enqueue(new_job("a"))
        lost = await q.claim(lease_ms=100)
        await q.put_clock(-HOUR_MS)
        reports = [await q.tick("w2", lease_ms=100)]
        assert reports[0].leader, "the lock of the dead one would end in an hour"
        while not reports[-1].reaped:
            await asyncio.sleep(0.02)
            reports.append(await q.tick("w2", lease_ms=100))
        assert await q.state(lost.id) == "waiting"

    async def test_a_clock_that_is_put_back_lets_nothing_expire_early(self, q: QueueDriver) -> None:
        await q.tick()
        await q.put_clock(-HOUR_MS)
        await q.enqueue(new_job("a", deadline_ms=60_000))
        report = await q.tick()
        assert (report.leader, report.expired) == (True, 0)
        assert 59_000 < ((await q.claim()).remaining_ms or 0) <= 60_000

    async def test_a_clock_that_is_put_forward_between_two_ticks_lets_nothing_expire(
        self, q: QueueDriver
    ) -> None:
        await q.tick()
        await q.enqueue(new_job("late", deadline_ms=60_000), new_job("delayed", delay_ms=60_000))
        await q.put_clock(HOUR_MS)
        doubtful = await q.tick(silent_ms=10)
        assert (doubtful.in_doubt, doubtful.leader) == (True, False)
        report = await q.tick(silent_ms=20, is_sure=True)
        assert (report.leader, report.expired, report.promoted) == (True, 0, 0)
        assert 50_000 < ((await q.claim()).remaining_ms or 0) < 70_000

    async def test_a_tick_that_was_long_on_its_way_is_no_jump_of_the_clock(self, q: QueueDriver) -> None:
        await q.tick()
        await q.enqueue(new_job("late", deadline_ms=60_000))
        await q.put_clock(HOUR_MS)
        assert (await q.tick(silent_ms=10)).in_doubt
        report = await q.tick(silent_ms=HOUR_MS, is_sure=True)
        assert (report.leader, report.expired) == (True, 1)

    @pytest.mark.parametrize("by_ms", [HOUR_MS, -HOUR_MS])
    async def test_the_clock_survives_a_redis_that_loses_how_far_it_is_off(
        self, q: QueueDriver, by_ms: int
    ) -> None:
        told = await q.tick()
        await q.put_clock(by_ms)
        known = await q.tick(silent_ms=0, known_tick_ms=told.tick_ms, is_sure=True)
        await q.enqueue(new_job("late", deadline_ms=60_000), new_job("delayed", delay_ms=60_000))
        await q.redis.delete(q.queue.keys.fixed("meta"))
        await q.put_clock(by_ms)
        report = await q.tick(silent_ms=0, known_tick_ms=known.tick_ms, is_sure=True)
        assert (report.data_lost, report.expired, report.promoted) == (True, 0, 0)
        assert report.tick_ms == pytest.approx(known.tick_ms, abs=2000)
        assert 58_000 < ((await q.claim()).remaining_ms or 0) <= 62_000

    async def test_a_process_that_does_not_lead_hears_the_time_of_the_last_tick(self, q: QueueDriver) -> None:
        led = await q.tick("w1")
        followed = await q.tick("w2", silent_ms=HOUR_MS, known_tick_ms=1)
        assert (followed.leader, followed.tick_ms, followed.data_lost) == (False, led.tick_ms, False)

    async def test_a_process_that_knows_of_no_tick_starts_by_redis_clock(self, q: QueueDriver) -> None:
        report = await q.tick()
        assert (report.leader, report.data_lost) == (True, False)

    async def test_time_in_which_nobody_ticked_has_gone(self, q: QueueDriver) -> None:
        await q.tick()
        await q.enqueue(new_job("late", deadline_ms=60_000))
        await q.put_clock(HOUR_MS)
        await q.queue.forget_worker("w1")
        report = await q.tick("w2")
        assert (report.leader, report.expired) == (True, 1)

    # What autoscalers read

    async def test_waiting_work_is_as_long_a_list_as_a_place_needs_seconds_for_it(
        self, q: QueueDriver
    ) -> None:
        await q.enqueue(*[new_job(f"job-{n}") for n in range(4)])
        await q.tick()
        assert await q.work() == 4  # a second each, while nobody knows
        job = await q.claim()
        await q.began_s_ago(job, 20)
        await q.finish(job)
        await q.work_is_due()
        await q.tick()
        assert 60 <= await q.work() <= 61

    async def test_waiting_work_follows_what_jobs_take_of_late(self, q: QueueDriver) -> None:
        for name, took_s in (("slow", 33), ("fast", 0)):
            await q.enqueue(new_job(name))
            job = await q.claim()
            await q.began_s_ago(job, took_s)
            await q.finish(job)
            await q.enqueue(new_job(f"after-{name}"))
            await q.work_is_due()
            await q.tick()
        # One fast job beside 32 that are remembered as slow, and two that wait.
        assert 64 <= await q.work() <= 65

    async def test_attempts_that_were_given_back_count_as_time_of_their_job(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        for _ in range(2):
            job = await q.claim()
            await q.began_s_ago(job, 10)
            await q.give_back(job)
        await q.finish(await q.claim())
        await q.enqueue(new_job("b"))
        await q.work_is_due()
        await q.tick()
        assert 20 <= await q.work() <= 21

    async def test_what_waits_in_a_paused_lane_is_no_work(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        await q.tick()
        assert await q.work() == 1
        await q.queue.pause(LANE)
        await q.work_is_due()
        await q.tick()
        assert await q.work() == 0

    async def test_no_waiting_work_is_no_key(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        await q.tick()
        await q.finish(await q.claim())
        await q.work_is_due()
        await q.tick()
        assert await q.work() == 0
        assert not await q.redis.exists(q.queue.keys.of("work", LANE))

    async def test_very_much_waiting_work_is_bounded(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        job = await q.claim()
        await q.began_s_ago(job, 1_000_000)
        await q.finish(job)
        await q.enqueue(new_job("b"))
        for most in [*range(2000, 100_001, 2000), 100_000]:
            await q.work_is_due()
            await q.tick()
            assert await q.work() == most

    async def test_refusals_count_by_whose_bound_was_reached(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=3, max_waiting__chat=1)
        await q.enqueue(new_job("a"), new_job("b"))
        await q.enqueue(new_job("c", lane="other"), new_job("d", lane="other"), new_job("e", lane="other"))
        meta = await q.meta()
        assert (meta["t:refused"], meta["t:refused_lane"]) == ("2", "1")

    # Deadlines

    async def test_a_waiting_job_expires_at_its_deadline(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", deadline_ms=1), new_job("b", deadline_ms=60_000))
        await q.pass_ms(1)
        assert (await q.tick()).expired == 1
        expired = await q.last_event("a")
        assert (expired["type"], expired["reason"]) == ("expired", "deadline")
        assert await q.claimed_ids() == ["b"]

    async def test_a_delayed_job_expires_at_its_deadline(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", deadline_ms=1, delay_ms=60_000))
        await q.pass_ms(1)
        assert (await q.tick()).expired == 1
        assert await q.state("a") == "expired"

    async def test_a_claim_expires_what_is_late_and_takes_the_next(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("late", 9, deadline_ms=1), new_job("good"))
        await q.pass_ms(1)
        assert await q.claimed_ids(1) == ["good"]
        assert await q.event_types("late") == ["queued", "expired"]

    async def test_a_lost_job_past_its_deadline_expires(self, q: QueueDriver) -> None:
        job = await q.running("a", deadline_ms=60_000)
        await q.pass_deadline("a")
        await q.lose_lease(job)
        assert (await q.tick()).reaped == 1
        assert await q.event_types("a") == ["queued", "expired"]

    async def test_a_running_job_is_left_to_its_worker_at_the_deadline(self, q: QueueDriver) -> None:
        job = await q.running("a", deadline_ms=60_000)
        await q.pass_deadline("a")
        assert (await q.tick()).expired == 0
        assert await q.finish(job, JobState.EXPIRED, reason="deadline")
        assert await q.state("a") == "expired"

    async def test_a_returned_job_still_has_its_deadline(self, q: QueueDriver) -> None:
        job = await q.running("a", deadline_ms=60_000)
        await q.give_back(job, delay_ms=60_000)
        await q.pass_deadline("a")
        assert (await q.tick()).expired == 1
        assert await q.state("a") == "expired"

    # Returning

    async def test_a_failure_is_counted_and_its_error_kept(self, q: QueueDriver) -> None:
        job = await q.running("a")
        assert await q.give_back(job, counts=True, delay_ms=60_000)
        record = await q.record("a")
        assert (record["f"], orjson.loads(record["i"])["code"]) == ("1", "busy")
        assert await q.state("a") == "delayed"
        assert await q.event_types("a") == ["queued", "retrying"]

    async def test_giving_back_costs_no_failure(self, q: QueueDriver) -> None:
        job = await q.running("a")
        assert await q.give_back(job, counts=False)
        record = await q.record("a")
        assert "f" not in record
        assert "i" not in record
        assert (await q.history("a"))[-1][1:4] == ["given_back", "w1", 1]

    async def test_attempts_that_cost_nothing_are_counted_until_it_is_requeued(self, q: QueueDriver) -> None:
        job = await q.running("a")
        for _ in range(2):
            assert await q.give_back(job, counts=False)
            assert await q.give_back(job, counts=False), "the reply was lost: it counts once"
            job = await q.claim()
        assert (job.waits, job.failures) == (2, 0)
        assert await q.give_back(job, counts=True)
        job = await q.claim()
        assert (job.waits, job.failures) == (2, 1)
        await q.finish(job, JobState.FAILED, value=b"{}")
        await q.queue.requeue("a")
        assert (await q.claim()).waits == 0

    # Ends

    async def test_finishing_stores_the_result_and_the_terminal_event(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "Hel", "lo")
        assert await q.finish(job, seq=3, value=b'{"text":"Hello"}')
        assert await q.redis.get(q.queue.keys.of("result", "a")) == b'{"text":"Hello"}'
        assert await q.event_types("a") == ["queued", "delta", "delta", "done"]
        assert (await q.replay("a")).last == (job.token, 3)

    async def test_a_replay_goes_on_after_any_event(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, *"abc")
        await q.give_back(job, seq=4)
        (job,) = (await q.claim_all(1)).jobs
        await q.publish(job, *"de")
        await q.publish(job, *"fg", first_seq=3)
        await q.finish(job, seq=5)
        every = (await q.replay("a")).events[1:]
        ids = [cursor_of(raw) for raw in every]
        assert len(every) == 9
        for at, cursor in enumerate(ids):
            assert (await q.replay("a", cursor)).events == every[at + 1 :]
            assert (await q.replay("a", cursor)).last == ids[-1]
        part = await q.replay("a", ids[1], limit=3)
        assert (part.events, part.more) == (every[2:5], True)
        assert not (await q.replay("a", (99, 1))).events

    async def test_a_publication_that_comes_again_with_more_adds_the_more(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "a", "b")
        await q.publish(job, "a", "b", "c")
        await q.publish(job, "b", "c", first_seq=2)
        assert await q.event_types("a") == ["queued", "delta", "delta", "delta"]

    async def test_an_end_takes_the_events_along_that_are_left(self, q: QueueDriver) -> None:
        job = await q.running("a")
        left = tuple(event("delta", job, seq, text=text) for seq, text in ((2, "l"), (3, "o")))
        await q.publish(job, "Hel")
        assert await q.finish(job, seq=4, events=left)
        assert await q.event_types("a") == ["queued", "delta", "delta", "delta", "done"]
        assert await q.finish(job, seq=4, events=left)
        assert len(await q.events("a")) == 5

    @pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED])
    async def test_a_terminal_event_is_replayed_as_it_was_published(
        self, q: QueueDriver, state: JobState
    ) -> None:
        job = await q.running("a.b_c:d-1")
        async with q.redis.pubsub() as subscriber:
            await subscriber.subscribe(q.queue.channel(job.id))
            await q.publish(job, "x")
            await q.finish(job, state, seq=2)
            heard: list[bytes] = []
            async with asyncio.timeout(SOON_S):
                while len(heard) < 2:
                    message = await subscriber.get_message(ignore_subscribe_messages=True, timeout=SOON_S)
                    heard += [message["data"]] if message else []
        assert (await q.replay(job.id)).events[1:] == tuple(heard)

    async def test_an_ended_job_is_kept_for_its_time_from_the_end(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "x")
        await q.finish(job, seq=2, result_ttl_ms=40_000)
        for kind in ("record", "result", "stream"):
            assert 30_000 < await q.redis.pttl(q.queue.keys.of(kind, "a")) <= 40_000, kind
        assert await q.redis.exists(q.queue.keys.of("payload", "a")) == 0

    async def test_a_failed_job_is_kept_with_its_payload_among_the_dead(self, q: QueueDriver) -> None:
        await q.configure(dead_ttl_ms=90_000)
        job = await q.running("a")
        await q.publish(job, "x")
        await q.finish(job, JobState.FAILED, seq=2, result_ttl_ms=1000)
        for kind in ("record", "payload", "stream"):
            assert 80_000 < await q.redis.pttl(q.queue.keys.of(kind, "a")) <= 90_000, kind
        assert await q.redis.zrange(q.queue.keys.fixed("dead"), 0, -1) == [b"a"]
        assert (await q.last_event("a"))["error"]["code"] == "boom"

    async def test_a_job_that_never_ran_is_kept_for_the_configured_time(self, q: QueueDriver) -> None:
        await q.configure(result_ttl_ms=50_000)
        await q.enqueue(new_job("a"), new_job("b", result_ttl_ms=5000))
        for name, ttl in (("a", 50_000), ("b", 5000)):
            await q.queue.cancel(name)
            assert ttl - 1000 < await q.redis.pttl(q.queue.keys.of("record", name)) <= ttl

    async def test_the_stream_of_a_running_job_is_refreshed_by_renewing(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "x")
        stream = q.queue.keys.of("stream", "a")
        await q.redis.pexpire(stream, 5000)
        await q.queue.renew(q.worker, [("a", job.token)], lease_ms=LEASE_MS, about=b"{}")
        assert await q.redis.pttl(stream) > 80_000_000

    async def test_ending_one_job_leaves_the_stream_of_another_alone(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("a:copy"))
        a, other = (await q.claim_all()).jobs
        await q.publish(other, "mine")
        await q.publish(a, "x")
        await q.finish(a, seq=2)
        assert await q.event_types("a:copy") == ["queued", "delta"]

    # Cancelling, priorities

    @pytest.mark.parametrize("state", [JobState.WAITING, JobState.DELAYED, JobState.RUNNING])
    async def test_a_live_job_can_be_cancelled(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state, key="K", deadline_ms=60_000)
        assert await q.queue.cancel("a", "a") == "cancelled"
        last = await q.last_event("a")
        assert (last["type"], last["reason"]) == ("cancelled", "cancelled")
        assert await q.waiting() == 0
        assert await q.claimed_ids() == []

    @pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.EXPIRED, JobState.SHED])
    async def test_an_ended_job_is_not_cancelled(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state)
        assert await q.queue.cancel("a") == "ended"
        assert await q.state("a") == state.value

    async def test_an_unknown_job_is_not_cancelled(self, q: QueueDriver) -> None:
        assert await q.queue.cancel("nobody") == "not_found"

    async def test_cancelling_a_running_job_shuts_its_worker_out_and_tells_it(self, q: QueueDriver) -> None:
        job = await q.running("a")
        async with q.redis.pubsub() as pubsub:
            await pubsub.subscribe(q.queue.control_channel)
            assert (await pubsub.get_message(timeout=SOON_S))["type"] == "subscribe"
            await q.queue.cancel("a")
            message = await pubsub.get_message(timeout=SOON_S)
        assert message is not None
        assert orjson.loads(message["data"]) == {"cancel": "a", "token": str(job.token)}
        assert not await q.publish(job, "late")
        assert not await q.finish(job)
        assert not await q.give_back(job)

    async def test_a_new_priority_moves_a_waiting_job_at_its_enqueue_time(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 3), new_job("b", 7))
        assert await q.queue.set_priority("a", 7) is JobState.WAITING
        assert await q.claimed_ids() == ["a", "b"]
        assert (await q.history("a"))[-1][1::3] == ["priority", "3 to 7"]

    async def test_a_new_priority_waits_for_a_delayed_job(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 3, delay_ms=1))
        assert await q.queue.set_priority("a", 8) is JobState.DELAYED
        await q.pass_ms(1)
        await q.tick()
        assert (await q.claim()).priority == 8

    async def test_a_new_priority_of_a_running_job_counts_when_it_returns(self, q: QueueDriver) -> None:
        job = await q.running("a", 3)
        assert await q.queue.set_priority("a", 8) is JobState.RUNNING
        await q.give_back(job)
        assert (await q.claim()).priority == 8

    @pytest.mark.parametrize("state", [JobState.DONE, *ENDS_WITHOUT_RESULT])
    async def test_the_priority_of_an_ended_job_stays(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state)
        assert await q.queue.set_priority("a", 0) is state
        assert (await q.record("a"))["p"] == "5"

    async def test_an_unknown_job_has_no_priority(self, q: QueueDriver) -> None:
        assert await q.queue.set_priority("nobody", 5) is None

    # Pausing

    async def test_a_paused_lane_takes_jobs_but_gives_none(self, q: QueueDriver) -> None:
        assert await q.queue.pause("a")
        assert not await q.queue.pause("a")
        await q.enqueue(new_job("a1", lane="a"), new_job("b1", lane="b"))
        claim = await q.claim_all(lanes={"a": 5, "b": 5})
        assert [job.id for job in claim.jobs] == ["b1"]
        assert not claim.more
        assert await q.queue.resume("a")
        assert not await q.queue.resume("a")
        assert await q.claimed_ids(lanes={"a": 5}) == ["a1"]

    async def test_a_paused_lane_wakes_nobody_until_it_is_resumed(self, q: QueueDriver) -> None:
        await q.queue.pause(LANE)
        await q.enqueue(new_job("a"))
        assert (await q.tick()).rearmed == 0
        waiter = asyncio.create_task(q.queue.wait_for_work([LANE], 10))
        await asyncio.sleep(0.02)
        assert not waiter.done()
        await q.queue.resume(LANE)
        await asyncio.wait_for(waiter, SOON_S)

    # Requeueing, purging

    @pytest.mark.parametrize("state", ENDS_WITHOUT_RESULT)
    async def test_a_job_that_ended_without_a_result_can_run_again(
        self, q: QueueDriver, state: JobState
    ) -> None:
        await reach(q, state, key="K")
        assert await q.queue.requeue("a") == "waiting"
        assert await q.waiting() == 1
        assert await q.owner("K") == "a"
        assert await q.event_types("a") == ["queued"]
        assert (await q.history("a"))[-1][1] == "requeued"
        job = await q.claim()
        assert (job.id, job.failures, job.remaining_ms) == ("a", 0, None)
        assert await q.finish(job)
        assert await q.event_types("a") == ["queued", "done"]

    async def test_a_requeued_job_stands_behind_those_that_wait(self, q: QueueDriver) -> None:
        await reach(q, JobState.CANCELLED)
        await q.enqueue(new_job("b"))
        await q.queue.requeue("a")
        assert await q.claimed_ids() == ["b", "a"]

    async def test_requeueing_shuts_out_the_old_attempt(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.finish(job, JobState.FAILED)
        await q.queue.requeue("a")
        assert not await q.finish(job)
        assert await q.state("a") == "waiting"

    async def test_a_requeued_job_does_not_take_the_key_of_another(self, q: QueueDriver) -> None:
        await reach(q, JobState.CANCELLED, key="K")
        await q.enqueue(new_job("b", key="K"))
        await q.queue.requeue("a")
        assert await q.owner("K") == "b"
        await q.queue.cancel("a")
        assert await q.owner("K") == "b"

    async def test_requeueing_says_why_not(self, q: QueueDriver) -> None:
        await reach(q, JobState.DONE)
        await q.running("b")
        assert [await q.queue.requeue(name) for name in ("a", "b", "nobody")] == [
            "done",
            "running",
            "not_found",
        ]

    async def test_a_job_can_run_again_with_another_request(self, q: QueueDriver) -> None:
        await reach(q, JobState.FAILED, key="K")
        for _ in range(2):
            assert await q.queue.requeue("a", b'{"prompt":"other"}') == "waiting"
        assert await q.owner("K") is None
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("b")]
        assert [job.payload for job in (await q.claim_all()).jobs if job.id == "a"] == [b'{"prompt":"other"}']
        assert await q.queue.request("a") == b'{"prompt":"other"}'
        assert await q.queue.request("nobody") is None

    @pytest.mark.parametrize("state", [state for state in JobState if state is not JobState.HELD])
    async def test_only_dead_letters_are_discarded(self, q: QueueDriver, state: JobState) -> None:
        await reach(q, state, key="K")
        is_dead = state is JobState.FAILED
        assert await q.queue.discard(["nobody", "a"]) == is_dead
        assert await q.state("a") == (None if is_dead else state.value)
        assert await q.queue.discard(["a"]) == 0

    async def test_nothing_of_a_discarded_job_is_kept(self, q: QueueDriver) -> None:
        await q.configure()
        before = set(await q.redis.keys("*"))
        job = await q.running("a", key="K")
        await q.enqueue(new_job("b", key="K"))
        await q.publish(job, "some")
        await q.finish(job, JobState.FAILED, seq=2)
        assert await q.queue.discard(["a"]) == 1
        left = {key.decode().split(":")[2] for key in set(await q.redis.keys("*")) - before}
        assert left <= {"meta", "lanes", "c", "k", "a"}, "nothing of the job"

    async def test_a_job_without_its_request_cannot_be_requeued(self, q: QueueDriver) -> None:
        await reach(q, JobState.FAILED)
        await q.redis.delete(q.queue.keys.of("payload", "a"))
        assert await q.queue.requeue("a") == "payload_lost"
        assert await q.state("a") == "failed"

    async def test_purging_goes_in_chunks_from_the_end(self, q: QueueDriver) -> None:
        await q.enqueue(
            *[new_job(f"low{i}", 1) for i in range(3)], *[new_job(f"top{i}", 9) for i in range(3)]
        )
        await q.enqueue(new_job("other", lane="other"))
        assert await q.queue.purge(LANE, chunk=4) == 4
        assert [await q.state(f"top{i}") for i in range(3)] == ["waiting", "waiting", "cancelled"]
        assert await q.queue.purge(LANE, chunk=4) == 2
        assert await q.queue.purge(LANE, chunk=4) == 0
        assert (await q.last_event("low0"))["reason"] == "purged"
        assert await q.state("other") == "waiting"

    async def test_purging_can_be_limited_to_a_priority(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"p{p}", p) for p in range(10)])
        assert await q.queue.purge(LANE, 4) == 1
        assert await q.queue.purge(LANE, 0) == 1
        assert await q.waiting() == 8

    # Maintenance

    async def test_one_worker_process_does_the_maintenance(self, q: QueueDriver) -> None:
        assert (await q.tick("w1", lock_ms=60_000)).leader
        report = await q.tick("w2", lock_ms=60_000)
        assert not report.leader
        assert 1000 < report.next_ms <= 60_000
        assert (await q.tick("w1")).leader

    async def test_another_worker_process_takes_over_when_the_lock_has_gone(self, q: QueueDriver) -> None:
        await q.tick("w1", lock_ms=60_000)
        assert not (await q.tick("w2", lock_ms=60_000)).leader
        await q.redis.pexpire(q.queue.keys.fixed("leader"), 1)
        await q.pass_ms(1)
        assert (await q.tick("w2", lock_ms=60_000)).leader
        assert not (await q.tick("w1")).leader

    async def test_who_does_not_lead_does_nothing(self, q: QueueDriver) -> None:
        await q.tick("w1")
        await q.enqueue(new_job("a", delay_ms=1))
        await q.pass_ms(1)
        assert (await q.tick("w2")).promoted == 0
        assert await q.state("a") == "delayed"

    async def test_maintenance_goes_in_chunks_and_comes_back_at_once(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"d{i}", delay_ms=1) for i in range(3)])
        await q.enqueue(*[new_job(f"x{i}", deadline_ms=1) for i in range(3)])
        await q.pass_ms(1)
        first = await q.tick(chunk=2)
        assert (first.promoted, first.expired, first.next_ms) == (2, 2, 0)
        second = await q.tick(chunk=2)
        assert (second.promoted, second.expired, second.next_ms) == (1, 1, 250)

    async def test_lists_of_the_ended_do_not_outlive_their_records(self, q: QueueDriver) -> None:
        await q.configure(dead_ttl_ms=5)
        await q.finish(await q.running("a"), result_ttl_ms=5)
        await q.finish(await q.running("b"), JobState.FAILED)
        await q.pass_ms(6)
        assert (await q.tick()).forgotten == 2
        for name in ("finished", "dead"):
            assert await q.redis.zcard(q.queue.keys.fixed(name)) == 0
        assert [await q.state(name) for name in ("a", "b")] == [None, None]

    async def test_the_dead_are_bounded(self, q: QueueDriver) -> None:
        await q.configure(max_dead=2)
        for i in range(4):
            await q.finish(await q.running(f"j{i}"), JobState.FAILED)
            await q.pass_ms(1)
        await q.tick()
        assert await q.redis.zrange(q.queue.keys.fixed("dead"), 0, -1) == [b"j2", b"j3"]
        assert [await q.state(f"j{i}") for i in range(4)] == [None, None, "failed", "failed"]
        assert await q.redis.hget(q.queue.keys.fixed("meta"), "t:dead_dropped") == b"2"

    async def test_maintenance_mends_counts_and_bitmaps(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 3), new_job("b", 7))
        broken = {"n": 77, f"n:{LANE}": -3, f"b:{LANE}": 0}
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping=broken)
        await q.tick(mend_ms=0)
        assert (await q.waiting(), await q.waiting(LANE)) == (2, 2)
        assert await q.claimed_ids() == ["b", "a"]

    async def test_a_worker_process_that_is_gone_is_taken_off_the_list(self, q: QueueDriver) -> None:
        await q.queue.renew("w9", [], lease_ms=1, about=b"{}")
        await q.pass_ms(3)
        await q.tick()
        assert await q.redis.zcard(q.queue.keys.fixed("workers")) == 0

    # Waking

    async def test_there_is_at_most_one_token_a_lane(self, q: QueueDriver) -> None:
        for i in range(3):
            await q.enqueue(new_job(f"a{i}", lane="a"), new_job(f"b{i}", lane="b"))
        assert [await q.redis.llen(q.queue.keys.of("wake", lane)) for lane in "ab"] == [1, 1]

    async def test_a_claim_that_leaves_work_passes_the_token_on(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        await asyncio.wait_for(q.queue.wait_for_work([LANE], 10 * SOON_S), SOON_S)
        await q.claim_all(1)
        await asyncio.wait_for(q.queue.wait_for_work([LANE], 10 * SOON_S), SOON_S)
        await q.claim_all(1)
        assert await q.redis.llen(q.queue.keys.of("wake", LANE)) == 0

    async def test_a_lane_without_room_passes_its_token_on_too(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", lane="a"), new_job("b", lane="b"))
        await q.redis.delete(q.queue.keys.of("wake", "a"), q.queue.keys.of("wake", "b"))
        await q.claim_all(lanes={"a": 0, "b": 1})
        assert [await q.redis.llen(q.queue.keys.of("wake", lane)) for lane in "ab"] == [1, 0]

    async def test_places_that_are_kept_go_to_the_urgent_alone(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{p}", priority=p) for p in (0, 7, 8, 9)])
        claim = await q.claim_all(lanes={LANE: 3}, lanes_reserved={LANE: 2})
        assert [job.id for job in claim.jobs] == ["j9", "j8"], "the last two places are reserved"
        assert (claim.more, claim.more_urgent) == (True, False)
        claim = await q.claim_all(2, reserved=2)
        assert (claim.jobs, claim.more) == ((), True)
        claim = await q.claim_all(2, reserved=1)
        assert [job.id for job in claim.jobs] == ["j7"]

    async def test_a_claim_says_whether_urgent_work_was_left(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", priority=9), new_job("b", priority=8), new_job("c"))
        assert (await q.claim_all(1)).more_urgent
        assert not (await q.claim_all(1)).more_urgent

    async def test_urgent_work_has_a_token_of_its_own(self, q: QueueDriver) -> None:
        wake, urgent = (q.queue.keys.of(kind, LANE) for kind in ("wake", "urgent"))
        await q.enqueue(new_job("a", priority=7))
        assert [await q.redis.llen(key) for key in (wake, urgent)] == [1, 0]
        await q.enqueue(new_job("b", priority=8), new_job("c", priority=9))
        assert [await q.redis.llen(key) for key in (wake, urgent)] == [1, 1]
        await asyncio.wait_for(q.queue.wait_for_work([], 10 * SOON_S, urgent_lanes=[LANE]), SOON_S)
        await q.claim_all(1)
        assert await q.redis.llen(urgent) == 1, "it is passed on while there is urgent work"
        await q.redis.delete(wake, urgent)
        await q.claim_all(1)
        assert [await q.redis.llen(key) for key in (wake, urgent)] == [1, 0]
        assert (await q.queue.set_priority("a", 9)) is not None
        assert await q.redis.llen(urgent) == 1

    async def test_a_join_that_makes_a_job_urgent_leaves_its_token(self, q: QueueDriver) -> None:
        urgent = q.queue.keys.of("urgent", LANE)
        await q.enqueue(new_job("a", priority=5, key="K"))
        assert await q.redis.llen(urgent) == 0
        await q.enqueue(new_job("b", priority=9, key="K"))
        assert await q.redis.llen(urgent) == 1

    async def test_maintenance_puts_a_lost_token_back(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        await q.redis.delete(q.queue.keys.of("wake", LANE))
        assert (await q.tick()).rearmed == 1
        assert (await q.tick()).rearmed == 0
        await asyncio.wait_for(q.queue.wait_for_work([LANE], 10 * SOON_S), SOON_S)

    @pytest.mark.parametrize("way", ["promoted", "returned", "lost", "requeued", "hastened"])
    async def test_whatever_makes_a_job_ready_wakes(self, q: QueueDriver, way: str) -> None:
        wake = q.queue.keys.of("wake", LANE)
        match way:
            case "promoted":
                await q.enqueue(new_job("a", delay_ms=1))
                assert await q.redis.llen(wake) == 0
                await q.pass_ms(1)
                await q.tick()
            case "hastened":
                await q.enqueue(new_job("a", key="K", delay_ms=60_000))
                await q.enqueue(new_job("b", key="K"))
            case "requeued":
                await reach(q, JobState.CANCELLED)
                await q.redis.delete(wake)
                await q.queue.requeue("a")
            case _:
                job = await q.running("a")
                await q.redis.delete(wake)
                if way == "returned":
                    await q.give_back(job)
                else:
                    await q.lose_lease(job)
                    await q.tick()
        assert await q.redis.llen(wake) == 1

    # Replay

    async def test_a_new_job_replays_as_queued(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        replay = await q.replay("a")
        assert (replay.state, replay.last, replay.more) == (JobState.WAITING, (0, 1), False)
        assert await q.events("a") == [{"id": "0-1", "type": "queued", "job_id": "a", "attempt": 0}]

    async def test_an_unknown_job_has_no_replay(self, q: QueueDriver) -> None:
        assert await q.queue.replay("nobody") is None

    async def test_a_replay_begins_after_its_cursor(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, "x", "y", "z")
        assert [said.get("text") for said in await q.events("a", (job.token, 1))] == ["y", "z"]
        assert await q.events("a", (job.token, 3)) == []
        assert [said["type"] for said in await q.events("a", (0, 1))] == ["delta"] * 3

    async def test_a_long_replay_comes_in_pages(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.publish(job, *"abcde")
        await q.finish(job, seq=6)
        seen: list[str] = []
        cursor, pages, more = (0, 0), 0, True
        while more:
            replay = await q.replay("a", cursor, limit=2)
            ids = [orjson.loads(raw)["id"] for raw in replay.events]
            seen += ids
            token, seq = ids[-1].split("-")
            cursor, more, pages = (int(token), int(seq)), replay.more, pages + 1
            assert replay.last == (job.token, 6)
        assert seen == ["0-1", *[f"{job.token}-{i}" for i in range(1, 7)]]
        assert pages == 3

    async def test_a_retry_follows_what_it_discards(self, q: QueueDriver) -> None:
        first = await q.running("a")
        await q.publish(first, "wrong")
        await q.give_back(first, seq=2)
        second = await q.claim()
        await q.publish(second, "right")
        await q.finish(second, seq=2)
        assert await q.event_types("a") == ["queued", "delta", "retrying", "delta", "done"]

    @pytest.mark.parametrize("state", [JobState.DONE, *ENDS_WITHOUT_RESULT])
    async def test_when_the_stream_has_gone_the_end_is_made_from_the_record(
        self, q: QueueDriver, untidy: None, state: JobState
    ) -> None:
        await reach(q, state)
        whole = await q.replay("a")
        await q.redis.delete(q.queue.keys.of("stream", "a"))
        replay = await q.replay("a")
        assert (replay.state, replay.last) == (state, whole.last)
        assert [orjson.loads(raw) for raw in replay.events] == [orjson.loads(raw) for raw in whole.events]
        assert (await q.replay("a", whole.last)).events == ()

    async def test_a_requeued_job_is_below_an_old_cursor(self, q: QueueDriver) -> None:
        await reach(q, JobState.FAILED)
        cursor = (await q.replay("a")).last
        await q.queue.requeue("a")
        replay = await q.replay("a", cursor)
        assert replay.last < cursor
        assert (replay.state, replay.events) == (JobState.WAITING, ())
        await q.finish(await q.claim())
        assert [said["type"] for said in await q.events("a", cursor)] == ["done"]

    async def test_the_channel_gets_the_same_bytes_as_the_stream(self, q: QueueDriver) -> None:
        async with q.redis.pubsub() as pubsub:
            await pubsub.subscribe(q.queue.channel("a"))
            assert (await pubsub.get_message(timeout=SOON_S))["type"] == "subscribe"
            job = await q.running("a")
            await q.publish(job, "x")
            await q.give_back(job, seq=2)
            await q.queue.cancel("a")
            heard = [(await pubsub.get_message(timeout=SOON_S))["data"] for _ in range(4)]
        assert tuple(heard) == (await q.replay("a")).events

    # History

    async def test_history_tells_what_the_other_fields_do_not(self, q: QueueDriver) -> None:
        job = await q.running("a")
        await q.give_back(job, counts=True)
        await q.queue.set_priority("a", 7)
        await q.lose_lease(await q.claim())
        await q.tick()
        entries = await q.history("a")
        assert [entry[1] for entry in entries] == ["failed", "priority", "lease_lost"]
        assert entries[0][2:4] == ["w1", 1]
        assert orjson.loads(entries[0][4])["code"] == "busy"
        now_ms = await q.now_ms()
        assert all(0 <= now_ms - entry[0] < 60_000 for entry in entries)

    async def test_history_is_bounded_and_stays_json(self, q: QueueDriver) -> None:
        job = await q.running("a")
        for n in range(40):
            await fail(q, job, f"{n:02} ".encode() + (b"x" * 700 if n else "é".encode() * 700))
            job = await q.claim()
        entries = await q.history("a")
        assert 8 < len(entries) < 40
        assert len((await q.record("a"))["y"].encode()) <= 8192
        assert len(entries[0][4].encode()) <= 500
        told = [int(entry[4][:2]) for entry in entries]
        assert told == [0, 1, 2, 3, *range(40 - len(told) + 4, 40)], "the first few and the newest"

    async def test_what_fails_again_and_again_in_the_same_words_is_one_entry(self, q: QueueDriver) -> None:
        job = await q.running("a")
        for n in range(43):
            await fail(q, job, b"busy" if n < 40 else b"real %d" % n)
            job = await q.claim()
        first, *others = await q.history("a")
        assert first[4] == "busy"
        assert first[3] == 40, "it tells of the last time"
        assert first[5] == 40
        assert first[6] <= first[0]
        assert [entry[4] for entry in others] == ["real 40", "real 41", "real 42"]
        info = await read_job(q.queue, "a")
        assert info is not None
        assert [entry.count for entry in info.history] == [1, 40, 1, 1, 1, 1]

    async def test_a_history_that_cannot_be_read_begins_anew(self, q: QueueDriver) -> None:
        job = await q.running("a")
        for garbage in ("{", "[1],[null,2]", '["x","y",3,4,5]', "1"):
            await q.redis.hset(q.queue.keys.of("record", "a"), "y", garbage)
            await fail(q, job, b"busy")
            job = await q.claim()
            assert [entry[4] for entry in await q.history("a")] == ["busy"], garbage

    # Counts for readers

    async def test_unfinished_counts_the_named_lanes(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b", delay_ms=60_000), new_job("c", lane="other"))
        assert await q.queue.unfinished([LANE]) == 2
        assert await q.queue.unfinished([LANE, "other", "empty"]) == 3

    async def test_routes_are_published(self, q: QueueDriver) -> None:
        await q.queue.configure(conf={"aging_ms": 1}, routes={"chat": b'{"revision":"1"}'})
        assert await q.queue.routes() == {"chat": {"revision": "1"}}

    # Odd ids and garbage

    @pytest.mark.parametrize("name", ["a" * 128, "a.b_c:d-e", "0", "1e5", "a:copy:1", "e:x", "nan"])
    async def test_any_job_id_lives_a_whole_life(self, q: QueueDriver, name: str) -> None:
        job = await q.running(name, key="K")
        await q.publish(job, "x")
        await q.give_back(job, seq=2)
        job = await q.claim()
        await q.lose_lease(job)
        await q.tick()
        assert await q.finish(await q.claim())
        assert await q.event_types(name) == ["queued", "delta", "retrying", "retrying", "done"]

    @pytest.mark.parametrize("tenant", ["a/b", "a@b+c", "x:y"])
    @pytest.mark.parametrize("lane", ["org/model-7b", "a:1", "w:5:chat"])
    async def test_any_lane_and_tenant_live_a_whole_life(
        self, q: QueueDriver, lane: str, tenant: str
    ) -> None:
        await q.enqueue(new_job("a", lane=lane, tenant=tenant, key="K"))
        job = await q.claim(lanes={lane: 1})
        assert (job.lane, job.tenant) == (lane, tenant)
        assert await q.finish(job)

    GARBAGE: tuple[dict[str, str | None], ...] = (
        {"q": None},
        {"q": "yesterday"},
        {"p": "high"},
        {"p": None},
        {"p": "7"},
        {"l": None},
        {"l": "elsewhere"},
        {"s": "running"},
        {"s": "confused"},
        {"s": None},
        {"x": "soon"},
        {"n": "1.5"},
        {"f": "many"},
        {"a": "nan"},
        {"g": "-1"},
        {"t": "two words"},
        {"k": "99999999999999999999"},
    )

    @pytest.mark.parametrize("damage", GARBAGE, ids=str)
    async def test_a_damaged_record_is_set_aside_and_the_claim_goes_on(
        self, q: QueueDriver, untidy: None, damage: dict[str, str | None]
    ) -> None:
        await q.enqueue(new_job("bad", 5, key="K"), new_job("good", 5))
        await self._damage(q, "bad", damage)
        assert await q.claimed_ids(1) == ["good"]
        assert await q.redis.hexists(q.queue.keys.fixed("garbage"), "bad")
        assert await q.claimed_ids() == []
        assert await q.waiting() == 0
        if damage.keys() - {"s"}:
            assert (await q.state("bad"), (await q.last_event("bad"))["error"]["code"]) == (
                "failed",
                "record_damaged",
            )
            assert await q.enqueue(new_job("next", key="K")) == [Enqueued("next")]

    @staticmethod
    async def _damage(q: QueueDriver, name: str, damage: dict[str, str | None]) -> None:
        for field, value in damage.items():
            if value is None:
                await q.redis.hdel(q.queue.keys.of("record", name), field)
            else:
                await q.redis.hset(q.queue.keys.of("record", name), field, value)

    @pytest.mark.parametrize("damage", GARBAGE, ids=str)
    @pytest.mark.parametrize("state", [JobState.WAITING, JobState.DELAYED, JobState.RUNNING])
    async def test_a_damaged_record_stops_no_other_work(
        self, q: QueueDriver, untidy: None, state: JobState, damage: dict[str, str | None]
    ) -> None:
        await reach(q, state, "bad", key="K", deadline_ms=60_000)
        await self._damage(q, "bad", damage)
        token = int((await q.record("bad")).get("k", "1")[:15])
        leases, delayed, deadlines = map(q.queue.keys.fixed, ("leases", "delayed", "deadlines"))
        for place in (leases, delayed, deadlines):
            await q.redis.zadd(place, {"bad": 1}, xx=True)
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"reap_after": 0, "tick": await q.now_ms()})
        await q.tick()
        assert [await q.redis.zcard(place) for place in (leases, delayed)] == [0, 0]
        await q.queue.renew(q.worker, [("bad", token)], lease_ms=LEASE_MS, about=b"{}")
        await q.queue.position("bad")
        await q.queue.replay("bad")
        await q.queue.set_priority("bad", 9)
        await q.enqueue(new_job("joins", key="K"))
        await q.queue.cancel("bad")
        await q.queue.requeue("bad")
        await q.queue.purge(LANE)
        await q.queue.cancel("joins")
        assert (await q.running("good")).id == "good"

    async def test_a_stream_that_cannot_be_read_spoils_no_other_replay(
        self, q: QueueDriver, untidy: None
    ) -> None:
        await q.enqueue(new_job("bad"), new_job("good"))
        await q.redis.set(q.queue.keys.of("stream", "bad"), "not a stream")
        bad, unknown, good = await q.queue.replay_many(
            [(job_id, START) for job_id in ("bad", "nobody", "good")]
        )
        assert isinstance(bad, ResponseError)
        assert unknown is None
        assert isinstance(good, Replay)
        assert good.state is JobState.WAITING
        with pytest.raises(ResponseError):
            await q.queue.replay("bad")

    async def test_a_member_without_a_record_is_set_aside(self, q: QueueDriver, untidy: None) -> None:
        await q.enqueue(new_job("gone"), new_job("text"), new_job("good"))
        await q.redis.delete(q.queue.keys.of("record", "gone"))
        await q.redis.set(q.queue.keys.of("record", "text"), "not a hash")
        await q.redis.zadd(q.queue.keys.level(LANE, 5), {b"\xff\x00 odd": 1})
        assert await q.claimed_ids(1) == ["good"]
        garbage = await q.redis.hkeys(q.queue.keys.fixed("garbage"))
        assert sorted(garbage) == [b"gone", b"text", b"\xff\x00 odd"]
        await q.tick(mend_ms=0)
        await audit_without_garbage(q)

    async def test_a_claim_takes_no_more_once_its_requests_have_enough_bytes(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{i}", payload=b"x" * 40_000) for i in range(4)])
        claim = await q.claim_all(max_bytes=50_000)
        assert ([job.id for job in claim.jobs], claim.more) == (["j0", "j1"], True)
        claim = await q.claim_all(max_bytes=1)
        assert ([job.id for job in claim.jobs], claim.more) == (["j2"], True), "one is taken in any case"

    async def test_a_large_request_comes_out_as_it_went_in(self, q: QueueDriver) -> None:
        payloads = {f"j{size}": b"x" * size for size in (1, 32_767, 32_768, 262_144, 262_145, 3_000_000)}
        await q.enqueue(*[new_job(name, payload=payload) for name, payload in payloads.items()])
        claims = [
            await q.queue.claim("one", q.worker, {LANE: 9}, limit=9, lease_ms=LEASE_MS) for _ in range(2)
        ]
        for claim in claims:
            assert {job.id: job.payload for job in claim.jobs} == payloads
        assert not [key for key in await q.dump() if key.startswith("s:")]

    async def test_a_large_request_that_is_no_new_job_leaves_nothing(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=1)
        large = b"x" * 300_000
        job = new_job("a", key="K", payload=large)
        assert await q.enqueue(job) == [Enqueued("a")]
        assert await q.enqueue(job) == [Enqueued("a")], "it may be sent again"
        assert await q.enqueue(new_job("b", key="K", payload=large)) == [Enqueued("a", deduplicated=True)]
        assert isinstance((await q.enqueue(new_job("c", payload=large)))[0], Full)
        assert not [key for key in await q.dump() if key.startswith("s:")]

    async def test_many_large_requests_share_no_call(self, q: QueueDriver) -> None:
        jobs = [new_job(f"j{i}", payload=b"x" * 200_000) for i in range(12)]
        assert await q.enqueue(*jobs) == [Enqueued(job.job_id) for job in jobs]
        assert await q.claimed_ids() == [job.job_id for job in jobs]

    async def test_a_long_answer_that_comes_with_the_end_is_whole(self, q: QueueDriver) -> None:
        job = await q.running("a")
        texts = [f"{i}" + "x" * 300_000 for i in range(6)]
        end = ending(job, seq=7, events=deltas(job, *texts).events)
        for _ in range(2):
            assert not (await q.queue.write(endings=[end])).refused
        events = await q.events("a")
        assert [event["text"] for event in events if event["type"] == "delta"] == texts
        assert [event["id"] for event in events if event["type"] == "done"] == [f"{job.token}-7"]

    async def test_a_large_result_is_stored_told_and_replayed(self, q: QueueDriver) -> None:
        job = await q.running("a")
        text = "y" * 300_000
        end = ending(job, seq=2, events=deltas(job, "x").events, value=orjson.dumps({"text": text}))
        async with q.redis.pubsub() as pubsub:
            await pubsub.subscribe(q.queue.channel("a"))
            heard: list[dict[str, Any]] = []
            for _ in range(2):
                assert not (await q.queue.write(endings=[end])).refused
            while not heard or heard[-1]["type"] != "done":
                message = await pubsub.get_message(timeout=5)
                assert message is not None
                if message["type"] == "message":
                    heard.append(orjson.loads(message["data"]))
        assert [event["type"] for event in heard] == ["delta", "done"]
        assert heard[-1]["result"]["text"] == (await q.last_event("a"))["result"]["text"] == text
        late = job._replace(token=job.token + 5)
        assert not await q.finish(late, value=b"z" * 300_000)

    async def test_what_goes_ahead_and_is_evicted_loses_no_result_and_makes_no_job(
        self, q: QueueDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def evicted(*_: object, **__: object) -> bool:
            return True

        job = await q.running("a")
        before = await q.dump()
        monkeypatch.setattr(q.queue.redis, "set", evicted)
        with pytest.raises(OutOfMemoryError, match="dropped a large request"):
            await q.enqueue(new_job("b", payload=b"x" * 300_000))
        assert await q.dump() == before
        assert await q.finish(job, value=b'{"text":"%s"}' % (b"y" * 300_000))
        assert (await q.last_event("a"))["result"]["text"] == "y" * 300_000

    async def test_a_replay_is_bounded_in_bytes_and_goes_on(self, q: QueueDriver) -> None:
        job = await q.running("a")
        texts = [f"{i}" + "x" * 100_000 for i in range(40)]
        await q.publish(job, *texts)
        await q.finish(job, seq=41, value=b'{"text":"%s"}' % (b"y" * 100_000))
        found: list[dict[str, Any]] = []
        cursor, sizes = START, []
        while True:
            replay = await q.replay("a", cursor)
            sizes.append(sum(map(len, replay.events)))
            found += map(orjson.loads, replay.events)
            token, _, seq = found[-1]["id"].partition("-")
            cursor = int(token), int(seq)
            if not replay.more:
                break
        assert [event["text"] for event in found if event["type"] == "delta"] == texts
        assert found[-1]["result"]["text"] == "y" * 100_000
        assert max(sizes) < 3_500_000

    async def test_many_damaged_records_do_not_stop_a_claim(self, q: QueueDriver, untidy: None) -> None:
        await q.enqueue(*[new_job(f"bad{i}", 9) for i in range(60)], new_job("good", 1))
        for i in range(60):
            await q.redis.delete(q.queue.keys.of("record", f"bad{i}"))
        assert await q.claimed_ids(1) == ["good"]

    @pytest.mark.parametrize("write_garbage", [False, True])
    async def test_a_job_whose_payload_is_lost_fails_and_the_claim_goes_on(
        self, q: QueueDriver, write_garbage: bool
    ) -> None:
        await q.enqueue(new_job("bad", 9), new_job("good"))
        payload = q.queue.keys.of("payload", "bad")
        await q.redis.delete(payload)
        if write_garbage:
            await q.redis.lpush(payload, "no string")
        assert await q.claimed_ids(1) == ["good"]
        assert (await q.last_event("bad"))["error"]["code"] == "payload_lost"

    async def test_a_dedup_key_that_leads_nowhere_is_taken_over(self, q: QueueDriver) -> None:
        key = q.queue.keys.dedup("default", "K")
        await q.redis.set(key, "nobody")
        assert await q.enqueue(new_job("a", key="K")) == [Enqueued("a")]
        await q.queue.cancel("a")
        await q.redis.lpush(key, "no string")
        assert await q.enqueue(new_job("b", key="K")) == [Enqueued("b")]
        assert await q.owner("K") == "b"

    # Repetition: a reply that got lost on a retrying connection sends the script again.

    @pytest.mark.parametrize(
        "fields",
        [
            {},
            {"delay_ms": 60_000},
            {"deadline_ms": 60_000, "key": "new"},
            {"key": "waiting"},
            {"key": "waiting", "priority": 9, "deadline_ms": 1000},
            {"key": "waiting", "dedup": DedupMode.REPLACE},
            {"key": "waiting", "content": "other"},
            {"key": "running"},
            {"key": "running", "dedup": DedupMode.REPLACE},
            {"key": "done", "dedup": DedupMode.WINDOW},
            {"key": "delayed"},
        ],
        ids=str,
    )
    async def test_an_enqueue_may_be_repeated(self, q: QueueDriver, fields: dict[str, Any]) -> None:
        await q.running("running", key="running")
        await q.finish(await q.running("done", key="done", dedup=DedupMode.WINDOW))
        await q.enqueue(new_job("waiting", key="waiting", deadline_ms=60_000))
        await q.enqueue(new_job("delayed", key="delayed", delay_ms=60_000))
        await repeat(q, lambda: q.enqueue(new_job("x", **fields), new_job("y", 7)))

    async def test_an_enqueue_that_sheds_may_be_repeated(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=2, when_full="shed")
        await q.enqueue(new_job("a", 1), new_job("b", 1))
        assert await repeat(q, lambda: q.enqueue(new_job("x", 5))) == [Enqueued("x")]
        assert [await q.state(name) for name in ("a", "b")] == ["waiting", "shed"]

    @pytest.mark.parametrize("policy", ["reject", "shed", "block"])
    async def test_an_enqueue_that_is_refused_may_be_repeated(self, q: QueueDriver, policy: str) -> None:
        await q.configure(max_waiting=1, when_full=policy)
        await q.enqueue(new_job("a", 5))
        await repeat(q, lambda: q.enqueue(new_job("x", 5)))

    async def test_a_claim_may_be_repeated(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{i}") for i in range(5)], new_job("late", 9, deadline_ms=1))
        await q.pass_ms(1)

        async def claim() -> Any:
            claim = await q.queue.claim("same", "w1", {LANE: 3}, limit=3, lease_ms=LEASE_MS)
            return [(job.id, job.token, job.attempt, job.payload) for job in claim.jobs], claim.more

        jobs, more = await repeat(q, claim)
        assert [job[0] for job in jobs] == ["j0", "j1", "j2"]
        assert more

    async def test_a_repeated_claim_leaves_out_what_has_ended_since(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        claim = await q.queue.claim("same", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        await q.queue.cancel("a")
        again = await q.queue.claim("same", "w1", {LANE: 2}, limit=2, lease_ms=LEASE_MS)
        assert [job.id for job in again.jobs] == ["b"]
        assert again.jobs[0].token == claim.jobs[1].token

    async def test_a_claim_of_another_worker_with_the_same_id_is_its_own(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"), new_job("b"))
        claims = [await q.queue.claim("same", w, {LANE: 1}, limit=1, lease_ms=LEASE_MS) for w in ("w1", "w2")]
        assert [job.id for claim in claims for job in claim.jobs] == ["a", "b"]

    async def test_renewing_may_be_repeated(self, q: QueueDriver) -> None:
        job = await q.running("a")
        held = [("a", job.token), ("b", 1)]
        await repeat(q, lambda: q.queue.renew("w1", held, lease_ms=LEASE_MS, about=b"{}"))

    async def test_publishing_may_be_repeated(self, q: QueueDriver) -> None:
        job = await q.running("a")
        other = Publication("b", 1, 1, (b"{}",))
        await repeat(q, lambda: q.queue.write(publications=[deltas(job, "x", "y"), other]))

    async def test_a_repeated_event_is_published_once(self, q: QueueDriver) -> None:
        job = await q.running("a")
        async with q.redis.pubsub() as pubsub:
            await pubsub.subscribe(q.queue.channel("a"))
            await pubsub.get_message(timeout=SOON_S)
            await q.publish(job, "x", "y")
            await q.publish(job, "x", "y")
            await q.finish(job, seq=3)
            await q.finish(job, seq=3)
            types = []
            while (message := await pubsub.get_message(timeout=0.05)) is not None:
                types.append(orjson.loads(message["data"])["type"])
        assert types == ["delta", "delta", "done"]

    @pytest.mark.parametrize("state", [JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
    async def test_finishing_may_be_repeated(self, q: QueueDriver, state: JobState) -> None:
        job = await q.running("a", key="K", dedup=DedupMode.WINDOW)
        outcome = await repeat(q, lambda: q.queue.write(endings=[ending(job, state)]))
        assert outcome == WriteOutcome()

    @pytest.mark.parametrize("delay_ms", [0, 60_000])
    @pytest.mark.parametrize("counts", [True, False])
    async def test_returning_may_be_repeated(self, q: QueueDriver, counts: bool, delay_ms: int) -> None:
        job = await q.running("a")
        one = returning(job, counts=counts, delay_ms=delay_ms)
        assert await repeat(q, lambda: q.queue.write(returns=[one])) == WriteOutcome()

    @pytest.mark.parametrize("end", ["done", "retry"])
    async def test_a_whole_round_of_writes_may_be_repeated(self, q: QueueDriver, end: str) -> None:
        job = await q.running("a")
        endings, returns = [ending(job, seq=3)], [returning(job, seq=3)]
        writes = {"endings": endings} if end == "done" else {"returns": returns}
        outcome = await repeat(
            q,
            lambda: q.queue.write(publications=[deltas(job, "x", "y")], **writes),
        )
        assert outcome == WriteOutcome()
        assert await q.event_types("a") == [
            "queued",
            "delta",
            "delta",
            "done" if end == "done" else "retrying",
        ]

    @pytest.mark.parametrize("state", [JobState.WAITING, JobState.DELAYED, JobState.RUNNING, JobState.DONE])
    @pytest.mark.parametrize("ticket", [None, "a", "b"])
    async def test_cancelling_may_be_repeated(
        self, q: QueueDriver, state: JobState, ticket: str | None
    ) -> None:
        await reach(q, state, key="K")
        if state is not JobState.DONE:
            await q.enqueue(new_job("b", key="K"))
        await repeat(q, lambda: q.queue.cancel("a", ticket))

    async def test_reprioritizing_may_be_repeated(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", 3))
        await repeat(q, lambda: q.queue.set_priority("a", 7))

    async def test_requeueing_may_be_repeated(self, q: QueueDriver) -> None:
        await reach(q, JobState.FAILED, key="K")
        await repeat(q, lambda: q.queue.requeue("a"))

    async def test_pausing_and_resuming_may_be_repeated(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a"))
        for call in (q.queue.pause, q.queue.resume):
            await call(LANE)
            before = _steady(await q.dump())
            await call(LANE)
            assert _steady(await q.dump()) == before

    async def test_maintenance_may_be_repeated(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", delay_ms=1), new_job("b", deadline_ms=1))
        await q.pass_ms(1)
        await q.tick()
        before = _steady(await q.dump())
        await q.tick()
        assert _steady(await q.dump()) == before

    async def test_configuring_may_be_repeated(self, q: QueueDriver) -> None:
        await repeat(q, lambda: q.configure(max_waiting=5))

    # Who uses which endpoint

    async def test_processes_are_counted_for_each_endpoint_and_have_their_places_by_name(
        self, q: QueueDriver
    ) -> None:
        for worker, endpoints in {"b": ["x", "y"], "c": ["x"], "a": ["y", "x"]}.items():
            await q.queue.share_endpoints(worker, endpoints, holds_ms=60_000)
        assert await q.queue.share_endpoints("a", ["x", "y"], holds_ms=60_000) == [(3, 0), (2, 0)]
        assert await q.queue.share_endpoints("b", ["x", "y"], holds_ms=60_000) == [(3, 1), (2, 1)]
        assert await q.queue.share_endpoints("c", ["x"], holds_ms=60_000) == [(3, 2)]

    async def test_process_that_leaves_counts_no_more_for_what_it_names(self, q: QueueDriver) -> None:
        for worker in "ab":
            await q.queue.share_endpoints(worker, ["x", "y"], holds_ms=60_000)
        await q.queue.share_endpoints("a", ["x"], holds_ms=0)
        assert await q.queue.share_endpoints("b", ["x", "y"], holds_ms=60_000) == [(1, 0), (2, 1)]

    async def test_process_that_is_silent_for_too_long_counts_no_more(self, q: QueueDriver) -> None:
        await q.queue.share_endpoints("silent", ["x"], holds_ms=2)
        await q.queue.share_endpoints("a", ["x"], holds_ms=60_000)
        await q.pass_ms(2)
        assert await q.queue.share_endpoints("b", ["x"], holds_ms=60_000) == [(2, 1)]
        assert await q.queue.share_endpoints("silent", ["x"], holds_ms=60_000) == [(3, 2)]

    async def test_nobody_is_asked_about_no_endpoint(self, q: QueueDriver) -> None:
        before = await q.dump()
        assert await q.queue.share_endpoints("a", [], holds_ms=60_000) == []
        assert await q.dump() == before

    async def test_endpoint_that_nobody_uses_any_more_leaves_nothing_behind(self, q: QueueDriver) -> None:
        before = await q.dump()
        await q.queue.share_endpoints("a", ["x"], holds_ms=60_000)
        await q.queue.share_endpoints("a", ["x"], holds_ms=0)
        assert await q.dump() == before
        await q.queue.share_endpoints("a", ["x"], holds_ms=2)
        await q.pass_ms(20)
        assert await q.dump() == before

    @pytest.mark.parametrize("holds_ms", [0, 60_000])
    async def test_sharing_endpoints_may_be_repeated(self, q: QueueDriver, holds_ms: int) -> None:
        await q.queue.share_endpoints("a", ["x"], holds_ms=60_000)
        first = await q.queue.share_endpoints("b", ["x", "y"], holds_ms=holds_ms)
        assert await q.queue.share_endpoints("b", ["x", "y"], holds_ms=holds_ms) == first
        assert await q.queue.share_endpoints("a", ["x"], holds_ms=60_000) == [(2 if holds_ms else 1, 0)]


def _ageless(answer: Any) -> Any:
    """An answer without that which only the clock changes."""
    match answer:
        case list():
            return [_ageless(one) for one in answer]
        case Enqueued(reuse=Reuse() as reuse):
            return replace(answer, reuse=replace(reuse, age_ms=0))
    return answer


async def repeat(q: QueueDriver, call: Callable[[], Awaitable[Any]]) -> Any:
    """Make a call twice: the second answers the same and changes nothing. Returns the answer."""
    first = await call()
    before = _steady(await q.dump())
    assert _ageless(await call()) == _ageless(first)
    assert _steady(await q.dump()) == before
    return first


def _steady(found: dict[str, Any]) -> dict[str, Any]:
    """A dump without what two calls in a row may differ in: clocks, and how often somebody was refused."""
    steady = {name: value for name, value in found.items() if name not in {"leases", "workers"}}
    meta = steady.get("meta", {})
    clocks = {b"us", b"tick", b"reap_after", b"mended", b"sampled", b"t:refused"}
    return {**steady, "meta": {name: value for name, value in meta.items() if name not in clocks}}


async def audit_without_garbage(q: QueueDriver) -> None:
    """Audit after the records that a test had damaged are taken away."""
    for name in await q.redis.hkeys(q.queue.keys.fixed("garbage")):
        await q.redis.delete(q.queue.keys.prefix.encode() + b"j:" + name)
    await audit(q.queue)
