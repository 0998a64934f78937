"""The queue on fakeredis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import fakeredis
import pytest
from fakeredis.commands_mixins.scripting_mixin import ScriptingCommandsMixin

from scheduler.model import DedupMode, JobState
from scheduler.queue.limits import RateLimit
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import Offer
from tests.contracts.audit_contract import AuditContract
from tests.contracts.bounds_contract import BoundsContract
from tests.contracts.edges_contract import EdgesContract
from tests.contracts.exact_contract import ExactContract
from tests.contracts.keeping_contract import KeepingContract
from tests.contracts.limits_contract import LimitsContract, acme_job
from tests.contracts.operators_contract import OperatorsContract
from tests.contracts.queue_contract import OnQueue, QueueContract
from tests.contracts.queue_driver import LANE, LEASE_MS, QueueDriver, ending, new_job
from tests.contracts.suspects_contract import SuspectsContract, make_suspects


class OnFakeredis(OnQueue):
    @pytest.fixture
    async def queue(self) -> AsyncIterator[PromptQueue]:
        async with fakeredis.FakeAsyncRedis() as redis:
            yield PromptQueue(redis, "fake", script_flags=False)


class TestQueueOnFakeredis(OnFakeredis, QueueContract):
    pass


class TestKeepingOnFakeredis(OnFakeredis, KeepingContract):
    pass


class TestLimitsOnFakeredis(OnFakeredis, LimitsContract):
    pass


class TestSuspectsOnFakeredis(OnFakeredis, SuspectsContract):
    pass


class TestAuditOnFakeredis(OnFakeredis, AuditContract):
    pass


class TestOperatorsOnFakeredis(OnFakeredis, OperatorsContract):
    pass


class TestEdgesOnFakeredis(OnFakeredis, EdgesContract):
    pass


class TestExactOnFakeredis(OnFakeredis, ExactContract):
    pass


class TestBoundsOnFakeredis(OnFakeredis, BoundsContract):
    pass


class TestOutagesOnFakeredis(OnFakeredis):
    """What Redis tells of its own outages, in INFO, which fakeredis does not have."""

    @pytest.fixture
    def info(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
        """The figures of INFO; a test may change them."""
        figures = {"uptime_in_seconds": 1000}
        call = ScriptingCommandsMixin._lua_redis_call

        def answering(self: Any, runtime: Any, expected: Any, op: bytes, *args: Any) -> Any:
            if op == b"INFO":
                assert args == (b"server", b"errorstats")
                lines = [
                    f"{name}:{'count=' if name.startswith('errorstat_') else ''}{value}\r\n"
                    for name, value in figures.items()
                ]
                return "".join(lines).encode()
            return call(self, runtime, expected, op, *args)

        monkeypatch.setattr(ScriptingCommandsMixin, "_lua_redis_call", answering)
        return figures

    @staticmethod
    async def _is_excused(q: QueueDriver, nobody_ticked_s: float) -> bool:
        """Whether a tick after that long excuses the leases."""
        meta = q.queue.keys.fixed("meta")
        await q.redis.hdel(meta, "excused")
        await q.nobody_ticked(nobody_ticked_s)
        await q.tick()
        after = await q.meta()
        if "excused" not in after:
            return False
        assert int(after["excused"]) == int(after["tick"]) + LEASE_MS
        return True

    @pytest.mark.parametrize(
        ("code", "is_outage"),
        [
            *((code, True) for code in ("READONLY", "NOREPLICAS", "MISCONF", "BUSY", "LOADING")),
            *((code, True) for code in ("MASTERDOWN", "CLUSTERDOWN")),
            *((code, False) for code in ("ERR", "WRONGTYPE")),
        ],
    )
    async def test_refused_commands_excuse_leases_once(
        self, q: QueueDriver, info: dict[str, int], code: str, is_outage: bool
    ) -> None:
        info[f"errorstat_{code}"] = 3
        await q.tick()
        assert not await self._is_excused(q, 3), "what was refused before the first tick says nothing"
        info[f"errorstat_{code}"] = 4
        assert await self._is_excused(q, 3) == is_outage
        assert not await self._is_excused(q, 3), "nothing was refused since"
        info[f"errorstat_{code}"] = 0
        assert not await self._is_excused(q, 3), "the server counts anew"

    async def test_refusals_of_all_kinds_count_together(self, q: QueueDriver, info: dict[str, int]) -> None:
        info |= {"errorstat_READONLY": 3, "errorstat_LOADING": 4}
        await q.tick()
        assert (await q.meta())["refusals"] == "7"

    @pytest.mark.parametrize(("uptime_s", "is_outage"), [(0, True), (2, True), (4, False), (5, False)])
    async def test_a_start_since_the_last_tick_excuses_leases(
        self, q: QueueDriver, info: dict[str, int], uptime_s: int, is_outage: bool
    ) -> None:
        await q.tick()
        info["uptime_in_seconds"] = uptime_s
        assert await self._is_excused(q, 3.0) == is_outage

    async def test_while_ticks_follow_each_other_there_is_no_outage(
        self, q: QueueDriver, info: dict[str, int]
    ) -> None:
        await q.tick()
        info["errorstat_READONLY"] = 1
        assert not await self._is_excused(q, 0.1)
        assert await self._is_excused(q, 1.1)


class TestCommandsOnFakeredis(OnFakeredis):
    """How many commands a script sends: each costs time in which the server does nothing else.

    A script reads nothing twice, and does not look where a bitmap or a counter says that nothing is. If you
    change a script, change its numbers, and say why if they grow.
    """

    @pytest.fixture
    def commands(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the commands that scripts send."""
        sent: list[str] = []
        call = ScriptingCommandsMixin._lua_redis_call

        def noting(self: Any, runtime: Any, expected: Any, op: bytes, *args: Any) -> Any:
            sent.append(op.decode())
            return call(self, runtime, expected, op, *args)

        monkeypatch.setattr(ScriptingCommandsMixin, "_lua_redis_call", noting)
        return sent

    async def test_enqueue(self, q: QueueDriver, commands: list[str]) -> None:
        steps = (
            ([new_job("a")], 23),
            ([new_job("b")], 20),
            ([new_job(f"c{n}") for n in range(10)], 65),
            ([new_job("d", key="K")], 22),
            ([new_job("e", key="K")], 14),
            ([new_job("f", 9, key="K", deadline_ms=60_000, max_attempts=3, result_ttl_ms=1000)], 26),
            ([new_job("g", key="K", content="other", dedup=DedupMode.REPLACE)], 37),
            ([new_job("h", delay_ms=1000, deadline_ms=60_000)], 16),
            ([acme_job("i"), acme_job("j")], 25),
        )
        await self._counts(q, commands, [(q.enqueue(*jobs), n) for jobs, n in steps])

    async def test_enqueue_into_a_full_queue(self, q: QueueDriver, commands: list[str]) -> None:
        await q.configure(max_waiting=6, when_full="shed")
        await q.enqueue(*[new_job(f"{lane}{p}", p, lane=lane) for lane in "xy" for p in (1, 5)])
        await q.enqueue(new_job("later", 2, delay_ms=60_000), acme_job("acme"))
        steps = (
            (q.enqueue(new_job("a", 9)), 49),
            (q.enqueue(*[new_job(f"b{n}", 9) for n in range(4)]), 103),
            (q.enqueue(new_job("c", 9), new_job("d", 9, delay_ms=60_000), new_job("e")), 48),
            (q.enqueue(new_job("f", 0)), 12),
        )
        await self._counts(q, commands, steps)

    async def test_claim(self, q: QueueDriver, commands: list[str]) -> None:
        await make_suspects(q, "s")
        await q.enqueue(*[new_job(f"{p}-{n}", p) for p in (2, 5, 9) for n in range(12)])
        await q.enqueue(*[new_job(f"x{n}", lane="x", deadline_ms=60_000) for n in range(3)])
        lanes = {LANE: 100, "x": 100, "idle": 100}
        steps = (
            (q.claim_all(1, lanes={"idle": 1}), 7),
            (q.claim_all(1, suspects=False), 25),
            (q.claim_all(1), 26),
            (q.claim_all(1, lanes=lanes), 30),
            (q.claim_all(20, lanes=lanes), 94),
            (q.claim_all(100, lanes=lanes), 82),
            (q.claim_all(1, lanes=lanes), 9),
        )
        await self._counts(q, commands, steps)

    async def test_claim_under_limits(self, q: QueueDriver, commands: list[str]) -> None:
        await q.configure(
            tenants={"acme": RateLimit(requests=100)}, endpoints={"chat.0": RateLimit(requests=100)}
        )
        await q.enqueue(*[acme_job(f"a{n}") for n in range(20)])
        offers = {LANE: [Offer("chat.0", 50), Offer("chat.1", 50)]}
        steps = (
            (q.claim_all(2, offers=offers), 32),
            (q.claim_all(30, offers=offers), 88),
            (q.claim_all(30, offers=offers), 6),
            (q.tick(), 144),
            (q.tick(), 27),
        )
        await self._counts(q, commands, steps)

    async def test_running_jobs(self, q: QueueDriver, commands: list[str]) -> None:
        await q.enqueue(*[new_job(f"j{n}", key=f"K{n}", dedup=DedupMode.WINDOW) for n in range(9)])
        await q.enqueue(new_job("more", key="K0"))
        a, b, c, d, e, f, *_ = (await q.claim_all()).jobs
        held = [(job.id, job.token) for job in (a, b)]
        steps = (
            (q.queue.renew(q.worker, held, lease_ms=LEASE_MS, about=b"{}"), 10),
            (q.publish(a, "1", "2"), 6),
            (q.publish(a, "1", "2", "3"), 5),
            (q.publish(a, "4", first_seq=4), 4),
            (q.replay("j0"), 6),
            (q.finish(a, seq=5), 20),
            (q.queue.write(endings=[ending(b), ending(c)]), 25),
            (q.replay("j1"), 5),
            (q.finish(d, JobState.FAILED), 17),
            (q.give_back(e), 24),
            (q.give_back(f, delay_ms=60_000, counts=False), 16),
            (q.queue.position("j4"), 12),
            (q.queue.cancel("j4"), 26),
            (q.queue.cancel("j5"), 23),
            (q.queue.cancel("j6"), 20),
            (q.queue.requeue("j4"), 27),
            (q.queue.purge(LANE), 29),
            (q.queue.delete("j1"), 9),
            (q.queue.discard(["j3", "j2"]), 9),
        )
        await self._counts(q, commands, steps)

    async def test_maintenance(self, q: QueueDriver, commands: list[str]) -> None:
        await q.tick(mend_ms=3_600_000)
        await q.enqueue(new_job("a"), new_job("b", delay_ms=1), new_job("c", 9, lane="x"))
        await q.pass_ms(2)
        steps = (
            (q.tick(mend_ms=3_600_000), 42),
            (q.tick(mend_ms=3_600_000), 32),
            (q.tick(mend_ms=0), 131),
            (q.tick("another"), 8),
        )
        await self._counts(q, commands, steps)

    @staticmethod
    async def _counts(
        q: QueueDriver, commands: list[str], steps: Sequence[tuple[Coroutine[Any, Any, Any], int]]
    ) -> None:
        await q.queue.load()
        counted = []
        for step, _ in steps:
            commands.clear()
            await step
            counted.append(len(commands))
        assert counted == [wanted for _, wanted in steps]
