"""Reading chat messages in OpenAI's shape, whose content is text, a list of parts, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SYSTEM_ROLES = frozenset({"system", "developer"})


def text_of(content: object) -> str:
    """Return the text of a message's content, ignoring parts that are not text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "\n".join(part["text"] for part in content if is_text_part(part))


def is_text_part(part: object) -> bool:
    """Whether a content part is `{"type": "text", "text": …}`."""
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def last_user_index(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the index of the user's last message; None if there is none."""
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].get("role") == "user":
            return index
    return None


def question_of(prompt: str | None, messages: Sequence[Mapping[str, Any]] | None) -> str:
    """Return the question: the prompt, or the text of the user's last message."""
    if prompt is not None:
        return prompt
    index = last_user_index(messages or ())
    return "" if index is None else text_of((messages or ())[index].get("content"))
