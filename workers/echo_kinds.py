"""Embeddings and rerank without a model: words count, in whatever order.

For trying things out, for tests, and for measuring everything but a model. Texts that share words have
similar vectors, so a search finds something.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from itertools import chain

from workers.base import EndpointConfig, TokenUsage
from workers.echo import NoServer
from workers.embedding import Embedded, EmbeddingTask
from workers.errors import RequestRejected, WorkerTimeout, WorkerUnavailable
from workers.options import count_option, number_option, refuse_unknown_options, text_option
from workers.rerank import Reranked, RerankTask
from workers.rerank_calls import best
from workers.vectors import to_bytes

OPTIONS = ("capacity", "delay_s", "failure_rate", "fail_text")
EMBEDDING_OPTIONS = (*OPTIONS, "dimensions")
DIMENSIONS = 64

_WORD = re.compile(r"\w+")


class _Echo(NoServer):
    def __init__(
        self, config: EndpointConfig, options: Sequence[str], chance: Callable[[], float] = random.random
    ) -> None:
        refuse_unknown_options(config, options)
        super().__init__(config.model or "echo", count_option(config, "capacity"))
        self._timeout_s = min(config.timeout_s, config.total_timeout_s or math.inf)
        self._delay_s = number_option(config, "delay_s", 0.0)
        self._failure_rate = number_option(config, "failure_rate", 0.0, high=1.0)
        self._fail_text = text_option(config, "fail_text")
        self._chance = chance

    async def _work(self, texts: Sequence[str]) -> None:
        """Take as long as the options say, and fail as they say."""
        if self._delay_s:
            await asyncio.sleep(min(self._delay_s, self._timeout_s))
        if self._delay_s > self._timeout_s:
            raise WorkerTimeout(f"echo: no answer within {self._timeout_s:g} s")
        if self._fail_text and any(self._fail_text in text for text in texts):
            raise RequestRejected("echo: a text has what options.fail_text refuses")
        if self._failure_rate and self._chance() < self._failure_rate:
            raise WorkerUnavailable(
                f"echo: failed by chance, as options.failure_rate = {self._failure_rate:g} asks"
            )


class EchoEmbeddingWorker(_Echo):
    """Embeds each text as its words, hashed into `dimensions` (64) components; a word counts as a token.

    Options: `delay_s`, how long a call takes; `failure_rate`, the share (0 to 1) of calls that fail so that
    another attempt may succeed; `fail_text`, a text that gets every call refused that has it; `capacity`, the
    answer of `capacity()`; `dimensions`.
    """

    def __init__(self, config: EndpointConfig, *, chance: Callable[[], float] = random.random) -> None:
        super().__init__(config, EMBEDDING_OPTIONS, chance)
        self._dimensions = count_option(config, "dimensions") or DIMENSIONS

    async def embed(self, batch: Sequence[EmbeddingTask]) -> Sequence[Embedded]:
        """Embed a batch; see `EmbeddingWorker.embed`."""
        texts = [_texts(task) for task in batch]
        await self._work(list(chain.from_iterable(texts)))
        return [self._embedded(member, task, texts[member]) for member, task in enumerate(batch)]

    def _embedded(self, member: int, task: EmbeddingTask, texts: Sequence[str]) -> Embedded:
        dimensions = task.dimensions or self._dimensions
        vectors = tuple(vector_of(text, dimensions) for text in texts)
        return Embedded(member, vectors, TokenUsage(sum(len(_words(text)) for text in texts)), self._model)


class EchoRerankWorker(_Echo):
    """Scores each document by the share of the query's words that it has, from 0 to 1.

    Options: those of `EchoEmbeddingWorker` but `dimensions`.
    """

    def __init__(self, config: EndpointConfig, *, chance: Callable[[], float] = random.random) -> None:
        super().__init__(config, OPTIONS, chance)

    async def rerank(self, task: RerankTask) -> Reranked:
        """Order documents; see `RerankWorker.rerank`."""
        await self._work([task.query, *task.documents])
        wanted = set(_words(task.query))
        documents = [_words(document) for document in task.documents]
        scores = {
            index: len(wanted.intersection(words)) / max(1, len(wanted))
            for index, words in enumerate(documents)
        }
        tokens = sum(map(len, documents)) + len(documents) * len(_words(task.query))
        return Reranked(0, best(scores, task), TokenUsage(tokens), self._model)


def vector_of(text: str, dimensions: int = DIMENSIONS) -> bytes:
    """The vector that the echo makes of a text."""
    return to_bytes(_vector(_words(text), dimensions))


def _texts(task: EmbeddingTask) -> list[str]:
    return [one if isinstance(one, str) else " ".join(map(str, one)) for one in task.inputs]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _vector(words: Sequence[str], dimensions: int) -> list[float]:
    """A unit vector: each word adds one to a component, and all of them a little, so that none is zero."""
    counts = [1e-3] * dimensions
    for word in words:
        counts[_hash(word) % dimensions] += 1
    length = math.sqrt(sum(count * count for count in counts))
    return [count / length for count in counts]


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")
