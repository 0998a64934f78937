"""How urgent a job is."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Names for some of the levels; you may pass any integer from 0 to 9. Higher is more urgent."""

    BACKGROUND = 1
    LOW = 3
    NORMAL = 5
    HIGH = 7
    CRITICAL = 9


URGENT = 8
"""From this priority on, jobs go strictly first and may use the places that endpoints reserve for them."""


def is_urgent(priority: int) -> bool:
    """Whether a priority is 8 or 9."""
    return priority >= URGENT
