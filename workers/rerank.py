"""The port of back ends that order documents by their relevance to a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from workers.base import ModelWorker, TokenUsage


@dataclass(frozen=True, slots=True)
class RerankTask:
    """One query and its documents. It has a call of its own: no engine takes lists of queries."""

    model: str
    """The model's name on the back end, unless the endpoint sets its own."""
    query: str
    """What to look for."""
    documents: tuple[str, ...]
    """At least one document."""
    top_n: int | None = None
    """How many of the best documents to return; None: all."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields to put into the request to the engine unchanged."""
    priority: int = 5
    """The scheduler's priority, 0 to 9; higher is more urgent."""
    request_id: str = ""
    """The job's id, for the server's log."""
    stream: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Score:
    """The relevance of one document."""

    index: int
    """The document's index in the task."""
    score: float
    """Higher is more relevant. Models differ in their scale: compare only scores of one answer."""


class Reranked(NamedTuple):
    """The documents of a task, the most relevant first."""

    member: int
    """Always 0: a call has one task."""
    scores: tuple[Score, ...]
    """The best `top_n` documents."""
    usage: TokenUsage = TokenUsage()
    """The tokens of query and documents."""
    model: str | None = None
    """The model's name as the engine reports it."""
    extra: Mapping[str, Any] | None = None
    """What else the engine says, such as its `id`."""


@runtime_checkable
class RerankWorker(ModelWorker, Protocol):
    """A model worker that reranks. To cancel a call, cancel the task that awaits it."""

    async def rerank(self, task: RerankTask) -> Reranked:
        """Order the documents of a task.

        Raises:
            WorkerError: the call failed.
        """
        ...
