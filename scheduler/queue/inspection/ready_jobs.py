"""Waiting or held jobs in the order of claiming: the levels of all lanes, merged by rank."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from scheduler.model import JobInfo, JobState
from scheduler.queue.held import levels_in
from scheduler.queue.inspection.configured import aging_ms
from scheduler.queue.inspection.job_records import PAGE, read_infos
from scheduler.queue.pages import AT_ONCE, names_in, scored_pages
from scheduler.queue.queue import PromptQueue
from scheduler.queue.rank import claim_order

LEVELS_AT_ONCE = 500


async def ready_jobs(queue: PromptQueue, state: JobState, lane: str | None) -> AsyncGenerator[JobInfo, None]:
    """Waiting or held jobs with their positions; of one lane, or of all."""
    aging = await queue.redis.hget(queue.keys.fixed("conf"), "aging_ms")  # type: ignore[misc]  # redis-py has one type for sync and async
    merged = _merged(queue, await _levels_in_use(queue, state, lane), aging_ms(aging) * 1000)
    seen: Counter[str] = Counter()
    async with aclosing(merged) as pages:
        async for page in pages:
            positions = []
            for name, _ in page:
                positions.append(seen[name])
                seen[name] += 1
            for info in await read_infos(queue, [job_id for _, job_id in page], positions):
                if info is not None and info.state is state:
                    yield info


@dataclass(slots=True)
class _Level:
    """A cursor through one level of one lane. `page` has `(job id, score)`, the next one first."""

    lane: str
    priority: int
    page: deque[tuple[str, int]] = field(default_factory=deque)
    page_size: int = 20
    taken: int = 0
    drained: bool = False

    def take(self, entries: Sequence[tuple[bytes, float]]) -> None:
        self.page.extend((job_id.decode("utf-8", "replace"), int(score)) for job_id, score in entries)
        self.drained = len(entries) < self.page_size
        self.taken += len(entries)
        self.page_size = PAGE

    def order(self, aging_us: int) -> tuple[int, float, int]:
        return claim_order(self.priority, self.page[0][1], aging_us=aging_us)


async def _levels_in_use(queue: PromptQueue, state: JobState, lane: str | None) -> list[_Level]:
    lanes = [
        name
        for name in sorted(await _lanes(queue, state))
        if lane in (None, queue.keys.split_held_lane(name)[0])
    ]
    if state is JobState.HELD:
        return await _levels_of(queue, lanes, "beside", lanes)
    suspects = [queue.keys.suspects_lane(name) for name in lanes]
    innocent = await _levels_of(queue, lanes, "meta", [f"b:{name}" for name in lanes])
    return innocent + await _levels_of(queue, suspects, "beside", suspects)


async def _lanes(queue: PromptQueue, state: JobState) -> set[str]:
    if state is not JobState.HELD:
        (used,) = await names_in(queue.redis, (queue.keys.fixed("lanes"), "set"))
        return {name.decode() for name in used}
    names: set[str] = set()
    async for page in scored_pages(queue.redis, queue.keys.fixed("limited")):
        names.update(name.decode() for name, _ in page)
    return names


async def _levels_of(
    queue: PromptQueue, places: Sequence[str], key: str, fields: Sequence[str]
) -> list[_Level]:
    """The levels in use at each place, by the bitmaps in these fields of a hash."""
    levels: list[_Level] = []
    for start in range(0, len(places), AT_ONCE):
        some = list(fields[start : start + AT_ONCE])
        bitmaps = await queue.redis.hmget(queue.keys.fixed(key), some)  # type: ignore[misc]  # redis-py has one type for sync and async
        for place, bits in zip(places[start : start + AT_ONCE], bitmaps, strict=True):
            levels += [_Level(place, priority) for priority in levels_in(bits)]
    return levels


async def _merged(
    queue: PromptQueue, levels: Sequence[_Level], aging_us: int
) -> AsyncGenerator[list[tuple[str, str]], None]:
    """Pages of `(lane, job id)`."""
    await _fill(queue, levels)
    heads = [(level.order(aging_us), at) for at, level in enumerate(levels) if level.page]
    heapq.heapify(heads)
    page: list[tuple[str, str]] = []
    while heads:
        _, at = heapq.heappop(heads)
        level = levels[at]
        page.append((level.lane, level.page.popleft()[0]))
        if not level.page and not level.drained:
            await _fill(queue, [level])
        if level.page:
            heapq.heappush(heads, (level.order(aging_us), at))
        if len(page) == PAGE:
            yield page
            page = []
    if page:
        yield page


async def _fill(queue: PromptQueue, levels: Sequence[_Level]) -> None:
    for start in range(0, len(levels), LEVELS_AT_ONCE):
        some = levels[start : start + LEVELS_AT_ONCE]
        async with queue.redis.pipeline(transaction=False) as pipe:
            for level in some:
                key = queue.keys.level(level.lane, level.priority)
                pipe.zrange(key, level.taken, level.taken + level.page_size - 1, withscores=True)
            replies = await pipe.execute()
        for level, entries in zip(some, replies, strict=True):
            level.take(entries)
