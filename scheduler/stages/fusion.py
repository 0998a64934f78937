"""Joins rankings whose scores cannot be compared. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

RANK_OFFSET = 60
"""The constant of the formula: how little the very first ranks stand out."""


def fuse(*rankings: Sequence[T]) -> list[tuple[T, float]]:
    """All items of some rankings, the best first, with their scores: high in several is better than in one.

    Source: Cormack, Clarke, Büttcher, "Reciprocal rank fusion outperforms Condorcet and individual rank
    learning methods", 2009.
    """
    scores: defaultdict[T, float] = defaultdict(float)
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            scores[item] += 1 / (RANK_OFFSET + rank)
    return sorted(scores.items(), key=lambda item: -item[1])
