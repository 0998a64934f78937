"""What maintenance did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TickReport:
    """What maintenance did, and when it is wanted again. `leader`: this process holds the lock.

    `in_doubt`: it did nothing, for Redis' clock may have jumped.
    """

    leader: bool
    next_ms: int
    promoted: int = 0
    reaped: int = 0
    expired: int = 0
    released: int = 0
    rearmed: int = 0
    forgotten: int = 0
    in_doubt: bool = False
