"""The last stage, and the result that a job leaves behind.

Pieces have gone to the job's writer while they came; this stage makes sure that there is an answer, and
`build_result` makes what is stored.
"""

from __future__ import annotations

import math
import time
from typing import Any

from scheduler.model import Source
from scheduler.results.encoding import encode
from scheduler.stages.base import PromptContext
from scheduler.stages.choices import answer_of, choices_of, usage_of
from scheduler.stages.completion import believed
from workers.base import Completed
from workers.errors import WorkerProtocolError

_NO_MORE = (None, None, ())  # the fields after the model in most `Completed`


class StreamStage:
    """Makes sure that the attempt has an answer."""

    name = "stream"

    async def run(self, context: PromptContext) -> None:
        """Check the attempt's outcome.

        Raises:
            WorkerProtocolError: no stage has completed the answer.
        """
        if context.completed is None:
            raise WorkerProtocolError(
                "the stages ended without an answer: did a stage of your own leave it out?"
            )


def build_result(context: PromptContext, *, queue_ms: float, claimed_at: float) -> bytes:
    """The JSON of the job's `JobResult`. `claimed_at` is on the clock of `time.monotonic`.

    Whatever the stages have made of the answer, it can be read back; see `believed` and `encode`.
    """
    completed = context.completed = context.completed and believed(context.completed)
    usage = completed.usage if completed else None
    if context.answer is None:
        result = answer_of(context)
        result["finish_reason"] = completed.finish_reason if completed else "stop"
        if tool_calls := result["message"].get("tool_calls"):
            result["tool_calls"] = tool_calls
    else:
        result = dict(context.answer)
    result["model"] = (completed.model if completed else None) or context.route
    result["endpoint"] = context.endpoint
    result["attempts"] = context.attempt
    result["timings"] = _timings(context, queue_ms, claimed_at)
    if usage is not None:
        result["usage"] = usage_of(usage)
    if completed is not None and completed[4:] != _NO_MORE:
        result |= _more_of(completed)
    if context.choices:
        result["choices"] = choices_of(context, completed)
    if context.passages:
        result["sources"] = [_source(source) for source in context.passages]
    return encode(result)


def _source(source: Source) -> dict[str, Any]:
    return {**source.model_dump(), "score": source.score if math.isfinite(source.score) else 0.0}


def _more_of(completed: Completed) -> dict[str, Any]:
    """The engine's own finish reason, if it says more."""
    raw, extra = completed.raw_finish_reason, completed.extra
    return {**({"raw_finish_reason": raw} if raw else {}), **({"extra": dict(extra)} if extra else {})}


def _timings(context: PromptContext, queue_ms: float, claimed_at: float) -> dict[str, Any]:
    first_token_ms = None
    if context.first_token_at is not None:
        first_token_ms = _to_microseconds((context.first_token_at - claimed_at) * 1000)
    return {
        "queue_ms": queue_ms,
        "first_token_ms": first_token_ms,
        "stages_ms": {stage: _to_microseconds(ms) for stage, ms in context.stages_ms.items()},
        "total_ms": _to_microseconds(queue_ms + (time.monotonic() - claimed_at) * 1000),
    }


def _to_microseconds(ms: float) -> float:
    """Milliseconds with three decimals. `round` takes three times as long for the exact half."""
    return int(ms * 1000 + 0.5) / 1000
