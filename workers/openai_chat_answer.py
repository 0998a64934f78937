"""Reads the stream of a chat completion in OpenAI's format.

The common case, a chunk of text in OpenAI's own format, is read first. Servers, gateways and proxies have
been seen to send all the other forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.base import Output, Piece
from workers.calls import NO_HEAD
from workers.extra_fields import unnamed
from workers.finish_reasons import UNKNOWN, ended, finish_reason, later
from workers.openai_content import IN_EVERY_CHUNK, NAMED, NAMED_IN_CHOICE, model_name, split_reasoning
from workers.openai_errors import raise_if_error, raise_if_error_in_choice
from workers.openai_usage import UsageCounts
from workers.tool_calls import Fragment, ToolCalls

_REASONING = frozenset({"reasoning_content", "reasoning", "thinking"})
_CONTENT = frozenset({"annotations", "audio", "images", "refusal"})


class ChatReader:
    """Assembles one streamed chat."""

    __slots__ = (
        "_calls",
        "_extra",
        "_model",
        "_reason",
        "_refused",
        "_said_reason",
        "_spoken",
        "_talks_on",
        "_usage",
        "head",
        "total",
    )

    complete = False  # the usage comes after the finish reason

    def __init__(self) -> None:
        self.total = 1
        self._reason: str | None = None
        self._said_reason: Any = None
        self._spoken = False
        self._talks_on = False  # some servers send a finish reason in every chunk: then it is not the end
        self._refused = False
        self._calls: ToolCalls | None = None
        self._usage = UsageCounts()
        self._model: str | None = None
        self._extra: dict[str, Any] = {}
        self.head: Mapping[str, Any] = NO_HEAD

    @property
    def missing(self) -> int:
        """1 until a finish reason has arrived and no text follows it."""
        return int(self._reason is None or self._talks_on)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """Read one event: the pieces and the end that it brings."""
        if usage := event.get("usage"):
            self._usage.add(usage)
        if not (choices := event.get("choices")):
            return self._read_aside(event)
        choice = choices[0]
        delta = choice.get("delta") if choice else None
        if delta:
            text = delta.get("content")
            if text and type(text) is str and (len(delta) == 1 or _says_no_more(delta)):
                self._spoken = True
                piece: Piece | None = Piece(0, text)
            else:
                piece = self._read_delta(delta)
        else:
            piece = self._read_whole(choice)
        if choice and (reason := choice.get("finish_reason")):
            self._talks_on = piece is not None and self._reason is not None
            self._read_reason(reason, choice, event)
        return (piece,) if piece else ()

    def finish(self) -> Sequence[Output]:
        """Return the end of the answer; without a finish reason, only if it has any content."""
        if self._reason is None:
            if not self._spoken:
                return ()
            self._reason = UNKNOWN
        self._talks_on = False
        reason = self._final_reason()
        fragments = self._calls.finish(cut=reason != "tool_calls") if self._calls else ()
        extra = {**self._extra, **self.head} if self.head else self._extra
        last = ended(0, reason, self._usage.counts, self._model, said=self._said_reason, extra=extra)
        return (Piece(0, tool_calls=fragments), last) if fragments else (last,)

    def _final_reason(self) -> str:
        """OpenAI ends a refusal, and a tool call that the request names, with "stop"."""
        reason = self._reason or UNKNOWN
        if reason in {"stop", UNKNOWN} and self._refused:
            return "content_filter"
        if reason in {"stop", UNKNOWN} and self._calls:
            return "tool_calls"
        return reason

    def _read_delta(self, delta: Mapping[str, Any]) -> Piece | None:
        text = reasoning = thoughts = ""
        called: Any = None
        extra: dict[str, Any] | None = None
        for key, value in delta.items():
            if not value:
                continue
            if key == "content":
                text, thoughts = (value, "") if type(value) is str else split_reasoning(value)
            elif key in _REASONING:
                if not reasoning:  # some servers send it under two names
                    reasoning = value if type(value) is str else "".join(split_reasoning(value))
            elif key == "tool_calls":
                called = value
            elif key == "function_call":
                called = called or value
            elif key == "refusal":
                self._refused = True
                text += "".join(split_reasoning(value))
                extra = {**(extra or {}), "refusal": text}
            elif key != "role":
                extra = {**(extra or {}), key: value}
        fragments = self._read_calls(called) if called else ()
        if not (text or reasoning or thoughts or fragments):
            if extra is None:
                return None
            self._spoken = self._spoken or not _CONTENT.isdisjoint(extra)
            return Piece(0, extra=extra)
        self._spoken = True
        return Piece(0, text, reasoning or thoughts, fragments, 0, extra)

    def _read_calls(self, called: Any) -> tuple[Fragment, ...]:
        if self._calls is None:
            self._calls = ToolCalls()
        return self._calls.read(called)

    def _read_whole(self, choice: Mapping[str, Any] | None) -> Piece | None:
        """Read a choice without a delta: a whole answer, or nothing new.

        Some servers send the whole answer again after they have streamed it.
        """
        if not choice:
            return None
        if usage := choice.get("usage"):  # Moonshot
            self._usage.add(usage)
        raise_if_error_in_choice(choice)
        if self._spoken:
            return None
        if message := choice.get("message"):
            return self._read_delta(message)
        return self._read_delta({"content": text}) if (text := choice.get("text")) else None

    def _read_reason(self, said: Any, choice: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        if (reason := finish_reason(said)) is None:
            return
        raise_if_error_in_choice(choice)
        self._reason = later(self._reason, reason)
        if self._reason == reason:
            self._said_reason = said
        self._model = model_name(event.get("model")) or self._model
        self._usage.add_elsewhere(choice, event)
        self._extra |= unnamed(event, NAMED) | unnamed(choice, NAMED_IN_CHOICE)

    def _read_aside(self, event: Mapping[str, Any]) -> Sequence[Output]:
        raise_if_error(event)
        self._usage.add_elsewhere({}, event)
        self._model = self._model or model_name(event.get("model"))
        if not event.keys() <= IN_EVERY_CHUNK:
            self._extra |= unnamed(event, NAMED)
        return ()


def _says_no_more(delta: Mapping[str, Any]) -> bool:
    """Whether the text comes with only a role or empty reasoning, as many servers send with every chunk."""
    return len(delta) == 2 and ("role" in delta or not delta.get("reasoning_content", True))
