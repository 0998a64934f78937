"""What a model worker that embeds or reranks promises, as pytest suites; see `workers.contract`.

class TestMyEmbeddings(EmbeddingContract):
    @pytest.fixture
    async def worker(self):
        worker = MyEmbeddingWorker(EndpointConfig(backend="mine", base_url=...))
        yield worker
        await worker.aclose()
"""
# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from workers.contract import ModelWorkerContract
from workers.embedding import Embedded, EmbeddingTask, EmbeddingWorker
from workers.errors import WorkerError, WorkerTimeout, WorkerUnavailable
from workers.rerank import Reranked, RerankTask, RerankWorker
from workers.vectors import to_floats


async def _times_out(call: Awaitable[Any], within_s: float) -> None:
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=within_s)
    task.cancel()
    assert done, "the worker does not keep timeout_s"
    with pytest.raises(WorkerTimeout):
        task.result()


def _similarity(first: bytes, second: bytes) -> float:
    """The cosine of two vectors."""
    one, other = to_floats(first), to_floats(second)
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


class EmbeddingContract(ModelWorkerContract):
    """What a model worker that embeds promises. Give your subclass the fixture `worker`."""

    model: ClassVar[str] = "tiny"
    """The name of a model that the back end serves."""
    texts: ClassVar[tuple[str, ...]] = (
        "the cat sat",
        "stock prices fell again today",
        "a",
        "the cat sat down",
    )
    """Texts of different lengths; the first is closer to the last than to the second."""
    tokens: ClassVar[tuple[int, ...]] = (5, 6, 7)
    """Ids of tokens that the model has; empty if it takes only text."""
    same_within: ClassVar[float] = 1e-4
    """How far the vector of a text may be from its vector in another call: 1 less the cosine."""
    stop_within_s: ClassVar[float] = 5.0
    """How long the back end may take to give up a call, in seconds."""

    def refused(self) -> EmbeddingTask | None:
        """A task that the back end refuses; None if it refuses nothing."""
        return None

    def task(self, *texts: str, **changes: Any) -> EmbeddingTask:
        """A task with these texts, or with all of `texts`."""
        return replace(EmbeddingTask(self.model, texts or self.texts), **changes)

    async def embed(self, worker: EmbeddingWorker, *batch: EmbeddingTask) -> Sequence[Embedded]:
        """Embed a batch, and check the form of what comes."""
        found = await worker.embed(batch)
        assert [one.member for one in found] == list(range(len(batch)))
        assert [len(one.vectors) for one in found] == [len(task.inputs) for task in batch]
        lengths = {len(vector) for one in found for vector in one.vectors}
        assert len(lengths) == 1
        assert all(math.isfinite(x) for one in found for vector in one.vectors for x in to_floats(vector))
        return found

    def assert_same(self, first: Sequence[bytes], second: Sequence[bytes]) -> None:
        """Check that these are the vectors of the same texts."""
        for one, other in zip(first, second, strict=True):
            assert _similarity(one, other) == pytest.approx(1, abs=self.same_within)

    async def test_each_text_gets_its_vector(self, worker: EmbeddingWorker) -> None:
        (found,) = await self.embed(worker, self.task())
        first, other, *_, near = found.vectors
        assert _similarity(first, near) > _similarity(first, other)
        assert found.usage.input_tokens is None or found.usage.input_tokens > 0

    async def test_members_of_a_batch_get_their_own_vectors(self, worker: EmbeddingWorker) -> None:
        batch = [
            self.task(*self.texts[:2], request_id="job-1"),
            self.task(self.texts[2], priority=7),
            self.task(),
        ]
        together = await self.embed(worker, *batch)
        for task, found in zip(batch, together, strict=True):
            (alone,) = await self.embed(worker, task)
            self.assert_same(found.vectors, alone.vectors)

    async def test_tokens_of_a_batch_add_up(self, worker: EmbeddingWorker) -> None:
        batch = [self.task(text) for text in self.texts]
        (alone,) = await self.embed(worker, self.task())
        shares = [found.usage.input_tokens for found in await self.embed(worker, *batch)]
        if alone.usage.input_tokens is None:
            assert shares == [None] * len(batch)
        else:
            assert sum(share or 0 for share in shares) == alone.usage.input_tokens

    async def test_token_ids_are_embedded(self, worker: EmbeddingWorker) -> None:
        if not self.tokens:
            pytest.skip("the back end takes only text")
        ids = (self.tokens, self.tokens[:1])
        (found,) = await self.embed(worker, replace(self.task(), inputs=ids))
        assert found.vectors[0] != found.vectors[1]

    async def test_concurrent_calls_do_not_mix(self, worker: EmbeddingWorker) -> None:
        tasks = [self.task(text) for text in self.texts]
        together = await asyncio.gather(*(self.embed(worker, task) for task in tasks))
        (alone,) = await self.embed(worker, self.task())
        self.assert_same([found.vectors[0] for (found,) in together], alone.vectors)

    async def test_cancelled_call_leaves_the_worker_usable(self, worker: EmbeddingWorker) -> None:
        call = asyncio.ensure_future(self.embed(worker, self.task()))
        await asyncio.sleep(0)
        runs = call.cancel()
        await asyncio.wait([call], timeout=self.stop_within_s)
        assert call.cancelled() or not runs, "the worker swallowed the cancellation"
        await self.embed(worker, self.task())

    async def test_refused_task_is_a_final_error(self, worker: EmbeddingWorker) -> None:
        if (task := self.refused()) is None:
            pytest.skip("the back end refuses nothing")
        with pytest.raises(WorkerError) as caught:
            await worker.embed([self.task(), task])
        assert not caught.value.retryable
        await self.embed(worker, self.task())

    async def test_back_end_that_is_away_is_a_retryable_error(
        self, unreachable_worker: EmbeddingWorker | None
    ) -> None:
        if unreachable_worker is None:
            pytest.skip("the back end cannot be away")
        with pytest.raises(WorkerUnavailable):
            await unreachable_worker.embed([self.task()])
        await unreachable_worker.aclose()

    async def test_back_end_that_never_answers_is_a_timeout(
        self, silent_worker: EmbeddingWorker | None
    ) -> None:
        if silent_worker is None:
            pytest.skip("the back end cannot be silent")
        await _times_out(silent_worker.embed([self.task()]), self.stop_within_s)
        await silent_worker.aclose()

    async def test_worker_has_the_port(self, worker: EmbeddingWorker) -> None:
        assert isinstance(worker, EmbeddingWorker)


