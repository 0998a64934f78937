from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.engine.shares import Shares
from scheduler.queue.queue import PromptQueue
from scheduler.routing import Endpoint
from tests.unit.scripted_endpoint import Clock, endpoint

LEASE_S = 9.0
ROUND_S = LEASE_S / 3


def shared(name: str, *, limit: int | None) -> Endpoint:
    return endpoint(name, limit=limit, shared=True)


class Registry:
    """What `PromptQueue.share_endpoints` does, in plain Python."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.users: dict[str, dict[str, float]] = {}
        self.asked: list[Sequence[str]] = []

    async def share_endpoints(
        self, worker: str, endpoints: Sequence[str], *, holds_ms: int
    ) -> list[tuple[int, int]]:
        self.asked.append(endpoints)
        divisions = []
        for name in endpoints:
            users = self.users.setdefault(name, {})
            users[worker] = self.clock.now + holds_ms / 1000
            if not holds_ms:
                del users[worker]
            for gone in [user for user, until in users.items() if until < self.clock.now]:
                del users[gone]
            divisions.append((len(users), sorted([*users, worker]).index(worker)))
        return divisions


class Process:
    def __init__(self, registry: Registry, worker: str, *endpoints: Endpoint) -> None:
        self.worker = worker
        self.endpoints = endpoints
        self.updated_at = -1.0
        self._clock = registry.clock
        self._shares = Shares(
            cast("PromptQueue", registry), worker, lease_ms=round(LEASE_S * 1000), clock=registry.clock
        )

    @property
    def limit(self) -> int:
        return self.endpoints[0].limit

    async def update(self) -> int:
        self.updated_at = self._clock.now
        await self._shares.update(self.endpoints)
        return self.limit

    async def leave(self) -> None:
        await self._shares.give_up(self.endpoints)


class Fleet:
    """Processes that each ask once a round, by name."""

    def __init__(self, limit: int | None = 8) -> None:
        self.clock = Clock()
        self.registry = Registry(self.clock)
        self._limit = limit

    def process(self, worker: str) -> Process:
        return Process(self.registry, worker, shared("chat.0", limit=self._limit))

    async def round(self, *processes: Process) -> list[int]:
        self.clock.now += ROUND_S
        for process in processes:
            await process.update()
        return [process.limit for process in processes]


async def test_process_that_is_alone_has_all_at_once() -> None:
    fleet = Fleet()
    assert await fleet.round(fleet.process("a")) == [8]


async def test_newcomer_begins_with_nothing_and_has_its_share_when_the_others_have_heard() -> None:
    fleet = Fleet()
    a, b = fleet.process("a"), fleet.process("b")
    await fleet.round(a)
    assert await b.update() == 0
    assert a.limit == 8
    assert await fleet.round(a, b) == [4, 4]


async def test_asking_out_of_turn_gives_a_newcomer_nothing_sooner() -> None:
    fleet = Fleet()
    a, b = fleet.process("a"), fleet.process("b")
    await fleet.round(a)
    for _ in range(3):
        assert await b.update() == 0
    assert await fleet.round(a, b) == [4, 4]


async def test_share_of_who_leaves_goes_to_the_others() -> None:
    fleet = Fleet()
    a, b, c = (fleet.process(name) for name in "abc")
    for _ in range(3):
        limits = await fleet.round(a, b, c)
    assert sorted(limits) == [2, 3, 3]
    await c.leave()
    await fleet.round(a, b)
    assert await fleet.round(a, b) == [4, 4]
    await b.leave()
    assert await fleet.round(a) == [8]


async def test_share_of_who_dies_goes_to_the_others_when_its_time_is_over() -> None:
    fleet = Fleet()
    a, b = fleet.process("a"), fleet.process("b")
    await fleet.round(a, b)
    await fleet.round(a, b)
    limits = [(await fleet.round(a))[0] for _ in range(6)]
    assert limits == [4, 4, 4, 4, 8, 8], "a lease and a half"


async def test_more_processes_than_prompts_leave_some_without_a_share() -> None:
    fleet = Fleet(limit=3)
    processes = [fleet.process(f"{n:02}") for n in range(10)]
    for _ in range(3):
        limits = await fleet.round(*processes)
    assert sorted(limits) == [0] * 7 + [1] * 3
    assert await fleet.round(*processes) == limits, "and they stay where they are"


async def test_newcomer_need_not_wait_where_nobody_has_said_what_the_limit_is() -> None:
    fleet = Fleet(limit=None)
    a, b = fleet.process("a"), fleet.process("b")
    assert await fleet.round(a, b) == [8, 8]


async def test_each_endpoint_is_divided_among_those_that_use_it() -> None:
    fleet = Fleet()
    a = Process(fleet.registry, "a", shared("chat.0", limit=8), shared("code.0", limit=6))
    b = Process(fleet.registry, "b", shared("chat.0", limit=8))
    for _ in range(2):
        await fleet.round(a, b)
    assert [one.limit for one in (*a.endpoints, *b.endpoints)] == [4, 6, 4]


async def test_endpoint_that_lives_in_the_process_is_divided_with_nobody() -> None:
    fleet = Fleet()
    own = endpoint("echo.0", limit=8)
    a = Process(fleet.registry, "a", own)
    await a.update()
    await a.leave()
    assert a.limit == 8
    assert fleet.registry.asked == [[], []]


async def test_endpoint_made_anew_takes_the_share_that_there_was_once_it_is_divided() -> None:
    fleet = Fleet()
    a, b = fleet.process("a"), fleet.process("b")
    for _ in range(3):
        await fleet.round(a, b)
    a.endpoints = (shared("chat.0", limit=8),)
    assert a.limit == 0
    assert await a.update() == 4


# Whatever comes and goes


EVENTS = st.lists(
    st.tuples(st.sampled_from(["join", "leave", "die", "pass", "pass", "pass"]), st.integers(0, 99)),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(events=EVENTS, limit=st.integers(1, 20))
def test_together_they_never_let_in_more_than_the_limit(events: list[tuple[str, int]], limit: int) -> None:
    asyncio.run(_come_and_go(events, limit))


async def _come_and_go(events: list[tuple[str, int]], limit: int) -> None:
    """Each process asks when a round has gone since it last did; the first of `living` is due first."""
    fleet = Fleet(limit)
    living: list[Process] = []

    def let_in() -> int:
        return sum(process.limit for process in living)

    async def ask_who_is_due(until: float) -> None:
        while living:
            process = living[0]
            if process.updated_at + ROUND_S > until:
                break
            fleet.clock.now = process.updated_at + ROUND_S
            await process.update()
            living.append(living.pop(0))
            assert let_in() <= limit
        fleet.clock.now = until

    for at, (event, number) in enumerate(events):
        await ask_who_is_due(fleet.clock.now + 0.1)
        if event == "join" and len(living) < 6:
            living.append(fleet.process(f"{number:02}-{at}"))
            await living[-1].update()
        elif event == "pass":
            await ask_who_is_due(fleet.clock.now + number / 10)
        elif living and event != "join":
            gone = living.pop(number % len(living))
            if event == "leave":
                await gone.leave()
        assert let_in() <= limit

    await ask_who_is_due(fleet.clock.now + 3 * LEASE_S)
    assert let_in() == (limit if living else 0), "and in the end they use all of it"
