"""What a model worker says at the end of an answer, as far as it can be stored and reckoned with."""

from __future__ import annotations

from typing import Any

from workers.base import Completed, TokenUsage
from workers.counts import MAX_TOKENS
from workers.finish_reasons import UNKNOWN


def believed(completed: Completed) -> Completed:
    """The same, without counts that no engine can mean and without names that are no text.

    Model workers of others, and stages of your own, may hand over anything.
    """
    said: tuple[Any, ...] = completed
    _, finish_reason, usage, model = said
    if (
        type(finish_reason) is str
        and (model is None or type(model) is str)
        and type(usage) is TokenUsage
        and all(count is None or _is_count(count) for count in usage)
    ):
        return completed
    counts = usage if isinstance(usage, TokenUsage) else TokenUsage()
    return completed._replace(
        finish_reason=finish_reason if isinstance(finish_reason, str) else UNKNOWN,
        usage=TokenUsage(*(count if _is_count(count) else None for count in counts)),
        model=model if isinstance(model, str) else None,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKENS
