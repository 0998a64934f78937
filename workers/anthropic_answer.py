"""From the event stream of Anthropic's Messages API to outputs.

Source: https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from workers.base import Completed, Output, Piece, TokenUsage
from workers.counts import token_count

# Servers that are compatible with Anthropic also use the names of the engines behind them.
_FINISH_REASONS = {
    "end_turn": "stop",
    "stop": "stop",
    "stop_sequence": "stop",
    "compaction": "length",
    "length": "length",
    "max_output_tokens": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "model_length": "length",
    "pause_turn": "length",  # a long turn was cut: the answer goes on when it is sent back
    "tool_calls": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "sensitive": "content_filter",
}
UNKNOWN = "unknown"
"""The finish reason of an answer that has ended, nobody can tell why."""

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)


class _Call:
    """One tool call of the answer on its way. `given`: its input as its block began, until fragments come."""

    __slots__ = ("given", "index")

    def __init__(self, index: int, given: Any) -> None:
        self.index = index
        self.given: Any = given if isinstance(given, Mapping) else {}


class MessageReader:
    """Puts one streamed message together; complete when `message_stop` has come.

    Tool calls and thinking come out as OpenAI's fragments and reasoning; `index` counts the tool calls alone.
    The blocks of tools that the server itself runs, and kinds of blocks, deltas and events that are not known
    say nothing.
    """

    __slots__ = ("_blocks", "_calls", "_counts", "_finish_reason", "_model", "_readers", "complete", "total")

    def __init__(self) -> None:
        self.total = 1
        self.complete = False
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._counts: dict[str, int] = {}
        self._blocks: dict[int, _Call | None] = {}  # those that are open; None: no call of the caller's tools
        self._calls = 0
        self._readers: dict[str, Callable[[Mapping[str, Any]], Sequence[Output]]] = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "content_block_stop": self._block_stop,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
            "message": self._message,
        }

    @property
    def missing(self) -> int:
        """1 until the end has come, or at least the reason for it."""
        return int(not self.complete and self._finish_reason is None)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says; kinds that are not known say nothing."""
        reader = self._readers.get(event["type"])
        return reader(event) if reader else ()

    def finish(self) -> Sequence[Output]:
        """The end of an answer that gave its reason, and no `message_stop`."""
        return () if self.complete else self._end()

    def _message_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        message = event["message"]
        model = message.get("model")
        self._model = model if isinstance(model, str) else None
        self._count(message.get("usage"))
        return ()

    def _block_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        at, block = event["index"], event["content_block"]
        kind = block.get("type")
        if kind == "tool_use":
            call = self._blocks[at] = _Call(self._calls, block.get("input"))
            self._calls += 1
            function = {"name": block["name"], "arguments": ""}
            return _fragment(call, id=block["id"], type="function", function=function)
        self._blocks[at] = None
        if kind == "text":
            return _said(text=block.get("text"))
        return _said(reasoning=block.get("thinking")) if kind == "thinking" else ()

    def _block_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        delta = event["delta"]
        match delta.get("type"):
            case "text_delta":
                return _said(text=delta.get("text"))
            case "thinking_delta":
                return _said(reasoning=delta.get("thinking"))
            case "input_json_delta":
                call, part = self._blocks[event["index"]], delta.get("partial_json")
                if call is None or not part:
                    return ()
                call.given = None
                return _fragment(call, function={"arguments": part})
            case _:
                return ()

    def _block_stop(self, event: Mapping[str, Any]) -> Sequence[Output]:
        return _arguments_of(self._blocks.pop(event["index"], None))

    def _message_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        reason = (event.get("delta") or {}).get("stop_reason")
        if isinstance(reason, str) and reason:
            self._finish_reason = reason
        self._count(event.get("usage"))
        return ()

    def _message_stop(self, _: Mapping[str, Any]) -> Sequence[Output]:
        self.complete = True
        return self._end()

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
        return (
            *(output for call in self._blocks.values() for output in _arguments_of(call)),
            Completed(0, self._reason(), read_usage(self._counts), self._model),
        )

    def _reason(self) -> str:
        reason = _FINISH_REASONS.get((self._finish_reason or "").lower(), UNKNOWN)
        return "tool_calls" if reason == "stop" and self._calls else reason

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


def _arguments_of(call: _Call | None) -> Sequence[Output]:
    """The arguments of a call that has had no fragments of them."""
    if call is None or call.given is None:
        return ()
    arguments, call.given = orjson.dumps(call.given).decode(), None
    return _fragment(call, function={"arguments": arguments})


def _said(*, text: Any = "", reasoning: Any = "") -> Sequence[Output]:
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
