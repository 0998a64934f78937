"""From the event stream of Anthropic's Messages API to outputs.

Source: https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from workers.base import Output, Piece, TokenUsage
from workers.calls import ReportedError
from workers.counts import token_count
from workers.finish_reasons import UNKNOWN, ended, finish_reason

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class _Call:
    """One tool call on its way. `given`: its input as its block began, None once it was said."""

    __slots__ = ("given", "index")

    def __init__(self, index: int, given: Any) -> None:
        self.index = index
        self.given: Mapping[str, Any] | None = given if isinstance(given, Mapping) else {}


class MessageReader:
    """Puts one streamed message together; complete when `message_stop` has come.

    Tool calls and thinking come out as OpenAI's fragments and reasoning; `index` counts the tool calls alone.
    The blocks of tools that the server itself runs, and kinds of blocks, deltas and events that are not known
    say nothing.
    """

    __slots__ = (
        "_blocks",
        "_calls",
        "_counts",
        "_model",
        "_readers",
        "_said",
        "_spoken",
        "complete",
        "total",
    )

    def __init__(self) -> None:
        self.total = 1
        self.complete = False
        self._said: Any = None  # the reason for the end, in the server's word
        self._spoken = False
        self._model: str | None = None
        self._counts: dict[str, int] = {}
        self._blocks: dict[int, _Call | None] = {}  # None: no call of the caller's tools
        self._calls: list[_Call] = []
        self._readers: dict[str, Callable[[Mapping[str, Any]], Sequence[Output]]] = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
            "message": self._message,
            "error": self._error,
        }

    @property
    def missing(self) -> int:
        """1 until the end has come, or at least the reason for it."""
        return int(not self.complete and finish_reason(self._said) is None)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says; kinds that are not known say nothing."""
        reader = self._readers.get(event["type"])
        outputs = reader(event) if reader else ()
        self._spoken = self._spoken or bool(outputs)
        return outputs

    def finish(self) -> Sequence[Output]:
        """The end of an answer without `message_stop`: it gave its reason, or said something and was done."""
        if self.complete or (self.missing and not self._spoken):
            return ()
        return self._end()

    def _message_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        message = event.get("message") or {}
        model = message.get("model")
        self._model = model if isinstance(model, str) else None
        self._count(message.get("usage"))
        return ()

    def _block_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        at, block = event["index"], event["content_block"]
        kind = block.get("type")
        if kind == "tool_use":
            call = self._blocks[at] = _Call(len(self._calls), block.get("input"))
            self._calls.append(call)
            function = {"name": block["name"], "arguments": ""}
            return _fragment(call, id=block["id"], type="function", function=function)
        self._blocks[at] = None
        if kind == "text":
            return _text(text=block.get("text"))
        return _text(reasoning=block.get("thinking")) if kind == "thinking" else ()

    def _block_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        delta = event["delta"] or {}
        match delta.get("type"):
            case "text_delta":
                return _text(text=delta.get("text"))
            case "thinking_delta":
                return _text(reasoning=delta.get("thinking"))
            case None:
                return _text(text=delta.get("text"), reasoning=delta.get("thinking"))
            case "input_json_delta":
                call, part = self._blocks[event["index"]], delta.get("partial_json")
                if call is None or not part:
                    return ()
                call.given = None
                return _fragment(call, function={"arguments": part})
            case _:
                return ()

    def _block_stop(self, event: Mapping[str, Any]) -> Sequence[Output]:
        call = self._blocks.get(event["index"])
        return _input_of(call) if call is not None and call.given else ()

    def _message_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        self._said = (event.get("delta") or {}).get("stop_reason") or self._said
        self._count(event.get("usage"))
        return ()

    def _message_stop(self, _: Mapping[str, Any]) -> Sequence[Output]:
        return self._end()

    def _error(self, event: Mapping[str, Any]) -> Sequence[Output]:
        raise ReportedError(event)

    def _message(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """A whole message, from a server that does not stream."""
        self._message_start({"message": event})
        outputs: list[Output] = []
        for at, block in enumerate(event.get("content") or ()):
            outputs += self._block_start({"index": at, "content_block": block})
            outputs += self._block_stop({"index": at})
        self._message_delta({"delta": event})
        return (*outputs, *self._message_stop(event))

    def _end(self) -> Sequence[Output]:
        self.complete = True
        reason = finish_reason(self._said) or UNKNOWN
        if reason == "stop" and self._calls:
            reason = "tool_calls"
        # A call without arguments has {}; where the answer was cut they may have been on their way.
        left = [call for call in self._calls if call.given or (call.given is not None and reason != "length")]
        inputs = [output for call in left for output in _input_of(call)]
        return (*inputs, ended(0, reason, read_usage(self._counts), self._model, said=self._said))

    def _count(self, usage: Any) -> None:
        """Keep the counts that say something: they come twice, and either time may have zero or null."""
        details = usage.get("output_tokens_details") if isinstance(usage, Mapping) else None
        found = {name: token_count(usage, name) for name in _COUNTS}
        found["thinking_tokens"] = token_count(details, "thinking_tokens")
        for name, count in found.items():
            if count or (count == 0 and name not in self._counts):
                self._counts[name] = count


def _fragment(call: _Call, **fragment: Any) -> Sequence[Output]:
    return (Piece(0, tool_calls=({"index": call.index, **fragment},)),)


def _input_of(call: _Call) -> Sequence[Output]:
    """The input that came with the block of a call, as no fragments of it have come."""
    arguments, call.given = orjson.dumps(call.given).decode(), None
    return _fragment(call, function={"arguments": arguments})


def _text(*, text: Any = "", reasoning: Any = "") -> Sequence[Output]:
    text, reasoning = text or "", reasoning or ""
    if not (isinstance(text, str) and isinstance(reasoning, str)):
        raise TypeError("a delta is no text")
    return (Piece(0, text, reasoning),) if text or reasoning else ()


def read_usage(counts: Mapping[str, int]) -> TokenUsage:
    """Anthropic's counts. It counts what the cache gave and took apart from the rest of the input."""
    cached, plain = counts.get("cache_read_input_tokens"), counts.get("input_tokens")
    stored = counts.get("cache_creation_input_tokens", 0)
    return TokenUsage(
        input_tokens=None if plain is None else plain + (cached or 0) + stored,
        output_tokens=counts.get("output_tokens"),
        cached_tokens=cached,
        reasoning_tokens=counts.get("thinking_tokens"),
    )
