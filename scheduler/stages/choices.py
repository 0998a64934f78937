"""The fields of a result for each choice: the message to send back to the engine, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scheduler.stages.base import PromptContext
from scheduler.stages.completion import NO_DETAILS
from workers.base import ChoiceEnd, Completed, TokenUsage

_CALLED = frozenset({"function", "custom"})  # the fields of these arrive in pieces
_DETAILS = TokenUsage._fields[4:]


def answer_of(context: PromptContext) -> dict[str, Any]:
    """The fields `text` and `message` of one choice, and `reasoning` and `logprobs` if it has them."""
    text = "".join(context.texts)
    tool_calls = merge_tool_calls(context.tool_calls)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if tool_calls else "")}
    answer: dict[str, Any] = {"text": text, "message": message}
    if tool_calls:
        message["tool_calls"] = tool_calls
    if context.reasonings:
        answer["reasoning"] = "".join(context.reasonings)
    if context.extra:
        _add_extra(answer, context.extra)
    return answer


def _add_extra(answer: dict[str, Any], extra: Mapping[str, Any]) -> None:
    message = answer["message"]
    more = dict(extra)
    if logprobs := more.pop("logprobs", None):
        answer["logprobs"] = logprobs
    message |= {name: value for name, value in more.items() if name not in message}
    if extra.get("refusal") == answer["text"]:
        message["content"] = None


def choices_of(context: PromptContext, completed: Completed | None) -> list[dict[str, Any]]:
    """All choices of an answer that has several."""
    ends = {end.choice: end for end in completed.choices} if completed else {}
    first = completed.finish_reason if completed else "stop"
    return [
        _choice(choice, ends.get(choice.choice) or ChoiceEnd(choice.choice, first))
        for choice in context.all_choices
    ]


def _choice(context: PromptContext, end: ChoiceEnd) -> dict[str, Any]:
    choice = {"index": context.choice, **answer_of(context)}
    choice["finish_reason"] = "stop" if context.stopped else end.finish_reason
    if end.raw_finish_reason:
        choice["raw_finish_reason"] = end.raw_finish_reason
    if end.extra:
        choice["extra"] = dict(end.extra)
    return choice


def merge_tool_calls(fragments: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join streamed fragments by their `index`: names and arguments are appended in order.

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
        if call["type"] != "function" and not (call.get("function") or {}).get("name"):
            call.pop("function", None)
    return [calls[index] for index in sorted(calls)]


def _append(parts: dict[str, Any], said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        known = parts.get(name)
        if isinstance(known, str) and isinstance(value, str):
            parts[name] = known + value
        elif value is not None:
            parts[name] = value


def usage_of(usage: TokenUsage) -> dict[str, Any]:
    """The token counts of a result: the usual ones always, others if the engine reported them."""
    counts = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": _sum(usage.input_tokens, usage.output_tokens),
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }
    if usage[4:] == NO_DETAILS:
        return counts
    details = zip(_DETAILS, usage[4:], strict=True)
    return counts | {name: said for name, said in details if said is not None}


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
