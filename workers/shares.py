"""What each task of a joint call has cost: engines count the tokens of all together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from workers.base import TokenUsage
from workers.embedding import EmbeddingTask


def share_usage(usages: Sequence[TokenUsage], batch: Sequence[EmbeddingTask]) -> list[TokenUsage]:
    """The usage of each task of a batch, from those of the requests that it took.

    The shares are in proportion to the texts, and add up to what the engine said. A task that was alone has
    exactly its own.
    """
    if len(usages) == len(batch) == 1:
        return list(usages)
    counts = [usage.input_tokens for usage in usages]
    if None in counts:
        return [TokenUsage()] * len(batch)
    total = sum(count or 0 for count in counts)
    return [TokenUsage(tokens) for tokens in _apportion(total, [_weight(task) for task in batch])]


def _apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of a total in proportion to weights, of which one is above 0."""
    upto = [total * weighed // sum(weights) for weighed in accumulate(weights)]
    return [after - before for before, after in pairwise([0, *upto])]


def _weight(task: EmbeddingTask) -> int:
    """Characters or token ids, and two for the special tokens around each input."""
    return sum(len(one) + 2 for one in task.inputs)
