"""Reads the lanes of a queue: how many jobs wait at each level, and since when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio.client import Pipeline

from scheduler.queue.inspection.configured import max_waiting_of
from scheduler.queue.keys import Keys
from scheduler.queue.reports import LaneStatus

PRIORITIES = range(9, -1, -1)
REPLIES_A_LANE = 2 * 2 * len(PRIORITIES)
UNKNOWN_MEAN_S = 1.0
"""Assumed time of a job in a lane where none has ended yet, as in tick.lua."""


@dataclass(frozen=True, slots=True)
class LaneReplies:
    """What Redis has of a lane."""

    name: str
    unclaimed: int
    """Waiting, held and delayed jobs."""
    mean_s: float | None
    """How long a job keeps a place in a worker process."""
    sizes: Sequence[int]
    """Jobs at each level, from 9 down, and then at each level of its suspects."""
    heads: Sequence[int]
    """Since when the first job of each level in use has been ready, in microseconds since the epoch."""


def ask_lanes(pipe: Pipeline, keys: Keys, names: Sequence[str]) -> None:
    """Add the commands whose replies `lanes_from` takes."""
    if not names:
        return
    pipe.hmget(keys.fixed("meta"), [f"{what}:{lane}" for lane in names for what in ("n", "mean")])
    for lane in names:
        for place in (lane, keys.suspects_lane(lane)):
            for priority in PRIORITIES:
                pipe.zcard(keys.level(place, priority))
                pipe.zrange(keys.level(place, priority), 0, 0, withscores=True)


def lanes_from(replies: Sequence[Any], names: Sequence[str]) -> list[LaneReplies]:
    """Make sense of the replies to `ask_lanes`."""
    if not names:
        return []
    counts, *levels = replies
    return [
        _lane_from(name, counts[2 * at : 2 * at + 2], levels[REPLIES_A_LANE * at : REPLIES_A_LANE * (at + 1)])
        for at, name in enumerate(names)
    ]


def _lane_from(name: str, counts: Sequence[bytes | None], levels: Sequence[Any]) -> LaneReplies:
    unclaimed, mean_ms = counts
    return LaneReplies(
        name,
        unclaimed=int(unclaimed or 0),
        mean_s=float(mean_ms) / 1000 if mean_ms else None,
        sizes=levels[::2],
        heads=[int(score) for head in levels[1::2] for _, score in head],
    )


def lane_status(
    lane: LaneReplies, *, held: int, paused: bool, conf: Mapping[bytes, bytes], now_us: int
) -> LaneStatus:
    """Describe a lane. `held` are its held jobs, `conf` the stored settings of the queue."""
    innocent, suspects = lane.sizes[: len(PRIORITIES)], lane.sizes[len(PRIORITIES) :]
    counts = {p: a + b for p, a, b in zip(PRIORITIES, innocent, suspects, strict=True) if a + b}
    waiting = sum(counts.values())
    mean_s = UNKNOWN_MEAN_S if lane.mean_s is None else lane.mean_s
    return LaneStatus(
        name=lane.name,
        waiting=waiting,
        by_priority=counts,
        delayed=max(0, lane.unclaimed - waiting - held),
        held=held,
        suspects=sum(suspects),
        paused=paused,
        oldest_s=max(0, now_us - min(lane.heads)) / 1_000_000 if lane.heads else None,
        max_waiting=max_waiting_of(conf, lane.name),
        mean_s=lane.mean_s,
        work_s=0.0 if paused else waiting * mean_s,
    )
