"""The fields of a request as keyword arguments, for type checkers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TypedDict

from scheduler.model import DedupMode, GenerationParams, Message


class JobFields(TypedDict, total=False):
    """The fields that requests of all kinds have, as keyword arguments."""

    model: str
    priority: int
    dedup_key: str
    dedup: DedupMode | Literal["until_finished", "window", "replace"]
    tenant: str
    session: str
    deadline_s: float | timedelta
    delay_s: float | timedelta
    max_attempts: int
    max_waits: int
    result_ttl_s: float | timedelta
    extra_body: dict[str, Any]
    metadata: dict[str, Any]
    job_id: str


class RequestFields(JobFields, total=False):
    """The fields of `PromptRequest` as keyword arguments."""

    prompt: str | list[int]
    messages: Sequence[Message | dict[str, Any]]
    tools: Sequence[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    response_format: dict[str, Any]
    params: GenerationParams | dict[str, Any]
    stream: bool
