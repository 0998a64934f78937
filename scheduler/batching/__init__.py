"""Micro-batching: gathers prompts for one endpoint into shared calls."""

from scheduler.batching.batcher import Batcher, Flush
from scheduler.batching.bounded import within
from scheduler.batching.call import Member, Work
from scheduler.batching.kinds import EmbeddingCaller, RerankCaller
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
    "EmbeddingCaller",
    "Flush",
    "FlushReason",
    "Member",
    "RerankCaller",
    "Window",
    "Work",
    "share_key",
    "within",
]
