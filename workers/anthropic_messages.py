"""From a chat in OpenAI's shape to Anthropic's Messages API, and from its event stream back.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from workers.base import Completed, Generation, Output, Piece, TokenUsage
from workers.errors import RequestRejected

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def chat_fields(generation: Generation) -> dict[str, Any]:
    """The fields `system` and `messages` of a request.

    Raises:
        RequestRejected: a message has what this API does not know.
    """
    if generation.messages is None:
        return {"messages": [{"role": "user", "content": generation.prompt}]}
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for at, message in enumerate(generation.messages):
        where = f"messages.{at}"
        if message.get("role") in {"system", "developer"}:
            system += _content_blocks(message.get("content"), where)
            continue
        role, blocks = _turn(message, where)
        if messages and messages[-1]["role"] == role:  # results of several tools belong into one message
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    if not messages:
        raise RequestRejected("messages: Anthropic needs one that is not the system's; add the user's")
    return {"messages": messages, **({"system": system} if system else {})}


def tool_fields(generation: Generation) -> dict[str, Any]:
    """The fields `tools` and `tool_choice` of a request.

    Raises:
        RequestRejected: they are not in OpenAI's shape.
    """
    fields: dict[str, Any] = {}
    if generation.tools:
        fields["tools"] = [_tool(tool, f"tools.{at}") for at, tool in enumerate(generation.tools)]
    if generation.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(generation.tool_choice)
    return fields


def format_fields(response_format: Mapping[str, Any] | None) -> dict[str, Any]:
    """The field `output_config` of a request.

    Raises:
        RequestRejected: it asks for something other than a JSON schema.
    """
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return {}
    schema = (response_format.get("json_schema") or {}).get("schema")
    if kind != "json_schema" or not isinstance(schema, Mapping):
        raise RequestRejected(
            f"response_format.type: is {kind!r}; Anthropic takes text, and json_schema with a schema"
        )
    return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}


def _turn(message: Mapping[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    role = message.get("role")
    if role == "tool":
        result = {
            "type": "tool_result",
            "tool_use_id": message.get("tool_call_id") or "",
            "content": _content_blocks(message.get("content"), where),
        }
        return "user", [result]
    blocks = _content_blocks(message.get("content"), where)
    if role == "assistant":
        calls = message.get("tool_calls") or ()
        return "assistant", blocks + [_tool_use(call, f"{where}.tool_calls") for call in calls]
    return "user", blocks


def _content_blocks(content: Any, where: str) -> list[dict[str, Any]]:
    if content is None or content == "":  # the API refuses empty text
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise RequestRejected(f"{where}.content: give text, or a list of parts")
    return [_block(part, f"{where}.content.{at}") for at, part in enumerate(content)]


def _block(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise RequestRejected(f"{where}: give an object with a type")
    if part.get("type") == "image_url":
        return {"type": "image", "source": _image_source(part.get("image_url"), where)}
    return dict(part)  # text is the same in both; what is Anthropic's own goes as it is


def _image_source(image: Any, where: str) -> dict[str, str]:
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str):
        raise RequestRejected(f"{where}.image_url.url: is missing")
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, comma, data = url.removeprefix("data:").partition(",")
    if not comma or not head.endswith(";base64"):
        raise RequestRejected(f"{where}.image_url.url: a data URL has to be in base64")
    return {"type": "base64", "media_type": head.removesuffix(";base64"), "data": data}


def _tool_use(call: Any, where: str) -> dict[str, Any]:
    try:
        function = call["function"]
        arguments = orjson.loads(function.get("arguments") or "{}")
        return {"type": "tool_use", "id": call["id"], "name": function["name"], "input": arguments}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RequestRejected(
            f"{where}: give id, function.name, and function.arguments as the text of a JSON object"
        ) from None


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        return dict(tool)  # one of Anthropic's own
    if not function.get("name"):
        raise RequestRejected(f"{where}.function.name: is missing")
    made = {
        "name": function["name"],
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    if function.get("description"):
        made["description"] = function["description"]
    if function.get("strict") is not None:
        made["strict"] = function["strict"]
    return made


def _tool_choice(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        named = {"auto": "auto", "none": "none", "required": "any"}
        if choice not in named:
            raise RequestRejected(f"tool_choice: is {choice!r}; give auto, none, required or a function")
        return {"type": named[choice]}
    if choice.get("type") != "function":
        return dict(choice)
    name = (choice.get("function") or {}).get("name")
    if not name:
        raise RequestRejected("tool_choice.function.name: is missing")
    return {"type": "tool", "name": name}


class MessageReader:
    """Puts one streamed message together; complete when `message_stop` has come.

    Tool calls and thinking come out as OpenAI's fragments and reasoning; `index` counts the tool calls alone.
    """

    __slots__ = ("_counts", "_finish_reason", "_model", "_readers", "_tools", "complete", "total")

    def __init__(self) -> None:
        self.total = 1
        self.complete = False
        self._finish_reason: str | None = None
        self._model: str | None = None
        self._counts: dict[str, Any] = {}
        self._tools: dict[int, int] = {}  # content block -> tool call
        self._readers: dict[str, Callable[[Mapping[str, Any]], Sequence[Output]]] = {
            "message_start": self._message_start,
            "content_block_start": self._block_start,
            "content_block_delta": self._block_delta,
            "message_delta": self._message_delta,
            "message_stop": self._message_stop,
        }

    @property
    def missing(self) -> int:
        """1 until the end has come."""
        return int(not self.complete)

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        """What one event says; kinds that are not known say nothing."""
        reader = self._readers.get(event["type"])
        return reader(event) if reader else ()

    def finish(self) -> Sequence[Output]:
        """Nothing: the end has come with `message_stop`."""
        return ()

    def _message_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        message = event["message"]
        self._model = message.get("model")
        self._counts.update(message.get("usage") or {})
        return ()

    def _block_start(self, event: Mapping[str, Any]) -> Sequence[Output]:
        block = event["content_block"]
        if block["type"] == "tool_use":
            self._tools[event["index"]] = len(self._tools)
            arguments = orjson.dumps(block["input"]).decode() if block.get("input") else ""
            function = {"name": block["name"], "arguments": arguments}
            return self._tool_piece(event["index"], id=block["id"], type="function", function=function)
        return self._said(text=block.get("text") or "", reasoning=block.get("thinking") or "")

    def _block_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        delta = event["delta"]
        if delta["type"] == "input_json_delta":
            if not delta["partial_json"]:
                return ()
            return self._tool_piece(event["index"], function={"arguments": delta["partial_json"]})
        return self._said(text=delta.get("text") or "", reasoning=delta.get("thinking") or "")

    def _message_delta(self, event: Mapping[str, Any]) -> Sequence[Output]:
        self._finish_reason = event["delta"].get("stop_reason") or self._finish_reason
        counts = event.get("usage") or {}
        self._counts.update({name: count for name, count in counts.items() if count is not None})
        return ()

    def _message_stop(self, event: Mapping[str, Any]) -> Sequence[Output]:
        self.complete = True
        reason = _FINISH_REASONS.get(self._finish_reason or "", "stop")
        return (Completed(0, reason, read_usage(self._counts), self._model),)

    def _tool_piece(self, block: int, **fragment: Any) -> Sequence[Output]:
        return (Piece(0, tool_calls=({"index": self._tools[block], **fragment},)),)

    @staticmethod
    def _said(*, text: Any, reasoning: Any) -> Sequence[Output]:
        if not (isinstance(text, str) and isinstance(reasoning, str)):
            raise TypeError("a delta is no text")
        return (Piece(0, text, reasoning),) if text or reasoning else ()


def read_usage(counts: Mapping[str, Any]) -> TokenUsage:
    """Anthropic's `usage`. It counts what the cache gave and took apart from the rest of the input."""
    cached = _count(counts, "cache_read_input_tokens")
    plain = _count(counts, "input_tokens")
    stored = _count(counts, "cache_creation_input_tokens") or 0
    details = counts.get("output_tokens_details")
    return TokenUsage(
        input_tokens=None if plain is None else plain + (cached or 0) + stored,
        output_tokens=_count(counts, "output_tokens"),
        cached_tokens=cached,
        reasoning_tokens=_count(details, "thinking_tokens") if isinstance(details, Mapping) else None,
    )


def _count(counts: Mapping[str, Any], name: str) -> int | None:
    value = counts.get(name)
    return value if isinstance(value, int) else None
