"""Redacts personal data in what an engine sends beside text and reasoning."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scheduler.stages.base import PromptContext
from scheduler.stages.redaction import Kind, redact

_COPIES = frozenset(
    {
        *(
            "content_blocks",
            "logprobs",
            "prompt_logprobs",
            "prompt_token_ids",
            "reasoning_details",
            "thinking_blocks",
        ),
        *("token_ids", "top_logprobs"),
    }
)
"""Fields that repeat the answer or the prompt by token or signed: they cannot be redacted."""
_NO_WORDS = frozenset({"data", "expires_at", "id", "request_id", "system_fingerprint"})
_MAX_DEPTH = 32


def redact_extra(context: PromptContext, kinds: Iterable[Kind]) -> None:
    """Redact the texts beside the answer, and drop fields that repeat the answer."""
    kinds = tuple(kinds)
    for choice in context.all_choices:
        if choice.extra:
            choice.extra = _redacted(choice.extra, kinds, _MAX_DEPTH)
    completed = context.completed
    if completed is None or not (completed.extra or completed.choices):
        return
    ends = (end._replace(extra=_redacted(end.extra or {}, kinds, _MAX_DEPTH)) for end in completed.choices)
    context.completed = completed._replace(
        extra=_redacted(completed.extra or {}, kinds, _MAX_DEPTH), choices=tuple(ends)
    )


def _redacted(value: Any, kinds: tuple[Kind, ...], depth: int) -> Any:
    if isinstance(value, str):
        return redact(value, kinds)
    if not depth:
        return None
    if isinstance(value, Mapping):
        return {
            name: said if name in _NO_WORDS else _redacted(said, kinds, depth - 1)
            for name, said in value.items()
            if name not in _COPIES
        }
    if isinstance(value, list | tuple):
        return [_redacted(item, kinds, depth - 1) for item in value]
    return value
