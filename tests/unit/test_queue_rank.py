"""The order of claiming: the rule in Python, held equal to the rule in Lua."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import fakeredis
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.queue import PromptQueue
from scheduler.queue.rank import claim_order
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
            ranks[name] = claim_order(one.priority, enqueued_us, aging_us=aging_ms * 1000)
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
    nine, eight = claim_order(9, 100 * SECOND, aging_us=AGING), claim_order(8, 50 * SECOND, aging_us=AGING)
    ancient = claim_order(7, 0, aging_us=AGING)
    assert nine < eight < ancient


def test_a_level_is_worth_its_aging() -> None:
    now = 1000 * SECOND
    usual = claim_order(5, now, aging_us=AGING)
    assert (
        claim_order(4, now - AGING - 1, aging_us=AGING)
        < usual
        < claim_order(4, now - AGING + 1, aging_us=AGING)
    )
    assert usual < claim_order(4, now - AGING, aging_us=AGING), "of two alike the higher level is first"


def test_without_aging_a_lower_level_waits_for_ever() -> None:
    assert claim_order(5, 1000 * SECOND, aging_us=0) < claim_order(4, 0, aging_us=0)
