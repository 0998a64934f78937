"""What goes into and comes out of the queue's scripts.

What comes with every job is a named tuple: it costs a third of a frozen dataclass.
"""

from scheduler.queue.records.claim import NOTHING_CLAIMED, Claim, ClaimedJob, Offer, WithoutPermit
from scheduler.queue.records.enqueue import Conflict, Enqueued, EnqueueOutcome, Full, NewJob, Reuse
from scheduler.queue.records.replay import START, Cursor, Replay
from scheduler.queue.records.tick import TickReport
from scheduler.queue.records.writes import Ending, Publication, Return, WriteOutcome

__all__ = [
    "NOTHING_CLAIMED",
    "START",
    "Claim",
    "ClaimedJob",
    "Conflict",
    "Cursor",
    "Ending",
    "EnqueueOutcome",
    "Enqueued",
    "Full",
    "NewJob",
    "Offer",
    "Publication",
    "Replay",
    "Return",
    "Reuse",
    "TickReport",
    "WithoutPermit",
    "WriteOutcome",
]
