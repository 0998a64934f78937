"""Puts together who looks on at the engine of a worker process, as the settings say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from scheduler.settings import Settings
from scheduler.telemetry.needed import needs_otel


@dataclass(slots=True)
class Telemetry:
    """The observers of an engine, and what has to end after it."""

    observers: list[object] = field(default_factory=list)
    stops: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    async def stop(self) -> None:
        """Let observers give out what they still have, once the engine has stopped. Safe to call twice."""
        while self.stops:
            await self.stops.pop()()


def make_observers(settings: Settings, *, instance: str) -> Telemetry:
    """Make those that are wanted; their libraries are loaded only then. `instance` names the process.

    Raises:
        ConfigError: an extra is not installed, or a variable of its library is wrong.
    """
    made = Telemetry()
    if settings.traces:
        _add_traces(made, settings, instance)
    return made


def _add_traces(made: Telemetry, settings: Settings, instance: str) -> None:
    try:
        from scheduler.telemetry.sdk import set_up, shut_down  # noqa: PLC0415  an extra
        from scheduler.telemetry.traces import Traces  # noqa: PLC0415  the same
    except ImportError:
        raise needs_otel() from None
    provider = set_up(instance)
    made.observers.append(Traces(settings.queue))
    if provider is not None:
        made.stops.append(lambda: shut_down(provider))
