"""Token counts in answers in OpenAI's format, under OpenAI's names and those of other servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.base import TokenUsage
from workers.counts import token_count

NO_USAGE = TokenUsage()

_PLAIN = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_COUNTED = _PLAIN | {
    *(
        "input_tokens",
        "output_tokens",
        "cached_tokens",
        "prompt_cache_hit_tokens",
        "reasoning_tokens",
        "cost",
    ),
    *("promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount"),
    *("cachedContentTokenCount", "prompt_eval_count", "eval_count", "prompt_n", "predicted_n", "cache_n"),
}
_COUNTED_IN_DETAILS = frozenset({"audio_tokens", "cache_write_tokens", "cached_tokens", "reasoning_tokens"})
_MOST_COST = 1e9


class UsageCounts:
    """The counts of one answer, which may be in several places, in every chunk, late, or zero."""

    __slots__ = ("_counts", "_last")

    def __init__(self) -> None:
        self._counts = NO_USAGE
        self._last: Mapping[str, Any] = {}

    def add(self, usage: Any) -> None:
        """Add a `usage` object. If every chunk has one, only the last is read."""
        if not isinstance(usage, dict):
            return
        is_like_the_last = len(usage) == len(self._last)
        if not (is_like_the_last and usage.get("prompt_tokens") and usage.get("completion_tokens")):
            self._counts = self.counts
        self._last = usage

    def add_elsewhere(self, choice: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        """Add the counts from the places that Moonshot, Groq and Gemini use."""
        if usage := choice.get("usage"):
            self.add(usage)
        groq = event.get("x_groq")
        if isinstance(groq, Mapping) and groq.get("usage"):
            self.add(groq["usage"])
        if usage := event.get("usageMetadata"):
            self.add(usage)

    @property
    def counts(self) -> TokenUsage:
        """The counts. Later ones replace earlier ones, unless they are zero or missing."""
        known, more = self._counts, read_usage(self._last)
        if known is NO_USAGE:
            return more
        later = {name: new for name, new in more._asdict().items() if new or getattr(known, name) is None}
        return known._replace(**later)


def read_usage(usage: Any) -> TokenUsage:
    """Read a `usage` object, under OpenAI's names or others; anything else has no counts."""
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
    counts = TokenUsage(read, said, cached, reasoning)
    return counts if usage.keys() <= _PLAIN else _with_details(counts, usage)


def _usage_by_other_names(usage: Mapping[str, Any]) -> TokenUsage:
    """OpenAI's Responses and Anthropic; Gemini; Ollama; llama-server."""
    details = usage.get("input_tokens_details")
    cached = token_count(details, "cached_tokens")
    if cached is None:
        cached = _first_count(usage, "cachedContentTokenCount", "cache_n")
    counts = TokenUsage(
        _first_count(usage, "input_tokens", "promptTokenCount", "prompt_eval_count", "prompt_n"),
        _first_count(usage, "output_tokens", "candidatesTokenCount", "eval_count", "predicted_n"),
        cached,
        _first_count(usage, "reasoning_tokens", "thoughtsTokenCount"),
    )
    return _with_details(counts, usage)


def _with_details(counts: TokenUsage, usage: Mapping[str, Any]) -> TokenUsage:
    """Add what few answers have: cache writes (OpenRouter), audio, cost, and the other fields unchanged."""
    read = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    said = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
    extra = {
        name: rest for name, value in usage.items() if name not in _COUNTED and (rest := _rest(name, value))
    }
    return counts._replace(
        cache_write_tokens=token_count(read, "cache_write_tokens"),
        input_audio_tokens=token_count(read, "audio_tokens"),
        output_audio_tokens=token_count(said, "audio_tokens"),
        cost=cost(usage.get("cost")),
        extra=extra or None,
    )


def _rest(name: str, value: Any) -> Any:
    """The fields that have no name in `TokenUsage`."""
    if not name.endswith("_details"):
        return value or None
    if not isinstance(value, Mapping):
        return None
    return {name: count for name, count in value.items() if count and name not in _COUNTED_IN_DETAILS}


def cost(said: Any) -> float | None:
    """The cost, if it is plausible."""
    is_number = isinstance(said, int | float) and not isinstance(said, bool)
    return float(said) if is_number and 0 <= said <= _MOST_COST else None


def _first_count(counts: Mapping[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := token_count(counts, name)) is not None), None)
