"""The queue on real servers: Valkey, and the oldest Redis that is supported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from scheduler.model import JobState
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import WriteOutcome
from scheduler.queue.scripts import Scripts
from tests.contracts.audit_contract import AuditContract
from tests.contracts.bounds_contract import BoundsContract
from tests.contracts.edges_contract import EdgesContract
from tests.contracts.exact_contract import ExactContract
from tests.contracts.extremes_contract import ExtremesContract
from tests.contracts.keeping_contract import KeepingContract
from tests.contracts.limits_contract import LimitsContract
from tests.contracts.operators_contract import OperatorsContract
from tests.contracts.queue_contract import OnQueue, QueueContract
from tests.contracts.queue_driver import LANE, LEASE_MS, QueueDriver, deltas, ending, new_job
from tests.contracts.suspects_contract import SuspectsContract
from tests.patience import SOON_S


class OnServers(OnQueue):
    @pytest.fixture
    async def queue(self, server_url: str) -> AsyncIterator[PromptQueue]:
        async with Redis.from_url(server_url) as redis:
            queue = PromptQueue(redis, "real")
            await queue.load()
            yield queue


class TestQueueOnServers(OnServers, QueueContract):
    @pytest.fixture
    async def full(self, q: QueueDriver) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Fills the server's memory as far as it goes."""
        yield lambda: q.redis.config_set("maxmemory", 1)
        await q.redis.config_set("maxmemory", 0)

    async def test_without_memory_an_enqueue_is_refused_with_nothing_written(
        self, q: QueueDriver, full: Callable[[], Awaitable[None]]
    ) -> None:
        await q.enqueue(new_job("a", key="K"))
        before = await q.dump()
        await full()
        with pytest.raises(OutOfMemoryError):
            await q.enqueue(new_job("b"), new_job("c", key="K"))
        assert await q.dump() == before

    async def test_without_memory_work_goes_on(
        self, q: QueueDriver, full: Callable[[], Awaitable[None]]
    ) -> None:
        await q.lose_lease(await q.running("lost"))
        await q.enqueue(*[new_job(name) for name in ("done", "failed", "back", "waits", "purged")])
        await full()
        await q.queue.load()
        await q.configure(aging_ms=1000)
        done, failed, back = (await q.claim_all(3)).jobs
        assert await q.publish(done, "x")
        assert await q.finish(done, seq=2)
        assert await q.finish(failed, JobState.FAILED)
        assert await q.give_back(back)
        assert (await q.tick()).reaped == 1
        held = [(back.id, back.token)]
        assert await q.queue.renew(q.worker, held, lease_ms=LEASE_MS, about=b"{}") == ["lost"]
        assert await q.queue.set_priority("waits", 9) is JobState.WAITING
        assert await q.queue.cancel("waits") == "cancelled"
        assert await q.queue.requeue("failed") == "waiting"
        assert await q.queue.pause(LANE)
        assert await q.queue.resume(LANE)
        assert await q.queue.purge(LANE) == 4
        assert await q.event_types("done") == ["queued", "delta", "done"]

    async def test_numbers_past_fourteen_digits_keep_them_all(self, q: QueueDriver) -> None:
        big = 2**53 - 100_000
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"us": big, "token": big})
        await q.enqueue(new_job("a", deadline_ms=60_000, key="K"), new_job("b", delay_ms=1))
        assert (await q.record("a"))["q"] == str(big + 1)
        assert await q.redis.zscore(q.queue.keys.level(LANE, 5), "a") == big + 1
        job = await q.claim()
        assert job.token == big + 1
        assert await q.publish(job, "x")
        await q.lose_lease(job)
        await q.tick()
        again = await q.claim()
        assert (again.id, again.token) == ("a", big + 3)
        assert await q.finish(again)
        assert [said["id"] for said in await q.events("a")] == [
            "0-1",
            f"{big + 1}-1",
            f"{big + 2}-1",
            f"{big + 3}-1",
        ]

    async def test_scripts_are_sent_again_to_a_server_that_has_lost_them(self, q: QueueDriver) -> None:
        await q.redis.script_flush()
        job = await q.running("a")
        await q.redis.script_flush()
        outcome = await q.queue.write(publications=[deltas(job, "x")], endings=[ending(job, seq=2)])
        assert outcome == WriteOutcome()
        assert await q.event_types("a") == ["queued", "delta", "done"]

    async def test_scripts_that_are_lost_again_as_soon_as_they_are_loaded_run(
        self, q: QueueDriver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        load = Scripts.load

        async def load_and_lose(scripts: Scripts) -> None:
            await load(scripts)
            await q.redis.script_flush()

        monkeypatch.setattr(Scripts, "load", load_and_lose)
        await q.redis.script_flush()
        job = await q.running("a")
        outcome = await q.queue.write(publications=[deltas(job, "x")], endings=[ending(job, seq=2)])
        assert outcome == WriteOutcome()
        assert await q.event_types("a") == ["queued", "delta", "done"]

    async def test_refusals_that_no_process_lived_to_tell_of_excuse_what_was_lost(
        self, q: QueueDriver
    ) -> None:
        while (await q.redis.info("server"))["uptime_in_seconds"] < 2:
            await asyncio.sleep(0.1)  # a start since the last tick excuses as well
        await q.tick()
        for losses in range(2):
            job = await q.running("a") if not losses else await q.claim()
            await q.lose_lease(job)
            await q.nobody_ticked(1.2)
            if losses:
                await q.redis.config_set("min-replicas-to-write", 1)
                with pytest.raises(ResponseError, match="NOREPLICAS"):
                    await q.tick()
                await q.redis.config_set("min-replicas-to-write", 0)
            assert (await q.tick()).reaped == 1
            assert (await q.record("a")).get("o") == "1", "the first was nobody's fault but its own"

    async def test_every_key_of_a_queue_carries_its_hash_tag(self, q: QueueDriver) -> None:
        await q.configure(max_waiting=2, when_full="block")
        job = await q.running("a", key="K", tenant="t", deadline_ms=60_000)
        await q.enqueue(
            new_job("b", key="K", tenant="t"), new_job("c", delay_ms=60_000), new_job("d"), new_job("e")
        )
        await q.queue.renew(q.worker, [], lease_ms=LEASE_MS, about=b"{}")
        await q.tick()
        await q.finish(job)
        keys = [key async for key in q.redis.scan_iter()]
        assert len(keys) > 15
        assert all(key.startswith(b"ps:{real}:") for key in keys)


class TestKeepingOnServers(OnServers, KeepingContract):
    pass


class TestAuditOnServers(OnServers, AuditContract):
    pass


class TestOperatorsOnServers(OnServers, OperatorsContract):
    pass


async def test_databases_of_one_server_do_not_hear_each_other(server_url: str) -> None:
    async with Redis.from_url(f"{server_url}/0") as one, Redis.from_url(f"{server_url}/1") as other:
        here, there = QueueDriver(PromptQueue(one, "shared")), QueueDriver(PromptQueue(other, "shared"))
        job = await here.running("a")
        assert (await there.running("a")).token == job.token
        async with one.pubsub() as pubsub:
            await pubsub.psubscribe("*")
            assert (await pubsub.get_message(timeout=SOON_S))["type"] == "psubscribe"
            await there.publish(job, "not yours")
            await there.queue.cancel("a")
            await here.publish(job, "yours")
            heard = [await pubsub.get_message(timeout=SOON_S) for _ in range(4)]
        channels = [message["channel"].decode() for message in heard if message]
        foreign = [there.queue.channel("a"), there.queue.control_channel, there.queue.channel("a")]
        assert channels == [*foreign, here.queue.channel("a")]
        assert not {*foreign} & {here.queue.channel("a"), here.queue.control_channel}


class OnValkey(OnServers):
    """What the scripts do by themselves needs a real server, and not each version."""

    @pytest.fixture
    def server_url(self, valkey_url: str) -> str:
        return valkey_url


class TestExactOnValkey(OnValkey, ExactContract):
    pass


class TestBoundsOnValkey(OnValkey, BoundsContract):
    pass


class TestExtremesOnValkey(OnValkey, ExtremesContract):
    pass


class TestLimitsOnValkey(OnValkey, LimitsContract):
    pass


class TestSuspectsOnValkey(OnValkey, SuspectsContract):
    pass


class TestEdgesOnValkey(OnValkey, EdgesContract):
    pass
