"""The order of claiming, the same rule as in `lua/lib/rank.lua`. Pure."""

from __future__ import annotations

from scheduler.model import URGENT


def is_strict(priority: int, *, aging: float) -> bool:
    """Whether a level is a class of its own: it goes before all less urgent ones, however long those waited.

    `aging` is what a level is worth, in any unit; 0 makes every level strict.
    """
    return priority >= URGENT or aging == 0


def handicap(priority: int, *, aging: float) -> float:
    """What a level adds to a rank, in the unit of `aging`. Of equal sums the higher level goes first."""
    return (9 - priority) * aging


def claim_order(priority: int, rank_us: int, *, aging_us: int) -> tuple[int, float, int]:
    """Sort key of a waiting job: the lowest is claimed first. `rank_us` is its score in its level.

    One claim in 20 takes the oldest job that has waited past its bound instead.
    """
    if is_strict(priority, aging=aging_us):
        return 9 - priority, rank_us, 0
    return 2, rank_us + handicap(priority, aging=aging_us), 9 - priority
