"""What OpenAI's chat completions and legacy completions answer, as many engines say it.

The common case is a chunk of text in OpenAI's own form, and is read first. All others are forms that servers,
gateways and proxies have been seen to send.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.base import Output, Piece, TokenUsage
from workers.calls import ReportedError
from workers.counts import token_count
from workers.finish_reasons import UNKNOWN, ended, finish_reason, later
from workers.refusals import refusal_in_answer
from workers.tool_calls import Fragment, ToolCalls

_REASONING = frozenset({"reasoning_content", "reasoning", "thinking"})
_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_text", "thought"})
_TEXTS = ("text", "content", "output_text", "refusal", "thinking", "reasoning", "summary")
_CHUNK_FIELDS = frozenset({"choices", "object", "usage"})
_SUCCESSES = frozenset({"0", "200", "ok", "success"})
_ERROR_CODES = ("code", "error_code", "status_code")
_ERROR_WORDS = ("message", "msg", "error_msg", "detail", "text")
_MAX_NAME_CHARS = 512
_NO_USAGE = TokenUsage()


class _Usage:
    """The counts of one answer, which may come in several places, with every chunk, late, or as zeros."""

    __slots__ = ("_counts", "_last")

    def __init__(self) -> None:
        self._counts = _NO_USAGE
        self._last: Mapping[str, Any] = {}

    def add(self, usage: Any) -> None:
        """Take in a `usage` object. Where it comes with every chunk, all but the last need not be read."""
        if not isinstance(usage, dict):
            return
        is_like_the_last = len(usage) == len(self._last)
        if not (is_like_the_last and usage.get("prompt_tokens") and usage.get("completion_tokens")):
            self._counts = self.counts
        self._last = usage

    def add_elsewhere(self, choice: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Take in what is in the places that others than OpenAI use: Moonshot, Groq, Gemini."""
        if usage := choice.get("usage"):
            self.add(usage)
        groq = event.get("x_groq")
        if isinstance(groq, Mapping) and groq.get("usage"):
            self.add(groq["usage"])
        if usage := event.get("usageMetadata"):
            self.add(usage)

    @property
    def counts(self) -> TokenUsage:
        """The counts: later ones are better, unless they are zero or missing."""
        known, more = self._counts, read_usage(self._last)
        return TokenUsage(*(new if new or old is None else old for old, new in zip(known, more, strict=True)))


