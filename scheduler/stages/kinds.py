"""The stages of jobs that embed or rerank: each calls the engine and makes the result."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence
from typing import Any

from scheduler.model import DEFAULT_TENANT, Kind
from scheduler.routing import Endpoint
from scheduler.stages.base import PromptContext
from scheduler.stages.completion import believed
from scheduler.stages.inference import InferenceStage
from scheduler.stages.tokens import estimate_tokens
from workers.base import Completed, Piece
from workers.embedding import FLOAT_BYTES, Embedded, EmbeddingTask
from workers.errors import AnswerTooLong, RequestRejected, WorkerProtocolError
from workers.rerank import Reranked, RerankTask

LEAST_TOKENS = 4
"""The least that an input counts: engines add special tokens to each. It bounds the inputs of a call."""

MAX_VECTOR_BYTES = 4 << 20
"""The most bytes of the vectors of a job, if its endpoint does not set `max_output_bytes`."""


class _OneCallStage(InferenceStage):
    """Runs the job on one of the route's endpoints, and puts its result into `context.answer`."""

    async def _ask(self, context: PromptContext, endpoint: Endpoint) -> None:
        context.endpoint, context.model = endpoint.name, endpoint.model
        ended = await self._run(context, endpoint)
        usage = ended.usage
        if usage.output_tokens is None:
            usage = usage._replace(output_tokens=0)  # nothing is generated, whatever the engine reports
        completed = Completed(0, "stop", usage, ended.model, None, ended.extra)
        context.completed = believed(completed)

    async def _run(self, context: PromptContext, endpoint: Endpoint) -> Embedded | Reranked:
        """Ask the engine, and set `context.answer`."""
        raise NotImplementedError


class EmbeddingStage(_OneCallStage):
    """Embeds the inputs of a job, together with those of others."""

    async def _run(self, context: PromptContext, endpoint: Endpoint) -> Embedded:
        task = embedding_task(context, endpoint)
        embedded = await endpoint.batcher.run(
            task, _no_piece, tokens=_tokens(task.inputs), expires_at=context.expires_at
        )
        if len(embedded.vectors) != len(task.inputs):
            raise WorkerProtocolError("the model worker did not give one vector for each input")
        _check_length(embedded.vectors[0], task.dimensions)
        _check_size(embedded.vectors, endpoint)
        context.answer = {
            "kind": Kind.EMBEDDING.value,
            "embeddings": [binascii.b2a_base64(one, newline=False).decode() for one in embedded.vectors],
        }
        return embedded


class RerankStage(_OneCallStage):
    """Orders the documents of a job."""

    async def _run(self, context: PromptContext, endpoint: Endpoint) -> Reranked:
        request = context.request
        task = rerank_task(context, endpoint)
        tokens = _tokens(task.documents) + len(task.documents) * estimate_tokens(task.query)
        reranked = await endpoint.batcher.run(task, _no_piece, tokens=tokens, expires_at=context.expires_at)
        results: list[dict[str, Any]] = [{"index": one.index, "score": one.score} for one in reranked.scores]
        if request.get("return_documents"):
            for result in results:
                result["document"] = task.documents[result["index"]]
        context.answer = {"kind": Kind.RERANK.value, "results": results}
        return reranked


def embedding_task(context: PromptContext, endpoint: Endpoint) -> EmbeddingTask:
    """Put together what the model worker gets."""
    request = context.request
    inputs = tuple(one if isinstance(one, str) else tuple(one) for one in request["input"])
    return EmbeddingTask(
        model=endpoint.model,
        inputs=inputs,  # type: ignore[arg-type]  # all text, or all token ids
        dimensions=request.get("dimensions"),
        extra_body=request.get("extra_body") or {},
        priority=context.priority,
        request_id=context.job_id,
    )


def rerank_task(context: PromptContext, endpoint: Endpoint) -> RerankTask:
    """Put together what the model worker gets."""
    request = context.request
    return RerankTask(
        model=endpoint.model,
        query=request["query"],
        documents=tuple(request["documents"]),
        top_n=request.get("top_n"),
        extra_body=request.get("extra_body") or {},
        priority=context.priority,
        request_id=context.job_id,
    )


async def embed_texts(
    stage: InferenceStage, route: str, texts: Sequence[str], priority: int
) -> Sequence[bytes]:
    """The vectors of some texts, from the endpoints of a route that embeds, for another stage.

    Raises:
        WorkerError: no endpoint could.
    """
    context = _inner_context(route, priority, {"input": list(texts)})
    await stage.run(context)
    return [binascii.a2b_base64(one) for one in (context.answer or {})["embeddings"]]


async def rank_texts(
    stage: InferenceStage, route: str, query: str, documents: Sequence[str], priority: int
) -> Sequence[tuple[int, float]]:
    """The indexes of documents and their scores, the best first, from a route that reranks.

    Raises:
        WorkerError: no endpoint could.
    """
    context = _inner_context(route, priority, {"query": query, "documents": list(documents)})
    await stage.run(context)
    return [(one["index"], one["score"]) for one in (context.answer or {})["results"]]


def _inner_context(route: str, priority: int, request: dict[str, Any]) -> PromptContext:
    """Work that is part of another job."""
    return PromptContext(
        job_id="",
        attempt=1,
        route=route,
        tenant=DEFAULT_TENANT,
        priority=priority,
        prompt=None,
        messages=None,
        params={},
        request=request,
    )


def _tokens(inputs: Iterable[str | Sequence[int]]) -> int:
    """Guess the tokens that the engine has to read."""
    counts = (estimate_tokens(one) if isinstance(one, str) else len(one) for one in inputs)
    return sum(max(LEAST_TOKENS, count) for count in counts)


def _check_length(vector: bytes, dimensions: int | None) -> None:
    """Some engines ignore a field that they do not know."""
    length = len(vector) // FLOAT_BYTES
    if dimensions is not None and length != dimensions:
        raise RequestRejected(
            f"dimensions: the engine gives vectors of {length:,} floats, not {dimensions:,}: "
            "its model does not shorten them; leave dimensions out"
        )


def _check_size(vectors: Sequence[bytes], endpoint: Endpoint) -> None:
    settings = endpoint.settings
    is_set = "max_output_bytes" in settings.model_fields_set
    most = settings.max_output_bytes if is_set else MAX_VECTOR_BYTES
    size = sum(map(len, vectors))
    if size > most:
        length = len(vectors[0]) // FLOAT_BYTES
        raise AnswerTooLong(
            f"endpoint {endpoint.name} gives {len(vectors):,} vectors of {length:,} floats, beyond {most:,} "
            "bytes: enqueue fewer inputs in one job, ask for fewer dimensions, or raise its max_output_bytes"
        )


def _no_piece(_: Piece) -> None:
    """Ignore pieces: vectors and scores come whole."""
