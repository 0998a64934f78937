"""What administrators see of an endpoint."""

from __future__ import annotations

from scheduler.queue.worker_report import EndpointReport
from scheduler.routing.endpoint import Endpoint


def report_of(endpoint: Endpoint, *, permit_in_s: float = 0.0) -> EndpointReport:
    """The report of an endpoint in this process, without API key and address."""
    return EndpointReport(
        name=endpoint.name,
        backend=endpoint.settings.backend,
        in_flight=endpoint.window.in_flight,
        gathered=endpoint.batcher.gathered,
        limit=endpoint.limit,
        max_in_flight=endpoint.max_in_flight,
        reserved=endpoint.reserved,
        breaker=endpoint.breaker.state.value,
        usable_in_s=round(endpoint.usable_in_s, 1),
        permit_in_s=permit_in_s,
        last_error=endpoint.last_error,
    )
