"""Prompts and answers in OpenTelemetry's format of `gen_ai.input.messages` and `gen_ai.output.messages`.

Source: https://github.com/open-telemetry/semantic-conventions-genai/blob/main/docs/gen-ai/gen-ai-input-messages.json
and gen-ai-output-messages.json beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import orjson

from scheduler.batching import Work
from scheduler.observations import Progress
from workers.base import Generation
from workers.embedding import EmbeddingTask

CAPTURE_VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"

Part: TypeAlias = dict[str, Any]


def is_captured(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the variable asks for the text of prompts and answers in spans."""
    return environ.get(CAPTURE_VARIABLE, "").strip().lower() in {"true", "span_only", "span_and_event"}


def input_messages(work: Work) -> str:
    """The messages of a prompt, as JSON; the texts of other kinds of work as those of a user."""
    if isinstance(work, Generation) and work.messages is not None:
        return _json([_message(message) for message in work.messages])
    return _json([{"role": "user", "parts": [_text(text) for text in _texts(work)]}])


def _texts(work: Work) -> Iterable[str]:
    if isinstance(work, Generation):
        return (work.prompt or str(list(work.token_ids or ())),)
    if isinstance(work, EmbeddingTask):
        return (one if isinstance(one, str) else str(list(one)) for one in work.inputs)
    return (work.query, *work.documents)


def output_messages(progress: Progress, finish_reason: str) -> str:
    """The answer as far as it has passed the filters, as JSON."""
    parts: list[Part] = []
    if reasoning := "".join(progress.reasonings):
        parts.append({"type": "reasoning", "content": reasoning})
    if text := "".join(progress.texts):
        parts.append(_text(text))
    parts.extend(_tool_call(call) for call in progress.tool_calls)
    return _json([{"role": "assistant", "parts": parts, "finish_reason": finish_reason}])


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    role, content = str(message.get("role", "user")), message.get("content")
    if role == "tool":
        answer = {"type": "tool_call_response", "id": message.get("tool_call_id"), "response": content}
        return {"role": role, "parts": [answer]}
    calls = [_tool_call(call) for call in message.get("tool_calls") or ()]
    return {"role": role, "parts": [*_parts(content), *calls]}


def _parts(content: str | Sequence[Any] | None) -> Iterator[Part]:
    if isinstance(content, str):
        yield _text(content)
        return
    for part in content or ():
        if isinstance(part, Mapping):
            yield _text(part["text"]) if isinstance(part.get("text"), str) else dict(part)


def _text(content: str) -> Part:
    return {"type": "text", "content": content}


def _tool_call(call: Mapping[str, Any]) -> Part:
    function = call.get("function") or {}
    return {
        "type": "tool_call",
        "id": call.get("id"),
        "name": function.get("name"),
        "arguments": function.get("arguments"),
    }


def _json(messages: list[dict[str, Any]]) -> str:
    return orjson.dumps(messages, default=str).decode()
