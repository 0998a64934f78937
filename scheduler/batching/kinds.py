"""How the batcher makes the calls of each kind of work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Sequence
from typing import Any, ClassVar, Protocol, TypeAlias

from scheduler.batching.policy import canonical, share_key
from scheduler.model import is_urgent
from workers.base import Capabilities, Completed, Health, Load, ModelWorker
from workers.embedding import Embedded, EmbeddingTask, EmbeddingWorker
from workers.rerank import Reranked, RerankTask, RerankWorker

End: TypeAlias = Completed | Embedded | Reranked
"""The end of one member's work."""

ENDS = (Completed, Embedded, Reranked)


class BatchWorker(ModelWorker, Protocol):
    """What the batcher needs from a model worker: a `GenerationWorker`, or the caller of another kind."""

    @property
    def capabilities(self) -> Capabilities:
        """What the engine supports."""
        ...

    def generate(self, batch: Sequence[Any]) -> AsyncIterator[Any]:
        """Make one call for a batch and yield its outputs."""
        ...


class _Caller:
    """Adapts a model worker of another kind to the interface of those that generate."""

    capabilities: ClassVar[Capabilities]

    def __init__(self, worker: ModelWorker) -> None:
        self.worker = worker

    async def health(self) -> Health:
        """See `ModelWorker.health`."""
        return await self.worker.health()

    async def capacity(self) -> int | None:
        """See `ModelWorker.capacity`."""
        return await self.worker.capacity()

    async def load(self) -> Load | None:
        """See `ModelWorker.load`."""
        return await self.worker.load()

    async def aclose(self) -> None:
        """See `ModelWorker.aclose`."""
        await self.worker.aclose()


class EmbeddingCaller(_Caller):
    """Makes the calls of an `EmbeddingWorker`. The tasks of several jobs may share one."""

    capabilities = Capabilities(lists=True, streaming=False, chat=False)
    probe: ClassVar[EmbeddingTask] = EmbeddingTask("", ("Hi",), priority=9)
    """The shortest work that it can be given."""

    def __init__(self, worker: EmbeddingWorker) -> None:
        super().__init__(worker)
        self._embed = worker.embed

    async def generate(self, batch: Sequence[EmbeddingTask]) -> AsyncGenerator[Embedded, None]:
        """Embed a batch."""
        for embedded in await self._embed(batch):
            yield embedded


class RerankCaller(_Caller):
    """Makes the calls of a `RerankWorker`, one for each task."""

    capabilities = Capabilities(lists=False, streaming=False, chat=False)
    probe: ClassVar[RerankTask] = RerankTask("", "Hi", ("Hi",), priority=9)
    """The shortest work that it can be given."""

    def __init__(self, worker: RerankWorker) -> None:
        super().__init__(worker)
        self._rerank = worker.rerank

    async def generate(self, batch: Sequence[RerankTask]) -> AsyncGenerator[Reranked, None]:
        """Rerank the one task of a batch."""
        (task,) = batch
        yield await self._rerank(task)


def embedding_key(task: EmbeddingTask, _: Capabilities) -> Hashable:
    """The key by which tasks share a call: all that the engine sees of this one, except its inputs."""
    of_text = isinstance(task.inputs[0], str)
    urgent = is_urgent(task.priority)
    return (task.model, task.dimensions, of_text, urgent, canonical(task.extra_body))


def share_key_for(worker: BatchWorker) -> Callable[[Any, Capabilities], Hashable | None]:
    """The function that makes the key by which work shares calls on this worker; None: a call of its own."""
    if isinstance(worker, EmbeddingCaller):
        return embedding_key
    return _none if isinstance(worker, RerankCaller) else share_key


def _none(_: RerankTask, __: Capabilities) -> None:
    return None
