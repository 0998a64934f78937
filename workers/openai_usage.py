"""Token counts in answers of OpenAI's form, by OpenAI's names and those of other servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.base import TokenUsage
from workers.counts import token_count

NO_USAGE = TokenUsage()


class UsageCounts:
    """The counts of one answer, which may come in several places, with every chunk, late, or as zeros."""

    __slots__ = ("_counts", "_last")

    def __init__(self) -> None:
        self._counts = NO_USAGE
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


def read_usage(usage: Any) -> TokenUsage:
    """A `usage` object, by OpenAI's names and those of others; one that is none tells nothing."""
    if not isinstance(usage, Mapping):
        return NO_USAGE
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
