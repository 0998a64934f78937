"""The endpoints of a queue, summed over the worker processes that use them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from scheduler.queue.reports import EndpointStatus
from scheduler.queue.worker_report import EndpointReport, WorkerReport


def summarize(workers: Sequence[WorkerReport]) -> list[EndpointStatus]:
    """One status an endpoint, by name."""
    reports: defaultdict[str, list[EndpointReport]] = defaultdict(list)
    for worker in workers:
        for route in worker.routes.values():
            for one in route.endpoints:
                reports[one.name].append(one)
    return [_summary(name, reports[name]) for name in sorted(reports)]


def _summary(name: str, reports: Sequence[EndpointReport]) -> EndpointStatus:
    return EndpointStatus(
        name=name,
        backend=reports[0].backend,
        workers=len(reports),
        in_flight=sum(one.in_flight for one in reports),
        limit=sum(one.limit for one in reports),
        max_in_flight=max((one.max_in_flight for one in reports if one.max_in_flight), default=None),
        reserved=sum(one.reserved for one in reports),
        breakers=dict(Counter(one.breaker for one in reports)),
        usable_in_s=min(one.usable_in_s for one in reports),
        permit_in_s=max(one.permit_in_s for one in reports),
        last_error=next((one.last_error for one in reports if one.last_error), ""),
    )
