"""How urgent a job is."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Names for the levels 0 to 9; higher is more urgent. Any integer from 0 to 9 is a priority."""

    BACKGROUND = 1
    LOW = 3
    NORMAL = 5
    HIGH = 7
    CRITICAL = 9


URGENT = 8
"""Priorities from here on go strictly first, and get the places that endpoints keep for them (`reserved`)."""


def is_urgent(priority: int) -> bool:
    """Whether a priority is 8 or 9."""
    return priority >= URGENT
