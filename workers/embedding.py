"""The port of back ends that turn text into vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

from workers.base import ModelWorker, TokenUsage

FLOAT_BYTES = 4
"""The bytes of one component of a vector."""

Inputs: TypeAlias = tuple[str, ...] | tuple[tuple[int, ...], ...]
"""What to embed: texts, or the token ids of each text."""


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """The inputs of one job.

    Tasks that differ only in `inputs`, `priority` and `request_id` may share a call.
    """

    model: str
    """The model's name on the back end, unless the endpoint sets its own."""
    inputs: Inputs
    """At least one text, or the token ids of at least one."""
    dimensions: int | None = None
    """The length of the vectors, where the model can shorten them; None: its own."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields to put into the request to the engine unchanged."""
    priority: int = 5
    """The scheduler's priority, 0 to 9; higher is more urgent."""
    request_id: str = ""
    """The job's id, for the server's log."""
    stream: ClassVar[bool] = False


class Embedded(NamedTuple):
    """The vectors of one task."""

    member: int
    """The task's index in the batch."""
    vectors: tuple[bytes, ...]
    """One vector for each input, in their order: 32-bit floats, little-endian. All have the same length."""
    usage: TokenUsage = TokenUsage()
    """The tokens of this task alone. In a joint call they are its share, in proportion to its text."""
    model: str | None = None
    """The model's name as the engine reports it."""
    extra: Mapping[str, Any] | None = None
    """What else the engine says, such as its `id`."""


@runtime_checkable
class EmbeddingWorker(ModelWorker, Protocol):
    """A model worker that embeds. To cancel a call, cancel the task that awaits it."""

    async def embed(self, batch: Sequence[EmbeddingTask]) -> Sequence[Embedded]:
        """Embed the inputs of all tasks in one call; one `Embedded` for each task, in their order.

        Raises:
            WorkerError: the call failed, and all tasks with it. The batcher finds out by itself which task
                is at fault.
        """
        ...
