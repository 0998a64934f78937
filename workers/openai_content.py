"""The content of messages and deltas in OpenAI's format: text, reasoning, and the name of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_REASONING_TYPES = frozenset({"thinking", "reasoning", "reasoning_text", "thought"})
_TEXTS = ("text", "content", "output_text", "refusal", "thinking", "reasoning", "summary")
_MAX_NAME_CHARS = 512

# `obfuscation` is padding that hides the length of a token from eavesdroppers; it carries no content.
NAMED = frozenset({"choices", "model", "object", "obfuscation", "usage", "usageMetadata"})
"""The fields of a chunk that have a name in the ports, or that say nothing."""
IN_EVERY_CHUNK = NAMED | {"created", "id"}
"""The fields that the chunk after the answer repeats."""
NAMED_IN_CHOICE = frozenset({"delta", "finish_reason", "index", "logprobs", "message", "text", "usage"})
"""The fields of a choice that have a name in the ports."""


def model_name(said: Any) -> str | None:
    """The model's name as a result may carry it; None if it is not a usable name."""
    return said[:_MAX_NAME_CHARS] if isinstance(said, str) and said else None


def split_reasoning(content: Any) -> tuple[str, str]:
    """Split content (text, a list of parts, or nothing) into text and reasoning.

    Raises:
        TypeError: the content is something else.
    """
    if not content or isinstance(content, str):
        return content or "", ""
    if isinstance(content, bool):
        raise TypeError("is no text")
    if isinstance(content, int | float):
        return str(content), ""
    if isinstance(content, Mapping):
        return _split_part(content)
    parts = [split_reasoning(part) for part in content]
    return "".join(text for text, _ in parts), "".join(thoughts for _, thoughts in parts)


def _split_part(part: Mapping[str, Any]) -> tuple[str, str]:
    content = next((part[key] for key in _TEXTS if part.get(key)), None)
    text, thoughts = split_reasoning(content)
    return ("", text + thoughts) if part.get("type") in _REASONING_TYPES else (text, thoughts)