class ChatReader:
    """Puts one streamed chat together."""

    __slots__ = (
        "_calls",
        "_model",
        "_reason",
        "_refused",
        "_said_reason",
        "_spoken",
        "_talks_on",
        "_usage",
        "total",
    )

    complete = False  # the usage comes after the finish reason

    def __init__(self) -> None:
        self.total = 1
        self._reason: str | None = None
        self._said_reason: Any = None
        self._spoken = False
        self._talks_on = False  # some have a finish reason in every chunk: then it is not the end
        self._refused = False
        self._calls: ToolCalls | None = None
        self._usage = _Usage()
        self._model: str | None = None

    @property
    def missing(self) -> int:
        """1 until a finish reason has come, and no more text."""
        return int(self._reason is None or self._talks_on)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says."""
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
        """The end of the answer; of one without a finish reason, if anything was said."""
        if self._reason is None:
            if not self._spoken:
                return ()
            self._reason = UNKNOWN
        self._talks_on = False
        reason = self._final_reason()
        fragments = self._calls.finish(cut=reason != "tool_calls") if self._calls else ()
        last = ended(0, reason, self._usage.counts, self._model, said=self._said_reason)
        return (Piece(0, tool_calls=fragments), last) if fragments else (last,)

    def _final_reason(self) -> str:
        """A refusal, and calls that were asked for by name, end with "stop" at OpenAI."""
        reason = self._reason or UNKNOWN
        if reason in {"stop", UNKNOWN} and self._refused:
            return "content_filter"
        if reason in {"stop", UNKNOWN} and self._calls:
            return "tool_calls"
        return reason

    def _read_delta(self, delta: Mapping[str, Any]) -> Piece | None:
        text = reasoning = thoughts = ""
        called: Any = None
        for key, value in delta.items():
            if not value:
                continue
            if key == "content":
                text, thoughts = (value, "") if type(value) is str else _said(value)
            elif key in _REASONING:
                if not reasoning:  # some send it under two names
                    reasoning = value if type(value) is str else "".join(_said(value))
            elif key == "tool_calls":
                called = value
            elif key == "function_call":
                called = called or value
            elif key == "refusal":
                self._refused = True
                text += "".join(_said(value))
        fragments = self._read_calls(called) if called else ()
        if not (text or reasoning or thoughts or fragments):
            return None
        self._spoken = True
        return Piece(0, text, reasoning or thoughts, fragments)

    def _read_calls(self, called: Any) -> tuple[Fragment, ...]:
        if self._calls is None:
            self._calls = ToolCalls()
        return self._calls.read(called)

    def _read_whole(self, choice: Mapping[str, Any] | None) -> Piece | None:
        """A choice without a delta: an answer in one piece, or one that says nothing more.

        Some send the whole answer again when they have streamed it.
        """
        if not choice:
            return None
        if usage := choice.get("usage"):  # Moonshot
            self._usage.add(usage)
        _raise_error_in(choice)
        if self._spoken:
            return None
        if message := choice.get("message"):
            return self._read_delta(message)
        return self._read_delta({"content": text}) if (text := choice.get("text")) else None

    def _read_reason(self, said: Any, choice: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        if (reason := finish_reason(said)) is None:
            return
        _raise_error_in(choice)
        self._reason = later(self._reason, reason)
        if self._reason == reason:
            self._said_reason = said
        self._model = model_name(event.get("model")) or self._model
        self._usage.add_elsewhere(choice, event)

    def _read_aside(self, event: Mapping[str, Any]) -> Sequence[Output]:
        raise_if_error(event)
        self._usage.add_elsewhere({}, event)
        self._model = self._model or model_name(event.get("model"))
        return ()


class CompletionReader:
    """Takes the streamed answers to one or several plain prompts apart.

    The usage of a single prompt comes last. In a list it comes for each member with its finish reason, where
    the server gives it: the sum for the whole list tells nothing.
    """

    __slots__ = ("_model", "_reason", "_said_reason", "_spoken", "_usage", "_waiting", "total")

    complete = False

    def __init__(self, total: int) -> None:
        self.total = total
        self._waiting = set(range(total))
        self._spoken: set[int] = set()
        self._reason: str | None = None  # a single prompt's
        self._said_reason: Any = None
        self._model: str | None = None
        self._usage = _Usage()

    @property
    def missing(self) -> int:
        """The prompts without a finish reason."""
        return len(self._waiting)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says."""
        if self.total == 1 and (usage := event.get("usage")):
            self._usage.add(usage)
        if not (choices := event.get("choices")):
            return self._read_aside(event)
        outputs: list[Output] = []
        for choice in choices:
            member = choice.get("index")
            text = choice.get("text")
            if type(text) is not str:
                text = _text_elsewhere(choice, text)
            if member not in self._waiting:
                member = self._member(member, text)
            if text:
                self._spoken.add(member)
                outputs.append(Piece(member, text))
            if reason := choice.get("finish_reason"):
                talks_on = bool(text) and self._reason is not None
                self._read_reason(member, reason, choice, event, outputs)
                if talks_on:  # some have a finish reason in every chunk: then it is not the end
                    self._waiting.add(member)
        return outputs

    def finish(self) -> Sequence[Output]:
        """The end of a single prompt; the ends of those that have said something and have none."""
        if self.total == 1:
            if self._reason is None and not self._spoken:
                return ()
            self._waiting.clear()
            return (
                ended(0, self._reason or UNKNOWN, self._usage.counts, self._model, said=self._said_reason),
            )
        unended = sorted(self._waiting & self._spoken)
        self._waiting.difference_update(unended)
        return [ended(member, UNKNOWN, _NO_USAGE, self._model) for member in unended]

    def _member(self, said: Any, text: Any) -> int:
        """The prompt of an index that is no waiting one's: it has ended, or the server counts otherwise."""
        if isinstance(said, str) and said.isascii() and said.isdigit():
            said = int(said[:9])
        if said is None and self.total == 1:
            return 0
        if not isinstance(said, int) or not 0 <= said < self.total:
            raise ValueError("there is no such member")
        if text and self.total > 1 and said not in self._waiting:
            raise ValueError("it has ended before")
        return said

    def _read_reason(
        self,
        member: int,
        said: Any,
        choice: Mapping[str, Any],
        event: Mapping[str, Any],
        outputs: list[Output],
    ) -> None:
        if (reason := finish_reason(said)) is None:
            return
        _raise_error_in(choice)
        self._model = model_name(event.get("model")) or self._model
        if self.total == 1:
            self._reason = later(self._reason, reason)
            if self._reason == reason:
                self._said_reason = said
            self._usage.add_elsewhere(choice, event)
            self._waiting.clear()
        elif member in self._waiting:
            self._waiting.remove(member)
            usage = read_usage(choice.get("usage") or event.get("usage"))
            outputs.append(ended(member, reason, usage, self._model, said=said))

    def _read_aside(self, event: Mapping[str, Any]) -> Sequence[Output]:
        raise_if_error(event)
        if self.total == 1:
            self._usage.add_elsewhere({}, event)
        return ()


