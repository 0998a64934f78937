"""The settings that hold for a whole queue, as Redis stores them: their names, units and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from scheduler.settings import Settings


def queue_settings(settings: Settings) -> dict[str, str | int]:
    """The settings to publish, by the names that the scripts know them by."""
    conf = _of_every_queue(settings)
    for name, route in settings.routes.items():
        if route.max_waiting is not None:
            conf[f"max_waiting:{name}"] = route.max_waiting
        if route.max_attempts is not None:
            conf[f"max_attempts:{name}"] = route.max_attempts
    return conf


def _of_every_queue(settings: Settings) -> dict[str, str | int]:
    return {
        "max_waiting": settings.max_waiting,
        "when_full": settings.when_full,
        "aging_ms": round(settings.aging_s * 1000),
        "dedup_ttl_ms": round(settings.dedup_ttl_s * 1000),
        "result_ttl_ms": round(settings.result_ttl_s * 1000),
        "max_result_ttl_ms": round(settings.max_result_ttl_s * 1000),
        "dead_ttl_ms": round(settings.dead_ttl_s * 1000),
        "max_dead": settings.max_dead,
        "max_finished": settings.max_finished,
        "spare_bytes": settings.spare_bytes,
        "max_attempts": settings.max_attempts,
    }


@cache
def defaults() -> Mapping[str, str | int]:
    """What holds until a worker process has published settings."""
    return _of_every_queue(Settings())
