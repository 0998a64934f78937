"""Request bodies for OpenAI's chat completions and legacy completions, as many engines accept them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.base import Generation
from workers.errors import UnsupportedParameter

OURS = frozenset({"messages", "model", "prompt", "stream", "stream_options"})
"""The fields of a request that only the adapter sets."""

_ANTHROPICS = frozenset({"cache_control", "content_blocks", "is_error", "thinking_blocks"})


def chat_body(generation: Generation) -> dict[str, Any]:
    """The request for a streamed chat, without `model`, sampling parameters and `extra_body`.

    A plain prompt becomes the user's only message.
    """
    if generation.token_ids is not None:
        raise UnsupportedParameter("prompt: token ids need plain completions; give text, or another route")
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
    """The messages without Anthropic's own fields: OpenAI refuses unknown fields."""
    if not any(_ANTHROPICS & message.keys() for message in messages):
        return messages
    return [
        {name: value for name, value in message.items() if name not in _ANTHROPICS} for message in messages
    ]


def plain_prompt(batch: Sequence[Generation]) -> Any:
    """The prompt of a plain completion: text, token ids, or a list of texts."""
    if len(batch) > 1:
        return [generation.prompt for generation in batch]
    return batch[0].prompt if batch[0].token_ids is None else batch[0].token_ids


def completion_body(batch: Sequence[Generation]) -> dict[str, Any]:
    """The request for streamed completions, without `model`, sampling parameters and `extra_body`."""
    body: dict[str, Any] = {
        "prompt": plain_prompt(batch),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if batch[0].response_format is not None:
        body["response_format"] = batch[0].response_format
    return body
