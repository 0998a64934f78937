"""OpenAI's chat completions and legacy completions, streamed, as many engines speak them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.base import Completed, Generation, MemberFailed, Output, Piece, TokenUsage
from workers.calls import MALFORMED
from workers.counts import token_count
from workers.errors import WorkerUnavailable
from workers.http import HttpEndpoint

OURS = frozenset({"messages", "model", "prompt", "stream", "stream_options"})
"""The fields of a request that only the adapter sets."""

_FINISH_REASONS = {
    "content_filter": "content_filter",
    "function_call": "tool_calls",
    "length": "length",
    "model_length": "length",  # Mistral
    "tool_calls": "tool_calls",
}
# The engine gave up; what it had said until then is no answer.
_GIVEN_UP = frozenset({"abort", "error", "insufficient_system_resource"})  # vLLM; OpenRouter; DeepSeek
_MAX_ID_CHARS = 512
_ANTHROPICS = frozenset({"cache_control", "is_error"})


def chat_body(generation: Generation) -> dict[str, Any]:
    """The request for a streamed chat, without `model`, sampling parameters and `extra_body`.

    A plain prompt becomes the user's only message.
    """
    messages = generation.messages or ({"role": "user", "content": generation.prompt},)
    body: dict[str, Any] = {
        "messages": _known(messages),
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


def _known(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages without what is Anthropic's alone: OpenAI refuses fields that it does not know."""
    if not any(_ANTHROPICS & message.keys() for message in messages):
        return messages
    return [
        {name: value for name, value in message.items() if name not in _ANTHROPICS} for message in messages
    ]


def completion_body(batch: Sequence[Generation]) -> dict[str, Any]:
    """The request for streamed completions, without `model`, sampling parameters and `extra_body`."""
    body: dict[str, Any] = {
        "prompt": [generation.prompt for generation in batch] if len(batch) > 1 else batch[0].prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if batch[0].response_format is not None:
        body["response_format"] = batch[0].response_format
    return body


def request_id_header(name: str, generation: Generation) -> dict[str, str]:
    """The header that tells the server our id of a request; none where the id cannot stand in a header."""
    request_id = generation.request_id
    if request_id and request_id.isascii() and request_id.isprintable() and len(request_id) <= _MAX_ID_CHARS:
        return {name: request_id}
    return {}


class ChatReader:
    """Puts one streamed chat together."""

    __slots__ = ("_called", "_finish_reason", "_model", "_refused", "_usage", "total")

    complete = False  # the usage comes after the finish reason

    def __init__(self) -> None:
        self.total = 1
        self._finish_reason: str | None = None
        self._called = False
        self._refused = False
        self._usage = TokenUsage()
        self._model: str | None = None

    @property
    def missing(self) -> int:
        """1 until a finish reason has come."""
        return int(self._finish_reason is None)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says."""
        if usage := event.get("usage"):
            self._usage = read_usage(usage)
        if not (choices := event.get("choices")):
            return ()
        choice = choices[0]
        piece = self._piece(choice["delta"])
        if reason := _text(choice.get("finish_reason")):
            self._finish_reason = reason
            self._model = event.get("model")
        return (piece,) if piece else ()

    def finish(self) -> Sequence[Output]:
        """The end of the answer."""
        return (end(0, self._reason(), self._usage, self._model),)

    def _reason(self) -> str:
        """A refusal, and calls that were asked for by name, end with "stop" at OpenAI."""
        if self._finish_reason == "stop" and self._refused:
            return "content_filter"
        if self._finish_reason == "stop" and self._called:
            return "tool_calls"
        return self._finish_reason or "stop"

    def _piece(self, delta: Mapping[str, Any]) -> Piece | None:
        text = _text(delta.get("content"))
        if refusal := _text(delta.get("refusal")):
            self._refused = True
            text += refusal
        reasoning = _text(delta.get("reasoning_content") or delta.get("reasoning"))
        tool_calls = tuple(delta.get("tool_calls") or ())
        if tool_calls:
            self._called = True
            if not all(isinstance(call, dict) for call in tool_calls):
                raise TypeError("a tool call is no object")
        elif not (text or reasoning):
            return None
        return Piece(0, text, reasoning, tool_calls)


class CompletionReader:
    """Takes the streamed answers to one or several plain prompts apart.

    The usage of a single prompt comes last. In a list it comes for each member with its finish reason, where
    the server gives it: the sum for the whole list tells nothing.
    """

    __slots__ = ("_end", "_usage", "_waiting", "total")

    complete = False

    def __init__(self, total: int) -> None:
        self.total = total
        self._waiting = set(range(total))
        self._end: tuple[str, str | None] | None = None  # a single prompt's reason and model
        self._usage = TokenUsage()

    @property
    def missing(self) -> int:
        """The prompts without a finish reason."""
        return len(self._waiting)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says."""
        if self.total == 1 and (usage := event.get("usage")):
            self._usage = read_usage(usage)
        outputs: list[Output] = []
        for choice in event.get("choices") or ():
            member = choice["index"]
            if member not in self._waiting:
                raise ValueError("there is no such member")
            if text := _text(choice["text"]):
                outputs.append(Piece(member, text))
            if reason := _text(choice.get("finish_reason")):
                self._waiting.remove(member)
                self._ended(outputs, member, reason, event)
        return outputs

    def finish(self) -> Sequence[Output]:
        """The end of a single prompt."""
        if self._end is None:
            return ()
        reason, model = self._end
        return (end(0, reason, self._usage, model),)

    def _ended(self, outputs: list[Output], member: int, reason: str, event: Mapping[str, Any]) -> None:
        model = event.get("model")
        if self.total == 1:
            self._end = (reason, model)
        else:
            outputs.append(end(member, reason, read_usage(event.get("usage") or {}), model))


def end(member: int, reason: str, usage: TokenUsage, model: str | None) -> Completed | MemberFailed:
    """The end of one answer by the server's own finish reason."""
    if reason in _GIVEN_UP:
        return MemberFailed(member, WorkerUnavailable(f"the engine gave the answer up ({reason})"))
    return Completed(member, _FINISH_REASONS.get(reason, "stop"), usage, model)


def read_usage(usage: Mapping[str, Any]) -> TokenUsage:
    """OpenAI's `usage` object."""
    return TokenUsage(
        input_tokens=token_count(usage, "prompt_tokens"),
        output_tokens=token_count(usage, "completion_tokens"),
        cached_tokens=token_count(usage.get("prompt_tokens_details"), "cached_tokens"),
        reasoning_tokens=token_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


async def model_names(endpoint: HttpEndpoint, path: str) -> tuple[str, ...]:
    """The names of the models that the server lists; none where its list has another form.

    Raises:
        WorkerError: it gave none.
    """
    answer = await endpoint.get(path)
    try:
        return tuple(str(model["id"]) for model in answer["data"])
    except MALFORMED:
        return ()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("is no text")
    return value
