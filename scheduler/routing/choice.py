"""Chooses the endpoint for a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b

from scheduler.model import Priority, is_urgent
from scheduler.routing.endpoint import Endpoint


def choose_endpoint(
    endpoints: Iterable[Endpoint], *, priority: int = Priority.NORMAL, session: str | None = None
) -> Endpoint | None:
    """Choose the endpoint with the least burden for its weight, preferring those with room for the priority.

    Among equals the first wins: a quiet route then stays on one endpoint, whose prefix cache is warm. For the
    same reason the prompts of a `session` go to one endpoint as long as it has room. Returns None if no
    endpoint admits a prompt now.
    """
    usable = [endpoint for endpoint in endpoints if endpoint.admits]
    if len(usable) < 2:
        return usable[0] if usable else None
    if session is not None:
        home = max(usable, key=lambda endpoint: (_affinity(session, endpoint), endpoint.name))
        if home.room_for(priority):
            return home
    return min(usable, key=lambda endpoint: _load(endpoint, priority))


def _load(endpoint: Endpoint, priority: int) -> tuple[bool, float]:
    slots = endpoint.limit if is_urgent(priority) else endpoint.limit - endpoint.kept
    burden = endpoint.burden
    return burden >= slots, (burden + 1) / endpoint.weight


def _affinity(session: str, endpoint: Endpoint) -> float:
    """Weighted rendezvous hashing: when an endpoint comes or goes, only its own sessions move.

    Source: D. Thaler, C. Ravishankar, "Using name-based mappings to increase hit rates", 1998; weights by the
    logarithm method of J. Resch, "New hashing algorithms for data storage", 2015.
    """
    digest = blake2b(f"{endpoint.identity}\0{session}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2.0**64
    return -endpoint.weight / math.log(uniform)
