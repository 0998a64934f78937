"""How urgent a job is."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Names for some of the levels; you may pass any integer from 0 to 9. Higher is more urgent."""

    BACKGROUND = 1
    """For work that can wait for everything else."""
    LOW = 3
    """Below the usual."""
    NORMAL = 5
    """The default."""
    HIGH = 7
    """Above the usual; still subject to aging."""
    CRITICAL = 9
    """Strictly first."""


URGENT = 8
"""From this priority on, jobs go strictly first and may use the places that endpoints reserve for them."""


def is_urgent(priority: int) -> bool:
    """Whether a priority is 8 or 9."""
    return priority >= URGENT
