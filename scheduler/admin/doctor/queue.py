"""Checks the queue: its worker processes, its lanes, its bound, and the settings that are published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set

from scheduler.admin.doctor.finding import Finding, Level
from scheduler.engine.limits import limits_of
from scheduler.engine.queue_settings import disagreements, limit_disagreements
from scheduler.queue.reports import LaneStatus, QueueStatus, WorkerInfo
from scheduler.queue.stored_settings import queue_settings
from scheduler.settings import Settings


def check_queue(status: QueueStatus, workers: Sequence[WorkerInfo], settings: Settings) -> Iterator[Finding]:
    """Check the queue, as the server and the worker processes report it."""
    served = {route for worker in workers for route in worker.routes}
    yield _workers(status.queue, workers)
    yield from _lanes(status.lanes, served)
    if workers:
        yield from _unserved(settings, served)
    yield _bound(status)
    yield from _failures(status)


def _workers(queue: str, workers: Sequence[WorkerInfo]) -> Finding:
    if not workers:
        fix = "start one: prompt-scheduler worker"
        return Finding(Level.WARN, "workers", f"no worker process serves queue {queue!r}", fix)
    running = sum(worker.running for worker in workers)
    return Finding(Level.OK, "workers", f"{len(workers)} live, {running} jobs running")


def _lanes(lanes: Sequence[LaneStatus], served: Set[str]) -> Iterator[Finding]:
    for lane in lanes:
        waiting, subject = f"{lane.waiting:,} jobs are waiting", f"lane {lane.name}"
        if lane.waiting and lane.paused:
            fix = f"prompt-scheduler admin queue resume {lane.name}"
            yield Finding(Level.WARN, subject, f"{waiting} and it is paused", fix)
        elif lane.waiting and lane.name not in served:
            fix = f"start one that has [routes.{lane.name}]"
            yield Finding(Level.WARN, subject, f"{waiting} and no live worker process serves it", fix)


def _unserved(settings: Settings, served: Set[str]) -> Iterator[Finding]:
    fix = "start one with these settings: prompt-scheduler worker"
    for route in settings.routes:
        if route not in served:
            yield Finding(Level.WARN, f"serving {route}", "no live worker process serves this route", fix)


def _bound(status: QueueStatus) -> Finding:
    unclaimed = status.waiting + status.delayed + status.held
    bound = f"{unclaimed:,} of at most {status.max_waiting:,} jobs are waiting"
    if unclaimed >= status.max_waiting:
        return Finding(Level.WARN, "bound", bound, "add worker processes, or raise max_waiting")
    return Finding(Level.OK, "bound", bound)


def _failures(status: QueueStatus) -> Iterator[Finding]:
    if status.dead:
        fix = "prompt-scheduler admin dead list"
        yield Finding(Level.WARN, "dead", f"failed jobs kept: {status.dead:,}", fix)
    if status.garbage:
        message = f"{status.garbage:,} jobs were set aside because their records were damaged"
        fix = "find out what else writes to this Redis; the queue's hash `garbage` names the jobs"
        yield Finding(Level.WARN, "garbage", message, fix)


def check_settings(
    settings: Settings, published: Mapping[str, str], limits: Mapping[str, str]
) -> Iterator[Finding]:
    """Compare this machine's settings with those that worker processes have published."""
    if not published:
        return
    of_the_queue = disagreements(queue_settings(settings), published)
    of_limits = limit_disagreements(limits_of(settings).fields(), limits)
    if differ := "; ".join([*of_the_queue, *of_limits]):
        message = f"these differ from the published ones, which apply to all processes: {differ}"
        fix = "give all processes the same settings; those of the process that started last apply"
        yield Finding(Level.WARN, "queue settings", message, fix)
