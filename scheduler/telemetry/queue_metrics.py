"""The metrics of the queue, which one of the worker processes exports."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric

from scheduler.queue.inspection.memory import read_memory
from scheduler.queue.inspection.status import read_status
from scheduler.queue.queue import PromptQueue
from scheduler.queue.reports import LaneStatus, QueueStatus, RedisMemory
from scheduler.telemetry import catalogue
from scheduler.telemetry.catalogue import Spec
from scheduler.telemetry.tallies import family

ENDS = ("done", "failed", "cancelled", "expired", "shed")

_TOTALS: Mapping[str, Spec] = {
    "enqueued": catalogue.ENQUEUED,
    "joined": catalogue.JOINED,
    "reused": catalogue.REUSED,
    "retried": catalogue.RETRIED,
    "given_back": catalogue.GIVEN_BACK,
    "lost": catalogue.LOST,
    "quarantined": catalogue.QUARANTINED,
    "dead_dropped": catalogue.DEAD_DROPPED,
    "repeated": catalogue.REPEATED,
    "wasted_tokens": catalogue.WASTED,
}

_OF_QUEUE: Mapping[Spec, Callable[[QueueStatus], float]] = {
    catalogue.BOUND: lambda status: status.max_waiting,
    catalogue.RUNNING: lambda status: status.running,
    catalogue.DEAD: lambda status: status.dead,
    catalogue.FINISHED: lambda status: status.finished,
    catalogue.GARBAGE: lambda status: status.garbage,
    catalogue.WORKERS: lambda status: status.workers,
}

# None if the lane has no such value.
_OF_LANE: Mapping[Spec, Callable[[LaneStatus], float | None]] = {
    catalogue.DELAYED: lambda lane: lane.delayed,
    catalogue.HELD: lambda lane: lane.held,
    catalogue.SUSPECTS: lambda lane: lane.suspects,
    catalogue.OLDEST: lambda lane: lane.oldest_s or 0.0,
    catalogue.WORK: lambda lane: lane.work_s,
    catalogue.MEAN: lambda lane: lane.mean_s,
    catalogue.LANE_PAUSED: lambda lane: lane.paused,
    catalogue.LANE_BOUND: lambda lane: lane.max_waiting,
}


class QueueMetrics:
    """Reads the status of the queue for a scrape; a collector of prometheus-client."""

    def __init__(self, queue: PromptQueue) -> None:
        self._queue = queue
        self._status: QueueStatus | None = None
        self._memory: RedisMemory | None = None

    async def read(self) -> None:
        """Read the status again: six round trips, however many jobs there are.

        Raises:
            redis.exceptions.RedisError, OSError: Redis did not answer.
        """
        self.forget()
        status = await read_status(self._queue)
        self._memory = await read_memory(self._queue.redis)
        self._status = status

    def forget(self) -> None:
        """Export nothing: another process leads, or Redis is unavailable."""
        self._status = None

    def describe(self) -> Iterator[Metric]:
        """The families without values, for when this is registered."""
        for spec in catalogue.QUEUE:
            yield family(spec, ())

    def collect(self) -> Iterator[Metric]:
        """All metrics of the queue."""
        if (status := self._status) is None:
            return
        yield from self._totals(status)
        queue = status.queue
        for spec, of_queue in _OF_QUEUE.items():
            yield family(spec, [((queue,), of_queue(status))])
        # A level that is empty again is exported as zero, not left at its last value.
        levels = [(lane, priority) for lane in status.lanes for priority in range(10)]
        yield family(
            catalogue.WAITING,
            [((queue, lane.name, str(p)), lane.by_priority.get(p, 0)) for lane, p in levels],
        )
        for spec, of_lane in _OF_LANE.items():
            values = [((queue, lane.name), of_lane(lane)) for lane in status.lanes]
            yield family(spec, [(labels, value) for labels, value in values if value is not None])
        if (memory := self._memory) is not None:
            yield family(catalogue.REDIS_MEMORY, [((queue,), memory.used_bytes)])
            if memory.max_bytes is not None:
                yield family(catalogue.REDIS_MEMORY_MAX, [((queue,), memory.max_bytes)])

    @staticmethod
    def _totals(status: QueueStatus) -> Iterator[Metric]:
        totals, queue = status.totals, status.queue
        for name, spec in _TOTALS.items():
            yield family(spec, [((queue,), totals.get(name, 0))])
        yield family(catalogue.ENDED, [((queue, state), totals.get(state, 0)) for state in ENDS])
        of_lanes = totals.get("refused_lane", 0)
        of_queue = totals.get("refused", 0) - of_lanes
        yield family(catalogue.REFUSED, [((queue, "queue"), of_queue), ((queue, "lane"), of_lanes)])