def read_usage(usage: Any) -> TokenUsage:
    """A `usage` object, by OpenAI's names and those of others; one that is none tells nothing."""
    if not isinstance(usage, Mapping):
        return _NO_USAGE
    read = token_count(usage, "prompt_tokens")
    said = token_count(usage, "completion_tokens")
    cached = token_count(usage.get("prompt_tokens_details"), "cached_tokens")
    reasoning = token_count(usage.get("completion_tokens_details"), "reasoning_tokens")
    if read is None and said is None:
        return _usage_by_other_names(usage)
    if cached is None:  # DeepSeek; Moonshot
        cached = _first_count(usage, "prompt_cache_hit_tokens", "cached_tokens")
    return TokenUsage(read, said, cached, reasoning)


def _usage_by_other_names(usage: Mapping[str, Any]) -> TokenUsage:
    """OpenAI's Responses and Anthropic; Gemini; Ollama; llama-server."""
    details = usage.get("input_tokens_details")
    cached = token_count(details, "cached_tokens")
    if cached is None:
        cached = _first_count(usage, "cachedContentTokenCount", "cache_n")
    return TokenUsage(
        _first_count(usage, "input_tokens", "promptTokenCount", "prompt_eval_count", "prompt_n"),
        _first_count(usage, "output_tokens", "candidatesTokenCount", "eval_count", "predicted_n"),
        cached,
        _first_count(usage, "reasoning_tokens", "thoughtsTokenCount"),
    )


def _first_count(counts: Mapping[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := token_count(counts, name)) is not None), None)


def _text_elsewhere(choice: Mapping[str, Any], text: Any) -> str:
    """The text of a legacy completion that comes in parts, or in the form of a chat's."""
    if text is None and (said := choice.get("delta") or choice.get("message")):
        text = said.get("content")
    return "".join(_said(text))


def model_name(said: Any) -> str | None:
    """A name that may stand in a result; None where it is none."""
    return said[:_MAX_NAME_CHARS] if isinstance(said, str) and said else None


def raise_if_error(event: Mapping[str, Any]) -> None:
    """Find the error in an event that has no answer.

    Raises:
        ReportedError: there is one.
    """
    if event.get("object") == "error" or event.get("errors") or event.get("success") is False:
        raise ReportedError(event)
    base, groq = event.get("base_resp"), event.get("x_groq")  # MiniMax; Groq
    if isinstance(base, Mapping) and base.get("status_code"):
        raise ReportedError(event)
    if isinstance(groq, Mapping) and groq.get("error"):
        raise ReportedError(groq)
    has_words = any(isinstance(event.get(key), str) and event[key] for key in _ERROR_WORDS)
    if not has_words or not event.keys().isdisjoint(_CHUNK_FIELDS):
        return
    codes = [code for key in _ERROR_CODES if (code := event.get(key)) is not None]
    if not any(isinstance(code, str | int) and str(code).lower() in _SUCCESSES for code in codes):
        raise ReportedError(event)


def _raise_error_in(choice: Mapping[str, Any]) -> None:
    """Find the error that OpenRouter puts into the choice.

    Raises:
        ReportedError: there is one.
    """
    if choice.get("error") and refusal_in_answer(choice) is not None:
        raise ReportedError({"error": choice["error"]})


def _says_no_more(delta: Mapping[str, Any]) -> bool:
    """Whether there is only a role, or no reasoning, beside the text, as many send with every chunk."""
    return len(delta) == 2 and ("role" in delta or not delta.get("reasoning_content", True))


def _said(content: Any) -> tuple[str, str]:
    """The text and the thoughts in some content: text, a list of parts, or nothing.

    Raises:
        TypeError: it is something else.
    """
    if not content or isinstance(content, str):
        return content or "", ""
    if isinstance(content, bool):
        raise TypeError("is no text")
    if isinstance(content, int | float):
        return str(content), ""
    if isinstance(content, Mapping):
        return _said_by_part(content)
    parts = [_said(part) for part in content]
    return "".join(text for text, _ in parts), "".join(thoughts for _, thoughts in parts)


def _said_by_part(part: Mapping[str, Any]) -> tuple[str, str]:
    content = next((part[key] for key in _TEXTS if part.get(key)), None)
    text, thoughts = _said(content)
    return ("", text + thoughts) if part.get("type") in _THOUGHTS else (text, thoughts)
