"""The last stage, and the result that a job leaves behind.

Pieces have gone to the job's writer while they came; this stage makes sure that there is an answer, and
`build_result` makes what is stored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.model import Source
from scheduler.results.encoding import encode
from scheduler.stages.base import PromptContext
from scheduler.stages.completion import believed
from workers.errors import WorkerProtocolError

_CALLED = frozenset({"function", "custom"})  # what these hold comes in pieces


class StreamStage:
    """Makes sure that the attempt has an answer to hand over."""

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
    text = "".join(context.texts)
    tool_calls = merge_tool_calls(context.tool_calls)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if tool_calls else "")}
    if tool_calls:
        message["tool_calls"] = tool_calls
    result: dict[str, Any] = {
        "text": text,
        "message": message,
        "finish_reason": completed.finish_reason if completed else "stop",
        "model": (completed.model if completed else None) or context.route,
        "endpoint": context.endpoint,
        "attempts": context.attempt,
        "timings": _timings(context, queue_ms, claimed_at),
    }
    if tool_calls:
        result["tool_calls"] = tool_calls
    if context.reasonings:
        result["reasoning"] = "".join(context.reasonings)
    if usage is not None:
        result["usage"] = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
            "total_tokens": _sum(usage.input_tokens, usage.output_tokens),
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        }
    if context.passages:
        result["sources"] = [_source(source) for source in context.passages]
    return encode(result)


def _source(source: Source) -> dict[str, Any]:
    return {**source.model_dump(), "score": source.score if math.isfinite(source.score) else 0.0}


def merge_tool_calls(fragments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Put streamed fragments together, by their `index`: names and arguments are appended in order.

    What an engine adds to a call (Gemini its signature) stays with it.
    """
    calls: dict[int, dict[str, Any]] = {}
    for at, fragment in enumerate(fragments):
        index = fragment.get("index")
        call = calls.setdefault(
            at if index is None else index,
            {"id": "", "type": "function", "function": {"name": "", "arguments": ""}},
        )
        for name, said in fragment.items():
            if name in _CALLED and isinstance(said, Mapping):
                _append(call.setdefault(name, {}), said)
            elif said and name != "index":
                call[name] = said
        if call["type"] == "custom":
            call.pop("function", None)
    return [calls[index] for index in sorted(calls)]


def _append(parts: dict[str, Any], said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        known = parts.get(name)
        if isinstance(known, str) and isinstance(value, str):
            parts[name] = known + value
        elif value is not None:
            parts[name] = value


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


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
