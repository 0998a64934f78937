"""Turns the event stream of Anthropic's Messages API into outputs.

Source: https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from workers.anthropic_blocks import ContentBlocks
from workers.base import Output, Piece, TokenUsage
from workers.calls import NO_HEAD, ReportedError
from workers.counts import token_count
from workers.extra_fields import unnamed
from workers.finish_reasons import UNKNOWN, ended, finish_reason

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)
_COUNTED = frozenset({*_COUNTS, "output_tokens_details"})
_PLAIN_BLOCKS = frozenset({"text", "tool_use"})
_NAMED = frozenset({"content", "delta", "model", "role", "stop_reason", "type", "usage"})
_NAMED_IN_CALL = frozenset({"id", "input", "name", "type"})


class _Call:
    """A tool call while it streams. `given`: the input that its block started with, None once passed on."""

    __slots__ = ("given", "index")

    def __init__(self, index: int, given: Any) -> None:
        self.index = index
        self.given: Mapping[str, Any] | None = given if isinstance(given, Mapping) else {}


class MessageReader:
    """Assembles one streamed message; complete once `message_stop` has arrived.

    Tool calls and thinking come out as OpenAI's fragments and reasoning; `index` counts the tool calls alone.
    Each block of thinking follows its reasoning, whole and with its signature, as `thinking_blocks`. Where
    OpenAI's form would lose a block or the order of blocks, all of them come at the end, as `content_blocks`.
    Such blocks are looked for in every answer, in front of plain text only if the request `has_more` than
    that: tools, or fields of Anthropic's own. Unknown kinds of events are ignored.
    """

    __slots__ = (
        "_blocks",
        "_calls",
        "_content",
        "_counts",
        "_extra",
        "_model",
        "_readers",
        "_said",
        "_spoken",
        "_usage",
        "complete",
        "head",
        "total",
    )

    def __init__(self, *, has_more: bool = False) -> None:
        self.total = 1
        self.complete = False
        self.head: Mapping[str, Any] = NO_HEAD
        self._content: ContentBlocks | None = None
        self._extra: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._said: Any = None  # the stop reason in the server's own word
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

        if has_more:
            self._keep_content()

    @property
    def missing(self) -> int:
        """1 until the end, or at least its reason, has arrived."""
        return int(not self.complete and finish_reason(self._said) is None)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """Read one event; unknown kinds are ignored."""
        reader = self._readers.get(event["type"])
        outputs = reader(event) if reader else ()
        self._spoken = self._spoken or bool(outputs)
        return outputs

    def finish(self) -> Sequence[Output]:
        """Return the end of an answer without `message_stop`, if it has a reason or any content."""
        if self.complete or (self.missing and not self._spoken):
            return ()
        return self._end()

    def _message_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        message = event.get("message") or {}
        model = message.get("model")
        self._model = model if isinstance(model, str) else None
        self._extra |= unnamed(message, _NAMED)
        self._count(message.get("usage"))
        return ()

    def _keep_content(self) -> ContentBlocks:
        """Keep the blocks from now on."""
        if self._content is None:
            self._content = ContentBlocks()
            self._readers["content_block_delta"] = self._kept_delta
        return self._content

    def _kept_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        if self._content is not None:
            self._content.add(event["index"], event["delta"] or {})
        return self._block_delta(event)

    def _block_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        at, block = event["index"], event["content_block"]
        kind = block.get("type")
        if self._content is not None or kind not in _PLAIN_BLOCKS:
            self._keep_content().start(at, block)
        if kind == "tool_use":
            call = self._blocks[at] = _Call(len(self._calls), block.get("input"))
            self._calls.append(call)
            function = {"name": block["name"], "arguments": ""}
            more = unnamed(block, _NAMED_IN_CALL)
            return _fragment(call, id=block["id"], type="function", function=function, **more)
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
        at = event["index"]
        if self._content is not None and (thought := self._content.stop(at)):
            return (Piece(0, extra={"thinking_blocks": [thought]}),)
        call = self._blocks.get(at)
        return _input_of(call) if call is not None and call.given else ()

    def _message_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        said = event.get("delta") or {}
        self._said = said.get("stop_reason") or self._said
        self._extra |= unnamed(said, _NAMED) | unnamed(event, _NAMED)
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
        # A call without arguments has {}; if the answer was cut off, the arguments may be missing.
        left = [call for call in self._calls if call.given or (call.given is not None and reason != "length")]
        inputs = [output for call in left for output in _input_of(call)]
        blocks = self._content.unlike_openais() if self._content is not None else ()
        pieces = [Piece(0, extra={"content_blocks": list(blocks)})] if blocks else []
        usage = read_usage(self._counts, self._usage)
        extra = {**self._extra, **self.head}
        return (*inputs, *pieces, ended(0, reason, usage, self._model, said=self._said, extra=extra))

    def _count(self, usage: Any) -> None:
        """Keep the counts that are set: they come twice, and either may be zero or null."""
        details = usage.get("output_tokens_details") if isinstance(usage, Mapping) else None
        found = {name: token_count(usage, name) for name in _COUNTS}
        found["thinking_tokens"] = token_count(details, "thinking_tokens")
        if isinstance(usage, Mapping) and not usage.keys() <= _COUNTED:
            self._usage |= {name: value for name, value in usage.items() if value and name not in _COUNTED}
        for name, count in found.items():
            if count or (count == 0 and name not in self._counts):
                self._counts[name] = count


def _fragment(call: _Call, **fragment: Any) -> Sequence[Output]:
    return (Piece(0, tool_calls=({"index": call.index, **fragment},)),)


def _input_of(call: _Call) -> Sequence[Output]:
    """The input that came with the start of a call's block, if no fragments followed."""
    arguments, call.given = orjson.dumps(call.given).decode(), None
    return _fragment(call, function={"arguments": arguments})


def _text(*, text: Any = "", reasoning: Any = "") -> Sequence[Output]:
    text, reasoning = text or "", reasoning or ""
    if not (isinstance(text, str) and isinstance(reasoning, str)):
        raise TypeError("a delta is no text")
    return (Piece(0, text, reasoning),) if text or reasoning else ()


def read_usage(counts: Mapping[str, int], extra: Mapping[str, Any]) -> TokenUsage:
    """Read Anthropic's counts, which have cached input tokens apart from the others."""
    cached, plain = counts.get("cache_read_input_tokens"), counts.get("input_tokens")
    stored = counts.get("cache_creation_input_tokens")
    return TokenUsage(
        input_tokens=None if plain is None else plain + (cached or 0) + (stored or 0),
        output_tokens=counts.get("output_tokens"),
        cached_tokens=cached,
        reasoning_tokens=counts.get("thinking_tokens"),
        cache_write_tokens=stored,
        extra=extra or None,
    )
