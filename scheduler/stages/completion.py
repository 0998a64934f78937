"""The end of an answer as a model worker reports it, with impossible values left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from workers.base import ChoiceEnd, Completed, TokenUsage
from workers.counts import MAX_TOKENS
from workers.finish_reasons import UNKNOWN

_COUNTS = TokenUsage._fields[:7]
NO_DETAILS = TokenUsage()[4:]
"""The last fields of most usages: none beside the usual four counts."""


def believed(completed: Completed) -> Completed:
    """The same without impossible counts and without names that are not text.

    Model workers of others, and stages of your own, may hand over anything.
    """
    said: tuple[Any, ...] = completed
    _, finish_reason, usage, model, raw_finish_reason, extra, choices = said
    if (
        type(finish_reason) is str
        and (model is None or type(model) is str)
        and type(usage) is TokenUsage
        and all(count is None or _is_count(count) for count in usage[:4])
        and usage[4:] == NO_DETAILS
        and raw_finish_reason is None
        and not extra
        and not choices
    ):
        return completed
    return completed._replace(
        finish_reason=finish_reason if isinstance(finish_reason, str) else UNKNOWN,
        usage=_believed_usage(usage),
        model=model if isinstance(model, str) else None,
        raw_finish_reason=raw_finish_reason if isinstance(raw_finish_reason, str) else None,
        extra=extra if isinstance(extra, Mapping) else None,
        choices=tuple(_believed_end(end) for end in choices if isinstance(end, ChoiceEnd)),
    )


def _believed_usage(usage: Any) -> TokenUsage:
    if not isinstance(usage, TokenUsage):
        return TokenUsage()
    counts = {name: count for name, count in zip(_COUNTS, usage[:7], strict=True) if _is_count(count)}
    cost: Any = usage.cost
    extra: Any = usage.extra
    return TokenUsage(
        **counts,
        cost=cost if type(cost) in {int, float} and math.isfinite(cost) else None,
        extra=extra if isinstance(extra, Mapping) else None,
    )


def _believed_end(end: ChoiceEnd) -> ChoiceEnd:
    index, finish_reason, raw, extra = tuple[Any, ...](end)
    return ChoiceEnd(
        index if type(index) is int else 0,
        finish_reason if isinstance(finish_reason, str) else UNKNOWN,
        raw if isinstance(raw, str) else None,
        extra if isinstance(extra, Mapping) else None,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_TOKENS