class RerankContract(ModelWorkerContract):
    """What a model worker that reranks promises. Give your subclass the fixture `worker`."""

    model: ClassVar[str] = "tiny"
    """The name of a model that the back end serves."""
    query: ClassVar[str] = "where does the panda live"
    """What to look for."""
    documents: ClassVar[tuple[str, ...]] = (
        "stock prices fell again",
        "the panda does live in China, where bamboo grows",
        "a panda is a bear",
    )
    """Documents, of which the second is the most relevant."""
    knows: ClassVar[bool] = True
    """Whether the model knows which is the most relevant: one with random weights does not."""
    same_within: ClassVar[float] = 1e-3
    """How far the score of a document may be from that in another call."""
    stop_within_s: ClassVar[float] = 5.0
    """How long the back end may take to give up a call, in seconds."""

    def refused(self) -> RerankTask | None:
        """A task that the back end refuses; None if it refuses nothing."""
        return None

    def task(self, **changes: Any) -> RerankTask:
        """A task with all `documents`."""
        return replace(RerankTask(self.model, self.query, self.documents), **changes)

    async def rerank(self, worker: RerankWorker, task: RerankTask) -> Reranked:
        """Rerank, and check the form of what comes."""
        found = await worker.rerank(task)
        scores = [one.score for one in found.scores]
        assert scores == sorted(scores, reverse=True)
        assert all(map(math.isfinite, scores))
        assert (
            len({one.index for one in found.scores})
            == len(scores)
            == min(len(task.documents), task.top_n or len(task.documents))
        )
        return found

    async def test_every_document_has_a_score_and_the_best_comes_first(self, worker: RerankWorker) -> None:
        found = await self.rerank(worker, self.task())
        assert {one.index for one in found.scores} == set(range(len(self.documents)))
        if self.knows:
            assert found.scores[0].index == 1
        assert found.usage.input_tokens is None or found.usage.input_tokens > 0

    @pytest.mark.parametrize("top_n", [1, 2, 1000])
    async def test_top_n_bounds_the_answer(self, worker: RerankWorker, top_n: int) -> None:
        every = await self.rerank(worker, self.task())
        found = await self.rerank(worker, self.task(top_n=top_n))
        for one, other in zip(found.scores, every.scores, strict=False):
            assert one.score == pytest.approx(other.score, abs=self.same_within)

    async def test_concurrent_calls_do_not_mix(self, worker: RerankWorker) -> None:
        tasks = [self.task(documents=(document,)) for document in self.documents]
        together = await asyncio.gather(*(self.rerank(worker, task) for task in tasks))
        for task, found in zip(tasks, together, strict=True):
            alone = await self.rerank(worker, task)
            assert found.scores[0].score == pytest.approx(alone.scores[0].score, abs=self.same_within)

    async def test_refused_task_is_a_final_error(self, worker: RerankWorker) -> None:
        if (task := self.refused()) is None:
            pytest.skip("the back end refuses nothing")
        with pytest.raises(WorkerError) as caught:
            await worker.rerank(task)
        assert not caught.value.retryable
        await self.rerank(worker, self.task())

    async def test_back_end_that_is_away_is_a_retryable_error(
        self, unreachable_worker: RerankWorker | None
    ) -> None:
        if unreachable_worker is None:
            pytest.skip("the back end cannot be away")
        with pytest.raises(WorkerUnavailable):
            await unreachable_worker.rerank(self.task())
        await unreachable_worker.aclose()

    async def test_back_end_that_never_answers_is_a_timeout(self, silent_worker: RerankWorker | None) -> None:
        if silent_worker is None:
            pytest.skip("the back end cannot be silent")
        await _times_out(silent_worker.rerank(self.task()), self.stop_within_s)
        await silent_worker.aclose()

    async def test_worker_has_the_port(self, worker: RerankWorker) -> None:
        assert isinstance(worker, RerankWorker)


__all__ = ["EmbeddingContract", "RerankContract"]
