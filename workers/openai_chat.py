"""OpenAI's streamed chat completions, as several engines speak them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.base import Completed, Generation, Piece, TokenUsage

_FINISH_REASONS = {
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "length": "length",
    "tool_calls": "tool_calls",
}


def chat_body(generation: Generation) -> dict[str, Any]:
    """The request for a streamed chat, without `model`, sampling parameters and `extra_body`."""
    body: dict[str, Any] = {
        "messages": generation.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if generation.tools:
        body["tools"] = generation.tools
    if generation.tool_choice is not None:
        body["tool_choice"] = generation.tool_choice
    if generation.response_format is not None:
        body["response_format"] = generation.response_format
    return body


class ChatStream:
    """Puts one streamed answer together; `ended` once the server has given a finish reason."""

    __slots__ = ("_finish_reason", "_member", "_model", "_usage")

    def __init__(self, member: int = 0) -> None:
        self._member = member
        self._finish_reason: str | None = None
        self._usage = TokenUsage()
        self._model: str | None = None

    @property
    def ended(self) -> bool:
        """Whether a finish reason has come."""
        return self._finish_reason is not None

    def read(self, chunk: Mapping[str, Any]) -> Piece | None:
        """What one chunk adds, if anything.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is not what the protocol promises.
        """
        if usage := chunk.get("usage"):
            self._usage = read_usage(usage)
        if not (choices := chunk.get("choices")):
            return None
        choice = choices[0]
        if reason := choice.get("finish_reason"):
            self._finish_reason = _FINISH_REASONS.get(reason, "stop")
            self._model = chunk.get("model")
        return _piece(self._member, choice["delta"])

    def end(self) -> Completed:
        """The end of the answer, once all has been read."""
        return Completed(self._member, self._finish_reason or "stop", self._usage, self._model)


def read_usage(usage: Mapping[str, Any]) -> TokenUsage:
    """OpenAI's `usage` object."""
    return TokenUsage(
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        reasoning_tokens=(usage.get("completion_tokens_details") or {}).get("reasoning_tokens"),
    )


def _piece(member: int, delta: Mapping[str, Any]) -> Piece | None:
    text = delta.get("content") or ""
    reasoning = delta.get("reasoning_content") or ""
    tool_calls = tuple(delta.get("tool_calls") or ())
    if not (isinstance(text, str) and isinstance(reasoning, str)):
        raise TypeError("content is no text")
    if not (text or reasoning or tool_calls):
        return None
    return Piece(member, text, reasoning, tool_calls)
