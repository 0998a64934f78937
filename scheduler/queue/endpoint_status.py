"""What all worker processes together say of the endpoints that they use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from scheduler.queue.reports import EndpointStatus, WorkerInfo


def summarize(workers: Sequence[WorkerInfo]) -> list[EndpointStatus]:
    """One report an endpoint, by name."""
    said: dict[str, list[dict[str, Any]]] = {}
    for worker in workers:
        for route in worker.routes.values():
            for one in route.get("endpoints", ()):
                said.setdefault(one.get("name", "?"), []).append(one)
    return [_summary(name, said[name]) for name in sorted(said)]


def _summary(name: str, said: Sequence[dict[str, Any]]) -> EndpointStatus:
    return EndpointStatus(
        name=name,
        backend=str(said[0].get("backend", "")),
        workers=len(said),
        in_flight=sum(_whole(one.get("in_flight")) for one in said),
        limit=sum(_whole(one.get("limit")) for one in said),
        max_in_flight=max(filter(None, (one.get("max_in_flight") for one in said)), default=None),
        reserved=sum(_whole(one.get("reserved")) for one in said),
        breakers=dict(Counter(str(one.get("breaker", "closed")) for one in said)),
        usable_in_s=min(_seconds(one.get("usable_in_s")) for one in said),
        permit_in_s=max(_seconds(one.get("permit_in_s")) for one in said),
        last_error=next(_words(said), ""),
    )


def _words(said: Sequence[dict[str, Any]]) -> Iterator[str]:
    return (str(one["last_error"]) for one in said if one.get("last_error"))


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
