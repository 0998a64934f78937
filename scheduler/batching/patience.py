"""How long a call to a model worker may be silent. Pure: the clock is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scheduler.batching.call import Call

GRACE_S = 2.0
"""Extra seconds for the model worker, which enforces the limits itself and can name the one exceeded."""


@dataclass(frozen=True, slots=True)
class CallPatience:
    """The limits of the calls to one endpoint, in seconds.

    `first_s` limits the wait for the first output of a streamed answer, `next_s` the wait for each later one.
    `whole_s` limits each silence of an answer that is not streamed, `total_s` the whole call.
    """

    first_s: float
    next_s: float
    whole_s: float
    total_s: float = math.inf

    @property
    def soonest_s(self) -> float:
        """The least time after which a call can be overdue, in seconds."""
        return GRACE_S + min(self.first_s, self.next_s, self.whole_s, self.total_s)

    def ends_at(self, call: Call) -> float:
        """When a call becomes overdue, on the event loop's clock."""
        if call.whole:
            silence_s = self.whole_s
        else:
            silence_s = self.next_s if call.heard_at > call.began_at else self.first_s
        return GRACE_S + min(call.heard_at + silence_s, call.began_at + self.total_s)
