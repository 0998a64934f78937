"""No script breaks off after its first write, whatever its arguments and the settings in Redis are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from redis.exceptions import ResponseError

from scheduler import admin
from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import ClaimedJob, Offer
from scheduler.queue.scripts import NAMES, Argument, Call
from tests.contracts.queue_contract import OnQueue
from tests.contracts.queue_driver import (
    LANE,
    LEASE_MS,
    QueueDriver,
    deltas,
    ending,
    event,
    new_job,
    returning,
    snapshot,
)

EXTREMES = (
    "",
    "-1",
    "0",
    "1.5",
    "nan",
    "1e400",
    "9223372036854775807",
    "18446744073709551616",
    "9" * 400,
    "x",
    "a b",
    "x" * 100_000,
)
TENANT = "acme"
ENDPOINT = "chat.0"


class Scene:
    """A queue with a job in each state, two of them running and limited."""

    def __init__(self, q: QueueDriver) -> None:
        self.q = q
        self.running: Sequence[ClaimedJob] = ()

    async def set(self) -> None:
        """Begin anew."""
        q = self.q
        await q.redis.flushall()
        tokens = RateLimit(tokens=1_000_000)
        await q.configure(tenants={TENANT: tokens}, endpoints={ENDPOINT: tokens}, max_dead=2)
        for name, state in (("dead", JobState.FAILED), ("done", JobState.DONE)):
            await q.finish(await q.running(name, key=name, dedup=DedupMode.WINDOW), state)
        await q.enqueue(new_job("r1", tenant=TENANT, key="R1"), new_job("r2", tenant=TENANT, key="R2"))
        self.running = (await self.claim()).jobs
        later: dict[str, Any] = {"key": "K", "delay_ms": 60_000, "deadline_ms": 90_000, "result_ttl_ms": 2000}
        await q.enqueue(new_job("waits", 3), new_job("later", **later))
        await q.tick()

    async def claim(self) -> Any:
        """Claim what is there."""
        return await self.q.claim_all(9, offers={LANE: [Offer(ENDPOINT, 9)]})

    async def enqueue(self) -> None:
        """A new job and one that joins."""
        timed: dict[str, Any] = {"deadline_ms": 90_000, "max_attempts": 2, "result_ttl_ms": 1000}
        await self.q.enqueue(
            new_job("n1", tenant=TENANT, key="N", dedup=DedupMode.REPLACE, **timed),
            new_job("n2", 7, key="K", delay_ms=1000, **timed),
        )

    async def publish(self) -> None:
        """Events of two jobs in one call."""
        await self.q.queue.write(publications=[deltas(job, "a", "b") for job in self.running])

    async def retry(self) -> None:
        """One job goes back at once, one later."""
        first, second = self.running
        back = [returning(first, used_tokens=7), returning(second, delay_ms=500, used_tokens=7)]
        await self.q.queue.write(returns=back)

    async def finish(self) -> None:
        """One job is done, with events that are left, and one has failed."""
        first, second = self.running
        events = (event("delta", first, 1, text="a"),)
        done = ending(first, seq=2, events=events, used_tokens=7)
        await self.q.queue.write(endings=[done, ending(second, JobState.FAILED, used_tokens=7)])

    async def call(self, script: str) -> None:
        """Call a script as its one call site does; those of maintenance one by one."""
        q, queue = self.q, self.q.queue
        held = [(job.id, job.token) for job in self.running]
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "enqueue": self.enqueue,
            "claim": self.claim,
            "renew": lambda: queue.renew("w1", held, lease_ms=LEASE_MS, about=b"{}"),
            "forget_worker": lambda: queue.forget_worker("w1"),
            "share_endpoints": lambda: queue.share_endpoints("w1", [ENDPOINT], holds_ms=1000),
            "take_permit": lambda: queue.take_permit(self.running[0], "chat.1"),
            "publish": self.publish,
            "retry": self.retry,
            "finish": self.finish,
            "cancel": lambda: queue.cancel("waits", "waits"),
            "reprioritize": lambda: queue.set_priority("waits", 8),
            "reschedule": lambda: queue.reschedule("later", 1000),
            "forgive": lambda: queue.forgive(f"t:{TENANT}"),
            "pause": lambda: queue.pause(LANE),
            "resume": lambda: queue.resume(LANE),
            "requeue": lambda: queue.requeue("dead", b"{}"),
            "release": lambda: queue.release("default", "K"),
            "delete": lambda: queue.delete("done"),
            "discard": lambda: queue.discard(["dead", "done"]),
            "configure": lambda: q.configure(max_waiting__chat=7),
            "tick": lambda: queue._scripts.run("tick", "w1", 60_000, LEASE_MS, 25, "", 0, 0),
            "tend": lambda: queue._scripts.run("tend", "w1", 0),
            "purge": lambda: queue.purge(LANE, 3),
            "purge_delayed": lambda: queue.purge_delayed(LANE, 5),
            "replay": lambda: queue.replay("done"),
            "position": lambda: queue.position("waits"),
            "audit": lambda: queue.audit([(b"job", b"waits"), (b"counts", b"")], repair=True),
        }
        await calls[script]()


class Mutation:
    """Puts another value in the place of one argument of a script."""

    def __init__(self, queue: PromptQueue) -> None:
        self._scripts = queue._scripts
        self._run, self._run_each = self._scripts.run, self._scripts.run_each
        self.script = ""
        self.at = 0
        self.value = ""
        self.length = 0  # of the arguments as they were

    def _mutated(self, name: str, args: Sequence[Argument]) -> Sequence[Argument]:
        if name != self.script:
            return args
        self.length = len(args)
        return [self.value if at == self.at else arg for at, arg in enumerate(args)]

    async def _run_mutated(self, name: str, *args: Argument) -> Any:
        return await self._run(name, *self._mutated(name, args))

    async def _run_each_mutated(self, calls: Sequence[Call]) -> list[Any]:
        return await self._run_each([(name, self._mutated(name, args)) for name, args in calls])

    def __enter__(self) -> None:
        self._scripts.run = self._run_mutated
        self._scripts.run_each = self._run_each_mutated

    def __exit__(self, *_: object) -> None:
        self._scripts.run = self._run
        self._scripts.run_each = self._run_each


async def lasting(queue: PromptQueue) -> dict[str, Any]:
    """All that is in Redis but for buckets, which go by themselves in milliseconds."""
    return {name: value for name, value in (await snapshot(queue)).values.items() if name[:2] != "l:"}


async def problems(queue: PromptQueue) -> list[str]:
    """What does not fit together in Redis."""
    return [f"{one.kind} {one.where[:200]}" for one in (await admin.audit(queue)).problems]


class ExtremesContract(OnQueue):
    """What scripts do with arguments and settings that make no sense."""

    @pytest.mark.parametrize("script", NAMES)
    async def test_a_script_that_fails_has_written_nothing(
        self, q: QueueDriver, untidy: None, script: str
    ) -> None:
        scene, mutation = Scene(q), Mutation(q.queue)
        mutation.script, mutation.at, mutation.length = script, 0, 1
        while mutation.at < mutation.length:
            for mutation.value in EXTREMES:
                await scene.set()
                before = await lasting(q.queue)
                failed = False
                with mutation:
                    try:
                        await scene.call(script)
                    except ResponseError:
                        failed = True
                    except (ValueError, TypeError):
                        pass  # the script has done what it was told, and its caller cannot read the reply
                told = f"argument {mutation.at + 1}: {mutation.value[:30]!r}"
                if failed:
                    assert await lasting(q.queue) == before, told
                assert await problems(q.queue) == [], told
            mutation.at += 1

    @pytest.mark.parametrize(
        "setting",
        [
            "max_waiting",
            f"max_waiting:{LANE}",
            "when_full",
            "aging_ms",
            "dedup_ttl_ms",
            "result_ttl_ms",
            "max_result_ttl_ms",
            "dead_ttl_ms",
            "max_dead",
            "max_finished",
            "spare_bytes",
            "max_attempts",
        ],
    )
    async def test_a_setting_that_makes_no_sense_breaks_nothing_off(
        self, q: QueueDriver, untidy: None, setting: str
    ) -> None:
        scene = Scene(q)
        for value in EXTREMES:
            await scene.set()
            await q.redis.hset(q.queue.keys.fixed("conf"), setting, value)
            for script in ("finish", "enqueue", "cancel", "claim", "tick"):
                await scene.call(script)
            assert await problems(q.queue) == [], value[:30]

    @pytest.mark.parametrize("used", [-5, 0, 10**9, 2**64, 10**30])
    async def test_usage_that_is_a_lie_harms_no_other_job(self, q: QueueDriver, used: int) -> None:
        tokens = RateLimit(tokens=1000)
        await q.configure(tenants={TENANT: tokens}, endpoints={ENDPOINT: tokens})
        await q.enqueue(new_job("liar", tenant=TENANT), *[new_job(f"j{n}", key=f"K{n}") for n in range(3)])
        jobs = (await q.claim_all(4, offers={LANE: [Offer(ENDPOINT, 9)]})).jobs
        endings = [ending(job, used_tokens=used if job.id == "liar" else None) for job in jobs]
        assert not (await q.queue.write(endings=endings)).refused
        assert {await q.state(job.id) for job in jobs} == {"done"}
        assert (await q.meta())["t:done"] == "4"
        assert await q.redis.zcard(q.queue.keys.fixed("leases")) == 0
        assert await q.redis.zcard(q.queue.keys.fixed("finished")) == 4
        for subject in (f"t:{TENANT}", f"e:{ENDPOINT}"):
            left_ms = await q.redis.pttl(q.queue.keys.of("bucket", subject))
            assert left_ms <= 4_100_000, "one request counts for an hour of the limit at most"

    async def test_debts_of_very_many_lies_end_within_a_day(self, q: QueueDriver) -> None:
        await q.configure(tenants={TENANT: RateLimit(tokens=1000)})
        await q.enqueue(*[new_job(f"j{n}", tenant=TENANT) for n in range(40)])
        jobs = (await q.claim_all(40)).jobs
        await q.queue.write(endings=[ending(job, used_tokens=2**64) for job in jobs])
        assert 0 < await q.redis.pttl(q.queue.keys.of("bucket", f"t:{TENANT}")) <= 86_400_000

    async def test_a_count_that_is_full_stops_no_script(self, q: QueueDriver) -> None:
        await q.redis.hset(q.queue.keys.fixed("meta"), mapping={"t:done": 2**63 - 1, "t:enqueued": "x"})
        await q.finish(await q.running("a", key="K"))
        assert await q.state("a") == "done"
