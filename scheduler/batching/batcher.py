"""Gathers prompts for one endpoint into shared calls."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import NamedTuple, overload

from scheduler.batching import failures
from scheduler.batching.call import Deliver, Group, Member, Work
from scheduler.batching.kinds import BatchWorker, End, share_key_for
from scheduler.batching.patience import CallPatience
from scheduler.batching.policy import BatchPolicy, Cut, FlushReason, ration, trim
from scheduler.batching.runner import CallRunner, CallWatcher
from scheduler.batching.window import Window
from scheduler.logs import traced
from workers.base import Completed, Generation
from workers.embedding import Embedded, EmbeddingTask
from workers.errors import WorkerError
from workers.rerank import Reranked, RerankTask

logger = logging.getLogger(__name__)


class Flush(NamedTuple):
    """A call that was sent: why, how many prompts and prompt tokens, and how long the oldest had waited."""

    reason: FlushReason
    size: int
    tokens: int
    waited_s: float


_arrived_at = attrgetter("arrived_at")


class Batcher:
    """Runs prompts on one endpoint, several to a call where they can share one.

    `policy` decides and `window` has the slots. A batcher belongs to one event loop. `clock` is in seconds
    and must be the one that `expires_at` was read from. `on_flush` gets every call that is sent; `watcher`
    is called when each begins and ends. A call that is silent for longer than `patience` allows is ended,
    even if its model worker ignores that.
    """

    def __init__(
        self,
        worker: BatchWorker,
        policy: BatchPolicy,
        window: Window,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_flush: Callable[[Flush], None] | None = None,
        watcher: CallWatcher | None = None,
        patience: CallPatience | None = None,
    ) -> None:
        self._capabilities = worker.capabilities
        self._share_key = share_key_for(worker)
        self._policy = policy
        self._window = window
        self._clock = clock
        self.on_flush = on_flush
        self._runner = CallRunner(
            worker, window, on_quiet=self._check_quiet, watcher=watcher, patience=patience
        )
        self._groups: dict[Hashable, Group] = {}
        self._gathered = 0
        self._arrivals = 0
        self.at_once = 0  # prompts sent alone without waiting
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._quiet = asyncio.Event()
        self._drains = 0
        self._closed = False
        window.on_room.append(self._wake)

    @property
    def gathered(self) -> int:
        """How many prompts wait for a call."""
        return self._gathered

    @overload
    async def run(
        self, work: Generation, deliver: Deliver, *, tokens: int, expires_at: float | None = None
    ) -> Completed: ...

    @overload
    async def run(
        self, work: EmbeddingTask, deliver: Deliver, *, tokens: int, expires_at: float | None = None
    ) -> Embedded: ...

    @overload
    async def run(
        self, work: RerankTask, deliver: Deliver, *, tokens: int, expires_at: float | None = None
    ) -> Reranked: ...

    async def run(self, work: Work, deliver: Deliver, *, tokens: int, expires_at: float | None = None) -> End:
        """Run one prompt, alone or with others, and pass its pieces to `deliver` as they arrive.

        Pieces and end are numbered as if the prompt were alone: `member` is 0. `tokens` is the estimate for
        the prompt. `expires_at`, in seconds on the batcher's clock, only sends the prompt sooner; ending it
        in time is up to the caller. Cancel the awaiting task to give the prompt up; a call is aborted once
        all its prompts are given up.

        Raises:
            WorkerError: the engine, or the connection to it, failed for this prompt.
            Exception: raised by `deliver`; the prompt is given up.
        """
        if self._closed:
            raise failures.closed()
        member = self._new_member(work, deliver, tokens, expires_at)
        self._admit(member)
        try:
            end: End = await member.future
        except asyncio.CancelledError:
            await self._give_up(member)
            raise
        return end

    def turn_away(self, error: WorkerError) -> None:
        """Fail the prompts that wait for a call. Running calls continue, and new prompts are accepted."""
        for group in self._groups.values():
            for member in group.members:
                if not member.future.done():
                    member.future.set_exception(failures.own_copy(error))
        self._groups.clear()
        self._gathered = 0
        self._check_quiet()

    async def drain(self) -> None:
        """Send gathered prompts without waiting for more, then wait for all calls. Safe to call twice."""
        self._drains += 1
        try:
            self._wake()
            while self._groups or self._runner.calls:
                self._quiet.clear()
                await self._quiet.wait()
        finally:
            self._drains -= 1

    async def aclose(self) -> None:
        """Abort all calls and fail the remaining prompts with a retryable error. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._window.on_room.remove(self._wake)
            self._cancel_timer()
            self.turn_away(failures.closed())
        await self._runner.aclose()

    def _new_member(self, work: Work, deliver: Deliver, tokens: int, expires_at: float | None) -> Member:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._arrivals += 1
        now = self._clock()
        return Member(
            work,
            deliver,
            self._loop.create_future(),
            key=self._share_key(work, self._capabilities) if self._policy.max_size > 1 else None,
            tokens=tokens,
            arrived_at=now,
            due=self._policy.due(now, expires_at),
            urgency=(-work.priority, self._arrivals),
        )

    def _admit(self, member: Member) -> None:
        if member.solo and not self._groups and self._window.free_for(member.urgent):
            self.at_once += 1
            self._runner.send([member])
            return
        group = self._groups.get(member.key)
        if group is None:
            self._groups[member.key] = Group(member)
        else:
            group.add(member)
        self._gathered += 1
        self._wake()

    def _wake(self) -> None:
        """Decide on the next turn of the event loop, so that members that arrive together share a call."""
        if self._groups and self._turn is None and self._loop is not None and self._has_room:
            self._turn = self._loop.call_soon(self._decide)

    @property
    def _has_room(self) -> bool:
        """Whether any waiting member could be sent."""
        return self._window.free > 0 and any(
            self._window.free_for(group.urgent) for group in self._groups.values()
        )

    def _decide(self) -> None:
        self._turn = None
        now = self._clock()
        if self._has_room:
            for group, cuts in self._plan(now):
                for cut in cuts:
                    self._send(self._take_out(group, cut.size), cut.reason)
        self._set_timer(now)

    def _plan(self, now: float) -> list[tuple[Group, list[Cut]]]:
        """Return the calls to make now. If slots are short, the most urgent of all groups get them."""
        idle = self._window.in_flight == 0
        plan: list[tuple[Group, list[Cut]]] = []
        for group in tuple(self._groups.values()):
            self._drop_cancelled(group)
            if cuts := self._cuts(group, now, idle):
                plan.append((group, cuts))
        sizes = [sum(cut.size for cut in cuts) for _, cuts in plan]
        if sum(sizes) <= self._window.free_for(urgent=False):
            return plan
        ready = [group.urgencies(size) for (group, _), size in zip(plan, sizes, strict=True)]
        shares = ration(ready, self._window.free, kept=self._window.kept)
        return [(group, trim(cuts, share)) for (group, cuts), share in zip(plan, shares, strict=True)]

    def _cuts(self, group: Group, now: float, idle: bool) -> list[Cut]:
        if not group.members:
            return []
        if group.solo:
            return [Cut(1, FlushReason.SIZE)]
        group.rank()
        tokens = [member.tokens for member in group.members]
        return self._policy.cuts(tokens, due=group.due, now=now, idle=idle, draining=self._drains > 0)

    def _take_out(self, group: Group, count: int) -> list[Member]:
        members = group.take(count)
        self._left(group, count)
        return members

    def _drop_cancelled(self, group: Group) -> None:
        self._left(group, group.drop_cancelled())

    def _left(self, group: Group, count: int) -> None:
        self._gathered -= count
        if not group.members:
            del self._groups[group.key]

    def _send(self, members: Sequence[Member], reason: FlushReason) -> None:
        self._runner.send(members)
        if self.on_flush is None:
            return
        first = members[0] if len(members) == 1 else min(members, key=_arrived_at)
        tokens = first.tokens if len(members) == 1 else sum(member.tokens for member in members)
        flush = Flush(reason, len(members), tokens, max(0.0, self._clock() - first.arrived_at))
        try:
            self.on_flush(flush)
        except Exception as error:
            logger.error("on_flush raised; the call continues", exc_info=traced(error, logger))

    def _set_timer(self, now: float) -> None:
        """Keep one timer for all groups, or none while no slot is free: a release wakes the batcher then."""
        open_to = [group for group in self._groups.values() if self._window.free_for(group.urgent)]
        if not open_to:
            self._cancel_timer()
            return
        at = min(group.due.at for group in open_to)
        if self._timer is not None and self._timer_at == at:
            return
        self._cancel_timer()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._wake()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _give_up(self, member: Member) -> None:
        if member.call is not None:
            await self._runner.give_up(member.call, member)
            return
        if group := self._groups.get(member.key):
            self._drop_cancelled(group)
        self._check_quiet()

    def _check_quiet(self) -> None:
        if not self._groups and not self._runner.calls:
            self._quiet.set()
