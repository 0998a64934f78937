"""What maintenance did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TickReport:
    """What one call of maintenance did."""

    leader: bool
    """Whether this process holds the lock; without it nothing was done."""
    next_ms: int
    """When to call again."""
    tick_ms: int | None = None
    """The time of the queue's clock at the last tick, ms since the epoch; None if Redis does not know it."""
    data_lost: bool = False
    """Whether Redis has lost the queue's data since the `tick_ms` that this process gave."""
    promoted: int = 0
    """Delayed jobs that became due."""
    reaped: int = 0
    """Running jobs whose leases had ended."""
    expired: int = 0
    """Jobs whose deadlines had passed."""
    released: int = 0
    """Held jobs that their tenants' limits let go."""
    rearmed: int = 0
    """Lanes that were woken."""
    forgotten: int = 0
    """Ended jobs that went."""
    in_doubt: bool = False
    """Nothing was done, because Redis' clock may have jumped: call again at once, with `is_sure`."""
