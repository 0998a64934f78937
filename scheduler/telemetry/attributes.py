"""Attributes of spans of jobs and calls. None holds text of prompts or answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from scheduler.batching import Work
from scheduler.queue.records import ClaimedJob
from scheduler.telemetry import conventions as names
from workers.base import Completed, Generation
from workers.embedding import EmbeddingTask

Attributes: TypeAlias = dict[str, str | bool | int | float | list[str]]

PORTS = {"http": 80, "https": 443}


def of_job(queue: str, job: ClaimedJob) -> Attributes:
    """Attributes that the span of an attempt has from its beginning."""
    return {
        names.MESSAGING_SYSTEM: names.SYSTEM,
        names.MESSAGING_DESTINATION_NAME: queue,
        names.MESSAGING_OPERATION_NAME: names.PROCESS,
        names.MESSAGING_OPERATION_TYPE: names.PROCESS,
        names.MESSAGING_MESSAGE_ID: job.id,
        names.LANE: job.lane,
        names.PRIORITY: job.priority,
        names.TENANT: job.tenant,
        names.ATTEMPT: job.attempt,
    }


@lru_cache(maxsize=256)
def of_endpoint(endpoint: str, backend: str, base_url: str) -> Mapping[str, str | int]:
    """The server of a call. Only host and port of the URL: the rest may hold a credential."""
    found: dict[str, str | int] = {names.ENDPOINT: endpoint, names.GEN_AI_PROVIDER_NAME: backend}
    try:
        parts = urlsplit(base_url)
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:
        return found
    if host:
        found[names.SERVER_ADDRESS] = host
        if port:
            found[names.SERVER_PORT] = port
    return found


def operation_of(work: Work) -> str:
    """The operation that a call is, in OpenTelemetry's terms."""
    if isinstance(work, Generation):
        return names.TEXT_COMPLETION if work.messages is None else names.CHAT
    return names.EMBEDDINGS if isinstance(work, EmbeddingTask) else names.RERANK


def of_work(work: Work) -> Attributes:
    """The model and parameters of a prompt, or of a task of another kind."""
    found: Attributes = {
        names.GEN_AI_OPERATION_NAME: operation_of(work),
        names.GEN_AI_REQUEST_MODEL: work.model,
    }
    if isinstance(work, Generation):
        found.update(_of_generation(work))
    return found


def _of_generation(generation: Generation) -> Attributes:
    found: Attributes = {}
    if generation.stream:
        found[names.GEN_AI_REQUEST_STREAM] = True
    if generation.params:
        found.update(_of_params(generation.params))
    if generation.response_format:
        kind = names.GEN_AI_OUTPUT_TYPES.get(str(generation.response_format.get("type")))
        if kind is not None:
            found[names.GEN_AI_OUTPUT_TYPE] = kind
    return found


def _of_params(params: Mapping[str, Any]) -> Iterator[tuple[str, int | float | list[str]]]:
    for name, attribute in names.GEN_AI_REQUEST_PARAMS.items():
        value = params.get(name)
        if isinstance(value, int | float):
            yield attribute, value
    if stop := params.get("stop"):
        yield names.GEN_AI_REQUEST_STOP_SEQUENCES, [stop] if isinstance(stop, str) else list(stop)


def of_answer(completed: Completed) -> Attributes:
    """The finish reason and the token counts of an answer."""
    usage = completed.usage
    found: Attributes = {names.GEN_AI_RESPONSE_FINISH_REASONS: [completed.finish_reason]}
    if completed.model:
        found[names.GEN_AI_RESPONSE_MODEL] = completed.model
    for attribute, tokens in (
        (names.GEN_AI_USAGE_INPUT_TOKENS, usage.input_tokens),
        (names.GEN_AI_USAGE_OUTPUT_TOKENS, usage.output_tokens),
        (names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, usage.cached_tokens),
        (names.GEN_AI_USAGE_REASONING_OUTPUT_TOKENS, usage.reasoning_tokens),
    ):
        if tokens is not None:
            found[attribute] = tokens
    return found
