"""Micro-batching: gathers prompts for one endpoint into calls."""

from scheduler.batching.batcher import Batcher, Flush
from scheduler.batching.bounded import within
from scheduler.batching.call import Member
from scheduler.batching.patience import CallPatience
from scheduler.batching.policy import LONG_GENERATION_TOKENS, BatchPolicy, FlushReason, share_key
from scheduler.batching.runner import CallWatcher
from scheduler.batching.window import Window

__all__ = [
    "LONG_GENERATION_TOKENS",
    "BatchPolicy",
    "Batcher",
    "CallPatience",
    "CallWatcher",
    "Flush",
    "FlushReason",
    "Member",
    "Window",
    "share_key",
    "within",
]
