"""The settings of a queue as its worker processes stored them; the defaults until one has."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.queue.stored_settings import defaults


def aging_ms(stored: bytes | None) -> int:
    """How much waiting a level of priority is worth."""
    return int(stored or defaults()["aging_ms"])


def max_waiting(conf: Mapping[bytes, bytes]) -> int:
    """The bound of the queue."""
    return int(conf.get(b"max_waiting", defaults()["max_waiting"]))


def max_waiting_of(conf: Mapping[bytes, bytes], lane: str) -> int | None:
    """The bound of a lane; None if it has none of its own."""
    stored = conf.get(f"max_waiting:{lane}".encode())
    return int(stored) if stored else None


def when_full(conf: Mapping[bytes, bytes]) -> str:
    """What an enqueue over the bound gets: `reject` or `shed`."""
    stored = conf.get(b"when_full")
    return stored.decode() if stored else str(defaults()["when_full"])
