"""What OpenAI's chat completions and legacy completions are asked, as many engines take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workers.base import Generation
from workers.calls import MALFORMED
from workers.http import HttpEndpoint

OURS = frozenset({"messages", "model", "prompt", "stream", "stream_options"})
"""The fields of a request that only the adapter sets."""

_MAX_ID_CHARS = 512
_ANTHROPICS = frozenset({"cache_control", "is_error"})


def chat_body(generation: Generation) -> dict[str, Any]:
    """The request for a streamed chat, without `model`, sampling parameters and `extra_body`.

    A plain prompt becomes the user's only message.
    """
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
    """The messages without what is Anthropic's alone: OpenAI refuses fields that it does not know."""
    if not any(_ANTHROPICS & message.keys() for message in messages):
        return messages
    return [
        {name: value for name, value in message.items() if name not in _ANTHROPICS} for message in messages
    ]


def completion_body(batch: Sequence[Generation]) -> dict[str, Any]:
    """The request for streamed completions, without `model`, sampling parameters and `extra_body`."""
    body: dict[str, Any] = {
        "prompt": [generation.prompt for generation in batch] if len(batch) > 1 else batch[0].prompt,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if batch[0].response_format is not None:
        body["response_format"] = batch[0].response_format
    return body


def request_id_header(name: str, generation: Generation) -> dict[str, str]:
    """The header that tells the server our id of a request; none where the id cannot stand in a header."""
    request_id = generation.request_id
    if request_id and request_id.isascii() and request_id.isprintable() and len(request_id) <= _MAX_ID_CHARS:
        return {name: request_id}
    return {}


async def model_names(endpoint: HttpEndpoint, path: str) -> tuple[str, ...]:
    """The names of the models that the server lists; none where its list has another form.

    Raises:
        WorkerError: it gave none.
    """
    answer = await endpoint.get(path)
    try:
        return tuple(str(model["id"]) for model in answer["data"])
    except MALFORMED:
        return ()
