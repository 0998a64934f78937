"""Which endpoints have no permit left under their rate limits, as the last claims have found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from scheduler.engine.routes import Route

EARLY_S = 0.002
"""Timers count milliseconds and may fire early by this much."""

NONE_REFUSED: AbstractSet[str] = frozenset()


class Permits:
    """Endpoints without a permit, by lane, each until a time on the event loop's clock.

    `on_due` is called when an endpoint may have a permit again.
    """

    def __init__(self, on_due: Callable[[], None]) -> None:
        self._on_due = on_due
        self._refused_until: dict[str, dict[str, float]] = {}

    def refused(self, lane: str) -> AbstractSet[str]:
        """The endpoints of a lane that have no permit now."""
        refused = self._refused_until.get(lane)
        if not refused:
            return NONE_REFUSED
        now = asyncio.get_running_loop().time()
        return {endpoint for endpoint, until in refused.items() if until > now}

    def refuse(self, lane: str, endpoints: Iterable[str], wait_s: float) -> None:
        """Claim nothing for these endpoints of a lane for `wait_s` seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        self._refused_until.setdefault(lane, {}).update(dict.fromkeys(endpoints, until))
        loop.call_at(until + EARLY_S, self._on_due)

    def clear(self) -> None:
        """Forget all refusals: limits have changed, or an administrator has reset one."""
        self._refused_until.clear()

    def wait_s(self, lane: str, endpoint: str) -> float:
        """Seconds until an endpoint may have a permit again; 0 for now."""
        until = self._refused_until.get(lane, {}).get(endpoint, 0.0)
        return round(max(0.0, until - asyncio.get_running_loop().time()), 1)

    def is_held_back(self, route: Route) -> bool:
        """Whether no endpoint takes the route's jobs now."""
        without = self.refused(route.name)
        return not any(endpoint.admits and endpoint.name not in without for endpoint in route.in_use)
