"""An endpoint at work: its settings, its model worker, and what limits and gathers its calls."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.batching.batcher import Batcher
from scheduler.batching.window import Window
from scheduler.settings import EndpointSettings
from workers.base import ModelWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One base URL that serves a route in this process. `batcher` works with this `worker` and `window`."""

    name: str
    settings: EndpointSettings
    worker: ModelWorker
    window: Window
    batcher: Batcher
    weight: float = 1.0

    @property
    def outstanding(self) -> int:
        """The prompts that it holds, and those gathered for it here."""
        return self.window.in_flight + self.batcher.gathered

    @property
    def room(self) -> int:
        """How many more prompts would go without waiting for a place."""
        return max(0, self.window.limit - self.outstanding)
