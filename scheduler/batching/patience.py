"""How long a call to a model worker may say nothing. Pure: the clock is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scheduler.batching.call import Call

GRACE_S = 2.0
"""A model worker keeps the limits itself and knows better what is late: it has so much longer to say so."""


@dataclass(frozen=True, slots=True)
class CallPatience:
    """The limits of the calls to one endpoint, in seconds.

    `first_s` is for the first output of an answer that is streamed, `next_s` for each of the others;
    `whole_s` for an answer that is wanted whole, of which something may be seen on the way; `total_s` for all
    of a call.
    """

    first_s: float
    next_s: float
    whole_s: float
    total_s: float = math.inf

    @property
    def soonest_s(self) -> float:
        """After so long the first call can be overdue."""
        return GRACE_S + min(self.first_s, self.next_s, self.whole_s, self.total_s)

    def ends_at(self, call: Call) -> float:
        """When a call will have been silent for too long, or have taken too long."""
        if call.whole:
            silence_s = self.whole_s
        else:
            silence_s = self.next_s if call.heard_at > call.began_at else self.first_s
        return GRACE_S + min(call.heard_at + silence_s, call.began_at + self.total_s)
