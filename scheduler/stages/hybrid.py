"""Retrieval by words and by meaning: BM25 and vectors, joined, and put in order once more by a reranker.

What its helpers cannot do does not fail a prompt: without vectors the words alone count, and without the
reranker the joined order does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from scheduler.model import Source
from scheduler.stages.fusion import fuse
from workers.errors import WorkerError

if TYPE_CHECKING:
    from scheduler.stages.bm25 import Bm25Index
    from scheduler.stages.vector_index import Embed, VectorIndex

logger = logging.getLogger(__name__)

CANDIDATES = 5
"""The candidates for each passage that is wanted: by words, by meaning, and for the reranker."""
MAX_QUESTION_CHARS = 1_000
"""What a question's vector is made of: encoders take a few hundred tokens."""

# A search among 2,000 passages takes some 70 µs, as much as going to a thread and back does.
_INLINE_PASSAGES = 2_000
_INLINE_QUESTION_CHARS = 2_000

Rank: TypeAlias = Callable[[str, Sequence[str], int], Awaitable[Sequence[tuple[int, float]]]]
"""Orders documents by a query, with a priority: their indexes and scores, the best first."""


class HybridSearch:
    """Finds passages for one route. `embed` and `rank` are set, and set anew, by whoever knows the routes."""

    def __init__(self, vectors: VectorIndex | None, *, setting: str) -> None:
        self.vectors = vectors
        self.embed: Embed | None = None
        self.rank: Rank | None = None
        self._setting = setting
        self._failing: set[str] = set()

    def follow(self, index: Bm25Index) -> None:
        """Bring the vectors up to date with an index of words, in the background."""
        if self.vectors is not None and self.embed is not None:
            self.vectors.follow(index.passages, self.embed)

    async def find(self, index: Bm25Index, question: str, *, k: int, priority: int) -> list[Source]:
        """The `k` best passages, the best first. Their scores are those of whoever had the last word."""
        self.follow(index)
        most = CANDIDATES * k
        words = await ranked(index, question, k=most)
        near = await self._near(index, question, most, priority)
        found: Sequence[tuple[int, float]] = fuse([number for number, _ in words], near) if near else words
        if self.rank is not None and found:
            found = await self._ranked(index, question, found[:most], self.rank, priority)
        return [index.source(number, score) for number, score in found[:k]]

    async def stop(self) -> None:
        """Stop what runs in the background. Safe to call twice."""
        if self.vectors is not None:
            await self.vectors.stop()

    async def _near(self, index: Bm25Index, question: str, most: int, priority: int) -> list[int]:
        if self.vectors is None or self.embed is None or not question.strip():
            return []
        try:
            (vector,) = await self.embed([shortened(question, MAX_QUESTION_CHARS)], priority)
        except WorkerError as error:
            self._warn("embeddings", error)
            return []
        self._failing.discard("embeddings")
        return await self.vectors.search(index.passages, vector, k=most)

    async def _ranked(
        self, index: Bm25Index, question: str, found: Sequence[tuple[int, float]], rank: Rank, priority: int
    ) -> Sequence[tuple[int, float]]:
        texts = [index.passages[number].text for number, _ in found]
        try:
            order = await rank(shortened(question, MAX_QUESTION_CHARS), texts, priority)
        except WorkerError as error:
            self._warn("rerank", error)
            return found
        self._failing.discard("rerank")
        return [(found[at][0], score) for at, score in order]

    def _warn(self, what: str, error: WorkerError) -> None:
        """Say once that a helper fails, until it works again."""
        if what not in self._failing:
            said = error.log_text or error.code
            logger.warning("%s.%s: retrieval goes without it: %s", self._setting, what, said)
        self._failing.add(what)


async def ranked(index: Bm25Index, question: str, *, k: int) -> list[tuple[int, float]]:
    """The best passages by words, as `Bm25Index.ranked` has them; in a thread if that may take a while."""
    if len(index) <= _INLINE_PASSAGES and len(question) <= _INLINE_QUESTION_CHARS:
        return index.ranked(question, k=k)
    return await asyncio.to_thread(index.ranked, question, k=k)


def shortened(question: str, most: int) -> str:
    """The beginning and the end of a very long prompt: what is asked stands there."""
    if len(question) <= most:
        return question
    half = most // 2
    return f"{question[:half]} {question[-half:]}"
