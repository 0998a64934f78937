"""Exactly what a queue counts, how long it keeps what has ended, and in which order it takes jobs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import pytest

from scheduler.model import URGENT, DedupMode, JobState
from scheduler.queue.records import Enqueued, Full, NewJob
from tests.contracts.limits_contract import acme_job, hold, open_gate
from tests.contracts.queue_contract import ENDS_WITHOUT_RESULT, OnQueue, reach
from tests.contracts.queue_driver import LANE, QueueDriver, new_job
from tests.contracts.suspects_contract import make_suspects

AGING_US = 30_000_000
HOUR_MS = 3_600_000
TEN_YEARS_MS = 315_360_000_000

Transition: TypeAlias = Callable[[QueueDriver], Awaitable[object]]


async def nothing(q: QueueDriver) -> None:
    """An empty queue."""


async def two_wait(q: QueueDriver) -> None:
    await q.enqueue(new_job("a", key="K"), new_job("b"))


async def one_runs(q: QueueDriver) -> None:
    await q.running("a")


async def one_is_delayed(q: QueueDriver) -> None:
    await q.enqueue(new_job("a", delay_ms=60_000))


async def claim_one(q: QueueDriver) -> None:
    await q.claim_all(1)


async def enqueue_two(q: QueueDriver) -> None:
    await q.enqueue(new_job("x"), new_job("y", delay_ms=60_000))


async def enqueue_under_the_key(q: QueueDriver) -> None:
    await q.enqueue(new_job("x", key="K"), new_job("y", key="K"))


async def replace_it(q: QueueDriver) -> None:
    await q.enqueue(new_job("x", key="K", content="other", dedup=DedupMode.REPLACE))


async def one_answered(q: QueueDriver) -> None:
    await q.finish(await q.running("a", key="K", dedup=DedupMode.WINDOW))


async def ask_again(q: QueueDriver) -> None:
    await q.enqueue(*[new_job(f"x{n}", key="K", dedup=DedupMode.WINDOW) for n in range(3)])


async def is_full(q: QueueDriver) -> None:
    await q.configure(max_waiting=2)
    await two_wait(q)


async def lane_is_full(q: QueueDriver) -> None:
    await q.configure(max_waiting__chat=2)
    await two_wait(q)


async def sheds(q: QueueDriver) -> None:
    await q.configure(max_waiting=2, when_full="shed")
    await two_wait(q)


async def enqueue_an_urgent_one(q: QueueDriver) -> None:
    await q.enqueue(new_job("urgent", 9))


def ends(state: JobState) -> Transition:
    async def end(q: QueueDriver) -> None:
        assert await q.finish((await q.claim_all(1)).jobs[0], state)

    return end


def returns(*, counts: bool) -> Transition:
    async def give_back(q: QueueDriver) -> None:
        assert await q.give_back((await q.claim_all(1)).jobs[0], counts=counts)

    return give_back


async def lose_one(q: QueueDriver) -> None:
    (job,) = (await q.claim_all(1)).jobs
    await q.publish(job, "four", "more")
    await q.lose_lease(job)
    assert (await q.tick()).reaped == 1


async def a_suspect(q: QueueDriver) -> None:
    await make_suspects(q, "a")
    await q.enqueue(new_job("b"))
    await q.queue.cancel("b")


async def one_job(q: QueueDriver) -> None:
    await q.enqueue(new_job("a"))


async def cancel_it(q: QueueDriver) -> None:
    assert await q.queue.cancel("a") == "cancelled"


async def pass_its_deadline(q: QueueDriver) -> None:
    await q.pass_deadline("a")
    assert (await q.tick()).expired == 1


async def claim_past_its_deadline(q: QueueDriver) -> None:
    await q.pass_deadline("a")
    assert await q.claimed_ids() == []


async def has_a_deadline(q: QueueDriver) -> None:
    await q.enqueue(new_job("a", deadline_ms=HOUR_MS))


async def delayed_has_a_deadline(q: QueueDriver) -> None:
    await q.enqueue(new_job("a", deadline_ms=HOUR_MS, delay_ms=60_000))


async def one_is_cancelled(q: QueueDriver) -> None:
    await reach(q, JobState.CANCELLED)


async def three_are_dead(q: QueueDriver) -> None:
    for name in "abc":
        await q.finish(await q.running(name), JobState.FAILED)


async def requeue_it(q: QueueDriver) -> None:
    assert await q.queue.requeue("a") == "waiting"


async def delete_it(q: QueueDriver) -> None:
    assert await q.queue.delete("a") == "deleted"


async def discard_two(q: QueueDriver) -> None:
    assert await q.queue.discard(["a", "b", "unknown"]) == 2


async def keep_one_dead(q: QueueDriver) -> None:
    await q.configure(max_dead=1)
    assert (await q.tick()).forgotten == 2


async def three_are_done(q: QueueDriver) -> None:
    for name in "abc":
        await q.finish(await q.running(name))


async def keep_one_finished(q: QueueDriver) -> None:
    await q.configure(max_finished=1)
    assert (await q.tick()).forgotten == 2


async def lose_its_request(q: QueueDriver) -> None:
    await q.redis.delete(q.queue.keys.of("payload", "a"))
    assert await q.claimed_ids() == []


async def purge_the_lane(q: QueueDriver) -> None:
    assert await q.queue.purge(LANE) == 2


async def purge_the_delayed(q: QueueDriver) -> None:
    assert (await q.queue.purge_delayed(LANE))[1] == 1


async def run_it_now(q: QueueDriver) -> None:
    assert await q.queue.reschedule("a", 0) is JobState.WAITING


async def raise_it(q: QueueDriver) -> None:
    await q.queue.set_priority("a", 9)


async def one_is_held(q: QueueDriver) -> None:
    await hold(q, acme_job("a"))


async def release_it(q: QueueDriver) -> None:
    await open_gate(q)
    assert (await q.tick()).released == 1


CASES: list[tuple[str, Transition, Transition, dict[str, int]]] = [
    ("enqueued", nothing, enqueue_two, {"n": 2, "t:enqueued": 2}),
    ("joined", two_wait, enqueue_under_the_key, {"t:joined": 2}),
    ("replaced", two_wait, replace_it, {"token": 1, "t:cancelled": 1, "t:enqueued": 1}),
    ("reused", one_answered, ask_again, {"t:reused": 3}),
    ("refused", is_full, enqueue_two, {"t:refused": 2}),
    ("refused by a lane", lane_is_full, enqueue_two, {"t:refused": 2, "t:refused_lane": 2}),
    ("shed", sheds, enqueue_an_urgent_one, {"token": 1, "t:shed": 1, "t:enqueued": 1}),
    ("claimed", two_wait, claim_one, {"n": -1, "token": 1, "claims": 1}),
    ("done", one_job, ends(JobState.DONE), {"n": -1, "token": 1, "claims": 1, "t:done": 1, "ran": 1}),
    ("failed", one_job, ends(JobState.FAILED), {"n": -1, "token": 1, "claims": 1, "t:failed": 1, "ran": 1}),
    ("retried", one_job, returns(counts=True), {"token": 1, "claims": 1, "t:retried": 1}),
    ("given back", one_job, returns(counts=False), {"token": 1, "claims": 1, "t:given_back": 1}),
    (
        "lost",
        one_job,
        lose_one,
        {"token": 2, "claims": 1, "t:lost": 1, "t:repeated": 1, "t:wasted_tokens": 5},
    ),
    (
        "quarantined",
        a_suspect,
        lose_one,
        {
            "n": -1,
            "token": 2,
            "claims": 1,
            "t:lost": 1,
            "t:quarantined": 1,
            "t:failed": 1,
            "t:repeated": 1,
            "t:wasted_tokens": 5,
        },
    ),
    ("cancelled", one_job, cancel_it, {"n": -1, "token": 1, "t:cancelled": 1}),
    ("cancelled while delayed", one_is_delayed, cancel_it, {"n": -1, "token": 1, "t:cancelled": 1}),
    ("cancelled while held", one_is_held, cancel_it, {"n": -1, "token": 1, "t:cancelled": 1}),
    ("cancelled while running", one_runs, cancel_it, {"token": 1, "t:cancelled": 1}),
    ("expired", has_a_deadline, pass_its_deadline, {"n": -1, "token": 1, "t:expired": 1}),
    ("expired at a claim", has_a_deadline, claim_past_its_deadline, {"n": -1, "token": 1, "t:expired": 1}),
    (
        "expired while delayed",
        delayed_has_a_deadline,
        pass_its_deadline,
        {"n": -1, "token": 1, "t:expired": 1},
    ),
    ("without its request", one_job, lose_its_request, {"n": -1, "token": 1, "t:failed": 1}),
    ("requeued", one_is_cancelled, requeue_it, {"n": 1, "token": 1, "t:requeued": 1}),
    ("deleted", one_is_cancelled, delete_it, {"t:deleted": 1}),
    ("discarded", three_are_dead, discard_two, {"t:dead_purged": 2}),
    ("too many dead letters", three_are_dead, keep_one_dead, {"t:dead_dropped": 2}),
    ("too many finished", three_are_done, keep_one_finished, {"t:finished_dropped": 2}),
    ("purged", two_wait, purge_the_lane, {"n": -2, "token": 2, "t:cancelled": 2}),
    ("purged while delayed", one_is_delayed, purge_the_delayed, {"n": -1, "token": 1, "t:cancelled": 1}),
    ("due now", one_is_delayed, run_it_now, {}),
    ("more urgent", one_job, raise_it, {}),
    ("released", one_is_held, release_it, {}),
]


async def counters(q: QueueDriver) -> Counter[str]:
    """All that a queue counts, in one lane."""
    meta = await q.meta()
    assert meta.get("n", "0") == meta.get(f"n:{LANE}", "0")
    names = [name for name in meta if name.startswith("t:") or name in ("n", "token", "claims")]
    return Counter({name: int(meta[name]) for name in names} | {"ran": int(meta.get(f"ran:{LANE}", 0))})


@asynccontextmanager
async def changes(q: QueueDriver, wanted: dict[str, int]) -> AsyncIterator[None]:
    await q.work_is_not_due()  # it counts the jobs that ran from zero
    before = await counters(q)
    yield
    after = await counters(q)
    after.subtract(before)
    assert {name: n for name, n in after.items() if n} == wanted


async def kept_ms(q: QueueDriver, job_id: str) -> int:
    """For how long an ended job is listed from its end on."""
    record = await q.record(job_id)
    listed = q.queue.keys.fixed("dead" if record["s"] == "failed" else "finished")
    return int(await q.redis.zscore(listed, job_id)) - int(record["e"])


async def lifetimes(q: QueueDriver, job_id: str, alias: str) -> dict[str, int | None]:
    """How long each key of a job lives, in whole minutes; None for a key that is not there."""
    keys = {
        kind: q.queue.keys.of(kind, job_id) for kind in ("record", "payload", "result", "tickets", "stream")
    }
    keys["alias"] = q.queue.keys.of("alias", alias)
    left = {kind: await q.redis.pttl(key) for kind, key in keys.items()}
    return {kind: None if ms == -2 else round(ms / 60_000) for kind, ms in left.items()}


class ExactContract(OnQueue):
    """The figures of a `PromptQueue`."""

    # Counters

    @pytest.mark.parametrize(
        ("before", "act", "wanted"), [one[1:] for one in CASES], ids=[one[0] for one in CASES]
    )
    async def test_each_transition_changes_the_counters_that_tell_of_it_and_no_others(
        self, q: QueueDriver, before: Transition, act: Transition, wanted: dict[str, int]
    ) -> None:
        await q.tick()
        await before(q)
        async with changes(q, wanted):
            await act(q)

    async def test_members_without_records_are_counted(self, q: QueueDriver, untidy: None) -> None:
        await q.enqueue(*[new_job(name) for name in "abc"], new_job("d", delay_ms=1))
        for name in "abd":
            await q.redis.delete(q.queue.keys.of("record", name))
        await q.pass_ms(1)
        await q.tick()
        assert await q.claimed_ids() == ["c"]
        meta = await q.meta()
        assert (meta["t:garbage"], meta["n"]) == ("3", "0")

    async def test_attempts_add_up_to_the_time_of_their_lane(self, q: QueueDriver) -> None:
        for seconds, end in ((5, q.finish), (7, q.give_back)):
            job = await q.running("a") if seconds == 5 else await q.running("b")
            await q.began_s_ago(job, seconds)
            await end(job)
        assert 12_000 <= int((await q.meta())[f"ms:{LANE}"]) < 14_000

    # Lifetimes

    @pytest.mark.parametrize("own_min", [None, 10, 30])
    @pytest.mark.parametrize("state", [JobState.DONE, *ENDS_WITHOUT_RESULT])
    async def test_all_that_belongs_to_an_ended_job_lives_as_long_as_its_record(
        self, q: QueueDriver, state: JobState, own_min: int | None
    ) -> None:
        await q.configure(result_ttl_ms=20 * 60_000, dead_ttl_ms=40 * 60_000)
        own_ms = None if own_min is None else own_min * 60_000
        await q.enqueue(
            new_job("a", 0, key="K", delay_ms=1, result_ttl_ms=own_ms, deadline_ms=HOUR_MS),
            new_job("joins", 0, key="K", delay_ms=1, result_ttl_ms=own_ms, deadline_ms=HOUR_MS),
        )
        await q.pass_ms(1)
        await q.tick()
        job = await q.claim()
        await q.publish(job, "x")
        match state:
            case JobState.DONE | JobState.FAILED:
                await q.finish(job, state, seq=2, result_ttl_ms=own_ms or 20 * 60_000)
            case JobState.CANCELLED:
                await q.queue.cancel("a")
            case _:
                await q.give_back(job, seq=2)
                await q.pass_deadline("a")
                await q.tick()
                state = JobState.EXPIRED
        assert await q.state("a") == state.value
        minutes = 40 if state is JobState.FAILED else own_min or 20
        has_result = state is JobState.DONE
        assert await lifetimes(q, "a", "joins") == {
            "record": minutes,
            "payload": None if has_result else minutes,
            "result": minutes if has_result else None,
            "tickets": minutes,
            "stream": minutes,
            "alias": minutes,
        }
        assert await kept_ms(q, "a") == minutes * 60_000

    @pytest.mark.parametrize(
        ("state", "settings", "kept"),
        [
            (JobState.CANCELLED, {"result_ttl_ms": 0}, 1),
            (JobState.CANCELLED, {"result_ttl_ms": 1}, 1),
            (JobState.CANCELLED, {"result_ttl_ms": "1000.5"}, 1000),
            (
                JobState.CANCELLED,
                {"result_ttl_ms": "1e99", "max_result_ttl_ms": "1e99"},
                TEN_YEARS_MS,
            ),
            (JobState.CANCELLED, {"result_ttl_ms": "soon"}, HOUR_MS),
            (JobState.CANCELLED, {"max_result_ttl_ms": 70_000}, 70_000),
            (JobState.CANCELLED, {"max_result_ttl_ms": 0}, 1),
            (JobState.CANCELLED, {"own_ms": 0}, 1),
            (JobState.CANCELLED, {"own_ms": 1}, 1),
            (JobState.CANCELLED, {"own_ms": 70_000}, 70_000),
            (JobState.CANCELLED, {"own_ms": 70_000, "max_result_ttl_ms": 60_000}, 60_000),
            (JobState.FAILED, {"dead_ttl_ms": 0}, 1),
            (JobState.FAILED, {"dead_ttl_ms": 70_000, "own_ms": 1}, 70_000),
            (JobState.FAILED, {"dead_ttl_ms": 2 * TEN_YEARS_MS}, TEN_YEARS_MS),
            (JobState.DONE, {"own_ms": 70_000}, 70_000),
            (JobState.DONE, {"dedup_ttl_ms": 90_000, "own_ms": 70_000}, 90_000),
            (JobState.DONE, {"dedup_ttl_ms": 60_000, "own_ms": 70_000}, 70_000),
            (JobState.DONE, {"dedup_ttl_ms": 2 * TEN_YEARS_MS}, TEN_YEARS_MS),
            (JobState.DONE, {"dedup_ttl_ms": 0}, 1),
        ],
    )
    async def test_an_ended_job_is_kept_for_exactly_its_time(
        self, q: QueueDriver, untidy: None, state: JobState, settings: dict[str, Any], kept: int
    ) -> None:
        own_ms = settings.get("own_ms")
        await q.configure(**{name: value for name, value in settings.items() if name != "own_ms"})
        dedup = DedupMode.WINDOW if "dedup_ttl_ms" in settings else DedupMode.UNTIL_FINISHED
        job = await q.running("a", key="K", dedup=dedup, result_ttl_ms=own_ms)
        listed = q.queue.keys.fixed("dead" if state is JobState.FAILED else "finished")
        began_ms = await q.now_ms()
        if state is JobState.CANCELLED:
            await q.queue.cancel("a")
        else:
            await q.finish(job, state, result_ttl_ms=1)
        until_ms = int(await q.redis.zscore(listed, "a"))
        if ended := (await q.record("a")).get("e"):
            assert until_ms - int(ended) == kept
        else:
            assert 0 <= until_ms - kept - began_ms <= await q.now_ms() - began_ms, "it has gone already"

    # Order

    @pytest.mark.parametrize("seed", range(6))
    async def test_claims_of_any_size_over_any_lanes_take_jobs_in_order(
        self, q: QueueDriver, seed: int
    ) -> None:
        chance = random.Random(seed)
        base = (await q.now_ms() + HOUR_MS) * 1000  # nobody has waited for long
        lanes = ["x", "y", "z", "idle"]
        jobs = [
            new_job(f"j{n}", chance.choice([0, 1, 3, 5, 6, 7, 8, 9]), lane=chance.choice(lanes[:3]))
            for n in range(90)
        ]
        await q.enqueue(*jobs)
        steps = chance.sample(range(-200, 200), len(jobs))
        ranks = {}
        for job, step in zip(jobs, steps, strict=True):
            # Steps of a third of the aging time, so that sums of different levels meet.
            ranks[job.job_id] = base + step * AGING_US // 3 + job.priority % 2
            level = q.queue.keys.level(job.lane, job.priority)
            await q.redis.hset(q.queue.keys.of("record", job.job_id), "q", ranks[job.job_id])
            await q.redis.zadd(level, {job.job_id: ranks[job.job_id]})

        def urgency(job: NewJob) -> tuple[int, int, int]:
            p, rank = job.priority, ranks[job.job_id]
            return (-p, rank, 0) if p >= URGENT else (-URGENT + 1, rank + (9 - p) * AGING_US, -p)

        left = sorted(jobs, key=urgency)
        while left:
            quotas = {lane: chance.choice([1, 5, 40]) for lane in lanes}
            limit = chance.choice([1, 2, 7, 33])
            wanted: list[NewJob] = []
            room = dict(quotas)
            for job in left:
                if len(wanted) < limit and room[job.lane]:
                    room[job.lane] -= 1
                    wanted.append(job)
            left = [job for job in left if job not in wanted]
            await q.redis.delete(
                *[q.queue.keys.of(kind, lane) for kind in ("wake", "urgent") for lane in lanes]
            )
            claim = await q.claim_all(limit, lanes=quotas)
            assert [job.id for job in claim.jobs] == [job.job_id for job in wanted]
            assert (claim.more, claim.more_urgent) == (
                bool(left),
                any(job.priority >= URGENT for job in left),
            )
            for lane in lanes:
                there = [job.priority for job in left if job.lane == lane]
                tokens = [await q.redis.llen(q.queue.keys.of(kind, lane)) for kind in ("wake", "urgent")]
                assert tokens == [bool(there), max(there, default=0) >= URGENT], lane

    @pytest.mark.parametrize("seed", range(4))
    async def test_shedding_drops_the_least_urgent_newest_that_never_ran_each_time(
        self, q: QueueDriver, seed: int
    ) -> None:
        chance = random.Random(seed)
        lanes = ["x", "y", "z"]
        stored = [
            new_job(
                f"j{n}",
                chance.randrange(7),
                lane=chance.choice(lanes),
                delay_ms=chance.choice([None, None, 60_000 + 10 * n]),
            )
            for n in range(24)
        ]
        await q.enqueue(*stored)
        running = (await q.claim_all(4, lanes=dict.fromkeys(lanes, 4))).jobs
        for job in running[:2]:
            await q.give_back(job)
        ran = {job.id for job in running}
        await q.configure(max_waiting=24, when_full="shed", max_waiting__z=9)
        await q.enqueue(*[new_job(f"fill{n}", 6, lane="x") for n in range(2)])
        waits = {job.job_id: job for job in stored if job.job_id not in ran}
        waits |= {f"fill{n}": new_job(f"fill{n}", 6, lane="x") for n in range(2)}
        for n in range(30):
            new = new_job(f"new{n}", chance.randrange(10), lane=chance.choice(lanes))
            of_lane = [one for one in waits.values() if one.lane == new.lane]
            full = new.lane == "z" and await q.waiting("z") >= 9
            places = of_lane if full else list(waits.values())
            newest = {one.job_id: int((await q.record(one.job_id))["q"]) for one in places}
            victims = sorted(
                (one for one in places if one.priority < new.priority),
                key=lambda one: (one.priority, -newest[one.job_id]),
            )
            full = full or await q.waiting() >= 24
            (outcome,) = await q.enqueue(new)
            if full:
                if not victims:
                    assert isinstance(outcome, Full)
                    continue
                assert await q.state(victims[0].job_id) == "shed"
                del waits[victims[0].job_id]
            assert isinstance(outcome, Enqueued)
            waits[new.job_id] = new
