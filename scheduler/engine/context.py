"""What the services of one worker process share."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.engine.calls import ScriptCalls
from scheduler.engine.claim_signal import ClaimSignal
from scheduler.engine.permits import Permits
from scheduler.engine.service import Service
from scheduler.engine.serving import Serving
from scheduler.observations import Observers
from scheduler.queue.queue import PromptQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineContext:
    """What the services of one worker process share."""

    worker: str
    """The name of the worker process."""
    queue: PromptQueue
    """The queue that it serves."""
    calls: ScriptCalls
    """Its calls of the queue's scripts, which wait for Redis."""
    serving: Serving
    """Its settings and routes."""
    permits: Permits
    """The endpoints that have no permit left."""
    signal: ClaimSignal
    """Wakes its claimer."""
    observers: Observers
    """What it reports to."""


class EngineService(Service):
    """A service of a worker process, with what all of them share."""

    def __init__(self, name: str, context: EngineContext) -> None:
        super().__init__(name)
        self._worker = context.worker
        self._queue = context.queue
        self._calls = context.calls
        self._serving = context.serving
        self._permits = context.permits
        self._signal = context.signal
        self._observers = context.observers
