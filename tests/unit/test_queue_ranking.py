"""The order of claiming: as Python tells it, and as the scripts do it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.model import JobInfo, JobState
from scheduler.queue import PromptQueue
from scheduler.queue.limits import RateLimit
from scheduler.queue.ranking import Hold, claim_rank, explain_place
from tests.contracts.queue_driver import LANE, QueueDriver, new_job

SECOND = 1_000_000
AGING = 30 * SECOND


@dataclass(frozen=True)
class Waiting:
    """A job that has waited for so long."""

    priority: int
    for_s: int


# Multiples of the aging step meet in rank.
WAITING = st.builds(Waiting, st.integers(0, 9), st.sampled_from([0, 1, 15, 29, 30, 31, 60, 90]))


async def claimed_and_predicted(waiting: list[Waiting], aging_ms: int) -> tuple[list[str], list[str]]:
    """The ids of jobs as they are claimed one by one, and as their ranks sort them."""
    async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as redis:
        driver = QueueDriver(PromptQueue(redis, script_flags=False))
        await driver.configure(aging_ms=aging_ms)
        now_us = await driver.now_ms() * 1000
        ranks = {}
        for at, one in enumerate(waiting):
            name, enqueued_us = f"j{at:02}", now_us - one.for_s * SECOND
            await driver.enqueue(new_job(name, one.priority))
            # several may have the very same time, which the queue itself never gives out
            await driver.redis.hset(driver.queue.keys.of("record", name), "q", enqueued_us)
            await driver.redis.zadd(driver.queue.keys.level(LANE, one.priority), {name: enqueued_us})
            ranks[name] = claim_rank(one.priority, enqueued_us, aging_us=aging_ms * 1000)
        predicted = sorted(ranks, key=ranks.__getitem__)
        assert [await driver.queue.position(name) for name in predicted] == list(range(len(waiting)))
        return [(await driver.claim()).id for _ in waiting], predicted


# Fewer than 20: every 20th claim prefers the oldest.
@settings(max_examples=40, deadline=None)
@given(waiting=st.lists(WAITING, min_size=1, max_size=12), aging_ms=st.sampled_from([30_000, 0, 1]))
def test_jobs_are_claimed_by_rank(waiting: list[Waiting], aging_ms: int) -> None:
    claimed, predicted = asyncio.run(claimed_and_predicted(waiting, aging_ms))
    assert claimed == predicted


def test_strict_levels_go_before_any_age() -> None:
    nine, eight = claim_rank(9, 100 * SECOND, aging_us=AGING), claim_rank(8, 50 * SECOND, aging_us=AGING)
    ancient = claim_rank(7, 0, aging_us=AGING)
    assert nine < eight < ancient


def test_a_level_is_worth_its_aging() -> None:
    now = 1000 * SECOND
    usual = claim_rank(5, now, aging_us=AGING)
    assert (
        claim_rank(4, now - AGING - 1, aging_us=AGING)
        < usual
        < claim_rank(4, now - AGING + 1, aging_us=AGING)
    )
    assert usual < claim_rank(4, now - AGING, aging_us=AGING), "of two alike the higher level is first"


def test_without_aging_a_lower_level_waits_for_ever() -> None:
    assert claim_rank(5, 1000 * SECOND, aging_us=0) < claim_rank(4, 0, aging_us=0)


def info(state: JobState, **fields: object) -> JobInfo:
    return JobInfo(**{"id": "j", "state": state, "model": LANE, "priority": 5, "enqueued_at_ms": 0, **fields})


def place(job: JobInfo, *, aging_ms: int = 30_000, paused: bool = False) -> str | None:
    return explain_place(job, aging_ms=aging_ms, paused=paused, now_ms=10_000)


@pytest.mark.parametrize(
    ("job", "aging_ms", "said"),
    [
        (
            info(JobState.WAITING, position=1, priority=8),
            30_000,
            "1 job is before it: priority 8",
        ),
        (info(JobState.WAITING, position=4), 0, "only more urgent jobs and older ones of priority 5"),
        (info(JobState.WAITING, position=4), 30_000, "at priority 5 it counts as 120 s younger"),
        (info(JobState.DELAYED, due_at_ms=12_500), 30_000, "it was enqueued with a delay: due in 2.5 s"),
        (info(JobState.DELAYED, due_at_ms=9_000, attempts=1), 30_000, "it has failed and is tried again"),
    ],
)
def test_a_place_is_explained(job: JobInfo, aging_ms: int, said: str) -> None:
    assert said in str(place(job, aging_ms=aging_ms))


@pytest.mark.parametrize(
    ("hold", "position", "said"),
    [
        (
            Hold(RateLimit(60, None), 12_500),
            2,
            "60 requests a minute, and its jobs in lane 'chat' are held: 2 of them are before it",
        ),
        (
            Hold(RateLimit(None, 90_000), 40_000),
            0,
            "90,000 tokens a minute, and its jobs in lane 'chat' are held",
        ),
        (Hold(RateLimit(None, 90_000), 40_000), 0, "it is the next of them; the next may begin in 30 s"),
        (Hold(RateLimit(6, 9000), 9_000), 1, "6 requests and 9,000 tokens a minute"),
        (Hold(RateLimit(6, 9000), 9_000), 1, "begin once those let go before it are claimed"),
        (Hold(None, 12_500), 1, "has no limit any more"),
        (Hold(RateLimit(), 12_500), 1, "has no limit any more"),
    ],
)
def test_a_hold_is_explained(hold: Hold, position: int, said: str) -> None:
    job = info(JobState.HELD, position=position, tenant="acme")
    assert said in str(explain_place(job, aging_ms=30_000, paused=False, now_ms=10_000, hold=hold))


@pytest.mark.parametrize("state", [state for state in JobState if state.ended or state is JobState.RUNNING])
def test_who_does_not_wait_has_no_place(state: JobState) -> None:
    assert place(info(state)) is None


def test_a_paused_lane_is_part_of_the_reason() -> None:
    assert str(place(info(JobState.WAITING, position=0), paused=True)).endswith("so nothing of it is claimed")
