"""What is kept of jobs that have ended, and for how long, on whatever server the queue is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from redis.exceptions import ResponseError

from scheduler.errors import NewerData
from scheduler.model import DedupMode, JobState
from scheduler.queue.records import Enqueued
from scheduler.redis_server.errors import translate
from tests.contracts.queue_contract import OnQueue
from tests.contracts.queue_driver import LEASE_MS, QueueDriver, ending, new_job

DAY_MS = 86_400_000
REQUEST = orjson.dumps({"prompt": "x" * 1000})


def large(name: str, **fields: Any) -> Any:
    """A job whose request takes about a thousand bytes."""
    return new_job(name, **{"payload": REQUEST, **fields})


async def requests(q: QueueDriver, *names: str) -> list[str]:
    """Whose requests are there."""
    return [name for name in names if await q.queue.request(name) is not None]


async def alias_ttl_ms(q: QueueDriver, name: str) -> int:
    return int(await q.redis.pttl(q.queue.keys.of("alias", name)))


class KeepingContract(OnQueue):
    """The bounds of what a `PromptQueue` keeps."""

    # The format

    @pytest.mark.parametrize("script", ["enqueue", "claim", "configure", "tick"])
    async def test_what_a_newer_version_has_written_is_left_alone(self, q: QueueDriver, script: str) -> None:
        await q.configure()
        assert (await q.meta())["format"] == "1"
        await q.enqueue(new_job("a"))
        await q.redis.hset(q.queue.keys.fixed("meta"), "format", 2)
        before = await q.dump()
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "enqueue": lambda: q.enqueue(new_job("b")),
            "claim": q.claim_all,
            "configure": q.configure,
            "tick": lambda: q.queue._scripts.run("tick", "w1", 60_000, LEASE_MS, 25, "", 0, 0),
        }
        with pytest.raises(ResponseError) as refused:
            await calls[script]()
        assert isinstance(translate(refused.value, "redis://host"), NewerData)
        assert await q.dump() == before

    # Requests

    async def test_requests_of_replaced_jobs_go_at_once(self, q: QueueDriver) -> None:
        for n in range(5):
            await q.enqueue(large(f"j{n}", key="draft", dedup=DedupMode.REPLACE, delay_ms=60_000))
        assert await requests(q, *[f"j{n}" for n in range(5)]) == ["j4"]

    async def test_of_cancelled_jobs_the_latest_requests_are_kept(self, q: QueueDriver) -> None:
        await q.configure(spare_bytes=5000)
        names = [f"j{n:02}" for n in range(20)]
        for name in names:
            await q.enqueue(large(name))
            await q.queue.cancel(name)
        assert await requests(q, *names) == names[-4:]
        assert await q.queue.requeue(names[-1]) == "waiting"
        assert await q.queue.requeue(names[0]) == "payload_lost"

    async def test_the_bytes_of_kept_requests_are_counted_exactly(self, q: QueueDriver) -> None:
        for name in ("a", "b"):
            await q.enqueue(large(name))
            await q.queue.cancel(name)
        assert int((await q.meta())["spare"]) == 2 * (len(REQUEST) + 200)

    async def test_a_purge_keeps_no_more_requests_than_the_bound(self, q: QueueDriver) -> None:
        await q.configure(spare_bytes=5000)
        names = [f"j{n:02}" for n in range(20)]
        await q.enqueue(*[large(name) for name in names])
        while await q.queue.purge("chat", chunk=7):
            pass
        assert len(await requests(q, *names)) == 4

    async def test_a_purge_ends_with_the_last_job_and_not_with_a_full_chunk(self, q: QueueDriver) -> None:
        await q.enqueue(*[new_job(f"j{n}") for n in range(450)])
        assert await q.queue.purge("chat") == 450

    @pytest.mark.parametrize("state", [JobState.SHED, JobState.EXPIRED])
    async def test_shed_and_expired_jobs_share_that_bound(self, q: QueueDriver, state: JobState) -> None:
        await q.configure(spare_bytes=5000, max_waiting=1, when_full="shed")
        names = [f"j{n}" for n in range(10)]
        for n, name in enumerate(names):
            if state is JobState.EXPIRED:
                await q.enqueue(large(name, deadline_ms=1))
                await q.pass_ms(1)
                await q.tick()
            else:
                await q.enqueue(large(name, priority=n))
        ended = [name for name in names if await q.state(name) == state.value]
        assert len(ended) >= 9
        assert len(await requests(q, *ended)) == 4

    async def test_a_request_that_is_larger_than_the_bound_goes_at_once(self, q: QueueDriver) -> None:
        await q.configure(spare_bytes=500)
        await q.enqueue(large("a"))
        await q.queue.cancel("a")
        assert await requests(q, "a") == []

    async def test_what_makes_room_does_not_take_the_request_of_a_job_that_was_requeued(
        self, q: QueueDriver
    ) -> None:
        await q.configure(spare_bytes=3000)
        for name in ("a", "b"):
            await q.enqueue(large(name))
            await q.queue.cancel(name)
        await q.queue.requeue("a")
        failed = await q.claim()
        await q.finish(failed, JobState.FAILED)
        for n in range(5):
            await q.enqueue(large(f"j{n}"))
            await q.queue.cancel(f"j{n}")
        assert await requests(q, "a", "b") == ["a"], "a dead letter keeps its request"

    # Numbers of ended jobs

    async def test_the_bound_of_dead_letters_holds_at_each_end(self, q: QueueDriver) -> None:
        await q.configure(max_dead=3)
        await q.enqueue(*[new_job(f"j{n:02}") for n in range(20)])
        jobs = (await q.claim_all(20)).jobs
        await q.queue.write(endings=[ending(job, JobState.FAILED) for job in jobs])
        assert await q.redis.zcard(q.queue.keys.fixed("dead")) == 3
        assert (await q.meta())["t:dead_dropped"] == "17"

    async def test_finished_jobs_are_bounded_and_the_oldest_go_first(self, q: QueueDriver) -> None:
        await q.configure(max_finished=3)
        for n in range(6):
            await q.finish(await q.running(f"j{n}", key=f"K{n}", dedup=DedupMode.WINDOW))
            await q.pass_ms(1)
        report = await q.tick()
        assert report.forgotten == 3
        assert [await q.state(f"j{n}") for n in range(6)] == [None] * 3 + ["done"] * 3
        assert (await q.meta())["t:finished_dropped"] == "3"
        assert await q.owner("K0") is None

    async def test_jobs_that_are_kept_for_long_do_not_push_out_those_that_have_just_ended(
        self, q: QueueDriver
    ) -> None:
        await q.configure(max_finished=4)
        for n in range(4):
            await q.finish(await q.running(f"long{n}"), result_ttl_ms=DAY_MS)
            await q.pass_ms(1)
        for n in range(2):
            await q.finish(await q.running(f"short{n}"), result_ttl_ms=60_000)
            await q.pass_ms(1)
        await q.tick()
        assert [await q.state(f"short{n}") for n in range(2)] == ["done", "done"]

    # Ids of callers who joined

    async def test_the_id_that_a_joiner_proposed_lives_as_long_as_the_job(self, q: QueueDriver) -> None:
        job = await q.running("a", key="K")
        await q.enqueue(new_job("b", key="K"))
        assert await q.queue.joined("b") == "a"
        assert await alias_ttl_ms(q, "b") > DAY_MS
        await q.finish(job, result_ttl_ms=30_000)
        assert 0 < await alias_ttl_ms(q, "b") <= 30_000

    async def test_the_id_of_who_got_a_finished_answer_goes_with_that(self, q: QueueDriver) -> None:
        await q.configure(dedup_ttl_ms=30_000)
        window: dict[str, Any] = {"key": "K", "dedup": DedupMode.WINDOW}
        await q.finish(await q.running("a", **window), result_ttl_ms=1000)
        await q.enqueue(new_job("b", **window))
        assert 0 < await alias_ttl_ms(q, "b") <= 60_000

    async def test_beyond_a_thousand_such_ids_a_job_has_only_brief_ones(self, q: QueueDriver) -> None:
        await q.enqueue(new_job("a", key="K"))
        await q.redis.hset(q.queue.keys.of("record", "a"), "j", 1000)
        again = [new_job("b", key="K")]
        assert await q.enqueue(*again) == [Enqueued("a", deduplicated=True)]
        assert 0 < await alias_ttl_ms(q, "b") <= 60_000
        assert await q.enqueue(*again) == [Enqueued("a", deduplicated=True)]
        assert (await q.record("a"))["j"] == "1001", "a call that comes again counts once"
