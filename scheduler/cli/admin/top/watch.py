"""Turns snapshots into frames: with rates, a trend, and outages. Pure."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

from scheduler.cli.admin.top.snapshot import Snapshot, Waits, rates

TREND = 120
"""How many rates are kept: as many as fit into a wide terminal."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that one picture shows."""

    snapshot: Snapshot
    rates: dict[str, float] | None = None
    """None until there are two snapshots."""
    trend: tuple[dict[str, float], ...] = ()
    """The last rates, in order."""
    away: str = ""
    """Why the last attempt to take a snapshot failed; `snapshot` is then an older one."""
    frozen: bool = False
    """Whether the user has frozen the picture."""
    interval_s: float = 1.0
    """The time between snapshots."""

    def document(self) -> dict[str, Any]:
        """Everything as a JSON document."""
        seen = self.snapshot
        return {
            "queue": seen.status.queue,
            "at_ms": seen.status.at_ms,
            "away": self.away or None,
            "rates": self.rates,
            "memory": seen.memory.model_dump() if seen.memory else None,
            "waits": {"lanes": _plain(seen.waits_by_lane), "priorities": _plain(seen.waits_by_priority)},
            "dead_letters": [
                {
                    "id": job.id,
                    "model": job.model,
                    "code": job.error.code if job.error else job.reason,
                    "message": job.error.message if job.error else "",
                    "ended_at_ms": job.ended_at_ms,
                }
                for job in seen.dead
            ],
            "status": seen.status.model_dump(mode="json"),
            "workers": [worker.model_dump(mode="json") for worker in seen.workers],
        }


def _plain(waits: dict[Any, Waits]) -> dict[str, Any]:
    return {str(key): dataclasses.asdict(one) for key, one in waits.items()}


class Watch:
    """Collects snapshots."""

    def __init__(self, first: Snapshot, *, interval_s: float) -> None:
        self._now = Frame(first, interval_s=interval_s)
        self._trend: deque[dict[str, float]] = deque(maxlen=TREND)

    @property
    def frame(self) -> Frame:
        """The current frame."""
        return self._now

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot. While the picture is frozen, snapshots are dropped."""
        if self._now.frozen:
            return
        between = rates(self._now.snapshot, snapshot)
        if between is not None:
            self._trend.append(between)
        self._now = dataclasses.replace(
            self._now, snapshot=snapshot, rates=between, trend=tuple(self._trend), away=""
        )

    def miss(self, why: str) -> None:
        """Note that a snapshot could not be taken."""
        self._now = dataclasses.replace(self._now, away=why)

    def freeze(self) -> bool:
        """Freeze the picture, or resume. Returns whether it is frozen now."""
        self._now = dataclasses.replace(self._now, frozen=not self._now.frozen)
        return self._now.frozen
