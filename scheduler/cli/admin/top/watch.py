"""What is known of a queue that is looked at again and again. Pure."""

from __future__ import annotations

import dataclasses
from collections import deque
from dataclasses import dataclass
from typing import Any

from scheduler.cli.admin.top.snapshot import Snapshot, Waits, rates

TREND = 120
"""How many rates are remembered: as many as fit in a wide terminal."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What is to be shown. `rates` are None until two looks tell them; `trend` has the last ones, in order.

    `away` says why the last look has failed: what there is, is of the one before. `frozen`: somebody holds
    the picture.
    """

    snapshot: Snapshot
    rates: dict[str, float] | None = None
    trend: tuple[dict[str, float], ...] = ()
    away: str = ""
    frozen: bool = False
    interval_s: float = 1.0

    def document(self) -> dict[str, Any]:
        """All of it for programs."""
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
    """Takes looks as they come."""

    def __init__(self, first: Snapshot, *, interval_s: float) -> None:
        self._now = Frame(first, interval_s=interval_s)
        self._trend: deque[dict[str, float]] = deque(maxlen=TREND)

    @property
    def frame(self) -> Frame:
        """How things stand, as far as is known."""
        return self._now

    def see(self, snapshot: Snapshot) -> None:
        """Take the next look. One that comes while the picture is held is let go."""
        if self._now.frozen:
            return
        between = rates(self._now.snapshot, snapshot)
        if between is not None:
            self._trend.append(between)
        self._now = dataclasses.replace(
            self._now, snapshot=snapshot, rates=between, trend=tuple(self._trend), away=""
        )

    def miss(self, why: str) -> None:
        """Take note that a look has failed."""
        self._now = dataclasses.replace(self._now, away=why)

    def freeze(self) -> bool:
        """Hold the picture, or let it go; whether it is held now."""
        self._now = dataclasses.replace(self._now, frozen=not self._now.frozen)
        return self._now.frozen
