"""Claims as many jobs as the process has room for, and waits for more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from redis.exceptions import RedisError

from scheduler.engine.attempts import Attempts
from scheduler.engine.context import EngineContext, EngineService
from scheduler.engine.limits import offers_of
from scheduler.engine.slots import NO_SLOTS, Room, room_in
from scheduler.engine.waker import Waker
from scheduler.logs import traced
from scheduler.observations import Claimed
from scheduler.queue.leases import LANES_A_CLAIM
from scheduler.queue.records import NOTHING_CLAIMED, Claim, Offer

logger = logging.getLogger(__name__)

LAST_CLAIM_S = 2.0
"""How long `stop` waits for a claim that is under way."""

CLAIM_AGAIN_S = 1.0
"""The wait after Redis has refused a claim."""


class Claimer(EngineService):
    """Claims jobs and begins them; `claims` counts its calls. `under_way` is locked from a claim until its
    jobs have begun."""

    def __init__(self, context: EngineContext, attempts: Attempts) -> None:
        super().__init__("claim", context)
        self._attempts = attempts
        self.under_way = asyncio.Lock()
        self.waker = Waker(context.queue, context.calls, context.signal.look_again)
        self.claims = 0
        self._turn = 0  # the part of very many lanes that is asked first

    @property
    def has_started(self) -> bool:
        """Whether it was started and not stopped."""
        return self._task is not None

    async def stop(self) -> None:
        """Stop claiming. A claim that is under way may still bring jobs."""
        self._signal.notify()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST_CLAIM_S)
        await super().stop()

    async def run(self) -> None:
        """Claim until the process drains."""
        try:
            while not self._serving.draining:
                await self._step()
        finally:
            await self.waker.stop()

    async def _step(self) -> None:
        self._signal.changed.clear()
        room = self.room()
        if room.over_all.free < 1:
            await self._wait_for_room()
        elif self.will_be_woken(room):
            await self._signal.changed.wait()
        elif claim := await self._claim(room):
            room = self.room()  # the jobs that have begun have taken some
            more = self._leads_on(claim, room)
            del claim  # it holds the payloads of its jobs
            if room.over_all.free and not more:
                await self._wait_for_work(room)

    def _leads_on(self, claim: Claim, room: Room) -> bool:
        """Whether to claim again at once. Work without a slot now is claimed once there is one."""
        more = claim.more if room.over_all.for_all else claim.more_urgent
        if more or claim.without_permit:
            self._signal.look = True
        return more and bool(claim.jobs or claim.without_permit)

    def room(self) -> Room:
        """How many jobs may be claimed now; endpoints without a permit take none."""
        serving, attempts = self._serving, self._attempts
        lanes = {
            name: route.slots(without=self._permits.refused(name)) for name, route in serving.routes.items()
        }
        if self._free_bytes <= 0:
            return Room(lanes, NO_SLOTS)
        reserved = sum(endpoint.kept for endpoint in serving.endpoints if endpoint.admits)
        return room_in(
            lanes, running=attempts.running, max_running=serving.settings.max_running, reserved=reserved
        )

    @property
    def _free_bytes(self) -> int:
        """How much the payloads of further jobs may add; a claim may exceed it by one job."""
        return self._serving.settings.max_running_bytes - self._attempts.running_bytes

    async def _claim(self, room: Room) -> Claim | None:
        """Claim and begin; None if Redis refused. Very many lanes are asked in turns."""
        self._signal.look = False
        async with self.under_way:
            try:
                claim = await self._first_with_jobs(room)
            except RedisError as error:
                logger.error("claiming failed; trying again in a second", exc_info=traced(error, logger))
                await asyncio.sleep(CLAIM_AGAIN_S)
                return None
            if (observe := self._observers.claimed) is not None and claim.jobs:
                observe(Claimed(claim.jobs))
            for job in claim.jobs:
                self._attempts.begin(job)
        return claim

    async def _first_with_jobs(self, room: Room) -> Claim:
        claim = NOTHING_CLAIMED
        for asked, lanes in enumerate(turns := self._turns(room), 1):
            reply = await self._calls.until_done(partial(self._ask, self._next_id(), room, lanes))
            claim = reply if len(turns) == 1 else claim.and_then(reply)
            if claim.jobs and asked < len(turns):
                return replace(claim, more=True, more_urgent=True)
        return claim

    def _next_id(self) -> str:
        self.claims += 1
        return f"{self._worker}:{self.claims}"

    def _turns(self, room: Room) -> Sequence[Sequence[str]]:
        """The lanes in parts that a claim may name, beginning with those whose turn it is."""
        names = tuple(room.lanes)
        if len(names) <= LANES_A_CLAIM:
            return (names,)
        turns = [names[at : at + LANES_A_CLAIM] for at in range(0, len(names), LANES_A_CLAIM)]
        self._turn = (self._turn + 1) % len(turns)
        return turns[self._turn :] + turns[: self._turn]

    async def _ask(self, claim_id: str, room: Room, lanes: Sequence[str]) -> Claim:
        # Lanes without room are named too: the script passes their wake tokens on.
        call = self._queue.claim(
            claim_id,
            self._worker,
            {name: room.lanes[name].free for name in lanes},
            limit=room.over_all.free,
            reserved=room.over_all.reserved,
            lanes_reserved={name: room.lanes[name].reserved for name in lanes},
            lease_ms=self._serving.lease_ms,
            suspects=not self._attempts.has_suspect,
            offers=self._offers(lanes),
            max_bytes=max(1, self._free_bytes),
        )
        claim = await self._calls.timed("claim", call)
        for lane, refusal in claim.without_permit.items():
            self._permits.refuse(lane, refusal.endpoints, refusal.wait_ms / 1000)
        return claim

    def _offers(self, lanes: Sequence[str]) -> dict[str, list[Offer]]:
        if not self._serving.limits.endpoints:
            return {}
        routes, refused = self._serving.routes, self._permits.refused
        return {name: offers_of(routes[name], without=refused(name)) for name in lanes}

    async def pass_on(self) -> None:
        """Claim nothing: the script wakes other processes where there is work."""
        room = self.room()._replace(over_all=NO_SLOTS)
        for lanes in self._turns(room):
            await self._ask(self._next_id(), room, lanes)

    async def _wait_for_room(self) -> None:
        """Wait until a job has ended or a window has grown."""
        if self.waker.take():
            # A wake token that reaches a process without room is meant for another.
            await self._calls.until_done(self.pass_on)
            return
        await self._signal.changed.wait()

    def will_be_woken(self, room: Room) -> bool:
        """Whether a wake token is sure to announce any work that could be claimed: asking is useless then."""
        return not self._signal.look and self.waker.covers(room.wanted_lanes())

    async def _wait_for_work(self, room: Room) -> None:
        """Wait until a wake token comes for a lane with room, room changes, or some seconds have passed."""
        lanes = room.wanted_lanes()
        self.waker.take()
        if self.waker.waits and not self.waker.covers(lanes):
            # If it has taken a token, the claim before the next wait finds that work.
            await self.waker.stop()
            return
        if not self.waker.waits:
            self.waker.start(lanes)
        await self._signal.changed.wait()
