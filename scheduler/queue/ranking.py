"""The order in which waiting jobs are claimed. Pure; `lua/claim.lua` does the same."""

from __future__ import annotations

STRICT = 8

Rank = tuple[int, float]


def rank(priority: int, enqueued_us: float, *, aging_us: float) -> Rank:
    """A job's place: the lower goes first.

    8 and 9 go strictly before all others. Below, each level has a head start of `aging_us` over the next, so
    that a job which has waited long enough overtakes newer ones of higher levels. With `aging_us` 0 all are
    strict.
    """
    if priority >= STRICT or aging_us == 0:
        return 9 - priority, enqueued_us
    return 9 - STRICT + 1, enqueued_us + (9 - priority) * aging_us
