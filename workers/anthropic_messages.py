"""Converts chats in OpenAI's format for Anthropic's Messages API.

Source: https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from workers.base import Generation
from workers.errors import RequestRejected, UnsupportedParameter

_RESHAPED = frozenset(
    {"parallel_tool_calls", "reasoning_effort", "safety_identifier", "service_tier", "user"}
)
_TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}


def chat_fields(generation: Generation) -> dict[str, Any]:
    """The fields `system` and `messages` of a request.

    A turn without content is left out: OpenAI accepts one, this API refuses it.

    Raises:
        RequestRejected: a message has something that this API does not support.
    """
    if generation.token_ids is not None:
        raise UnsupportedParameter("prompt: Anthropic takes no token ids; give text")
    if generation.messages is None:
        return {"messages": [{"role": "user", "content": generation.prompt}]}
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for at, message in enumerate(generation.messages):
        where = f"messages.{at}"
        if message.get("role") in {"system", "developer"}:
            system += _cached(_content_blocks(message.get("content"), where), message)
            continue
        role, blocks = _turn(message, where)
        if not blocks:
            continue
        if messages and messages[-1]["role"] == role:  # results of several tools belong in one message
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})
    if not messages:
        raise RequestRejected(
            "messages: Anthropic needs one with content that is not the system's; add the user's"
        )
    return {"messages": messages, **({"system": system} if system else {})}


def tool_fields(generation: Generation) -> dict[str, Any]:
    """The fields `tools` and `tool_choice` of a request.

    Raises:
        RequestRejected: they are not in OpenAI's format.
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


def own_parameters(named: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's parameters in this API's format; some become parts of fields that `body` may already have.

    Raises:
        UnsupportedParameter: Anthropic has no such service tier.
    """
    own = {name: value for name, value in named.items() if name not in _RESHAPED}
    if isinstance(stop := own.get("stop_sequences"), str):
        own["stop_sequences"] = [stop]
    if effort := named.get("reasoning_effort"):
        own["output_config"] = {**(body.get("output_config") or {}), "effort": effort}
    if user := named.get("safety_identifier") or named.get("user"):
        own["metadata"] = {"user_id": user}
    if named.get("parallel_tool_calls") is False and body.get("tools"):
        choice = body.get("tool_choice") or {"type": "auto"}
        own["tool_choice"] = {**choice, "disable_parallel_tool_use": True}
    if (tier := named.get("service_tier")) is not None:
        own["service_tier"] = _tier(tier)
    return own


def _tier(tier: Any) -> str:
    if tier not in _TIERS:
        raise UnsupportedParameter(f"params.service_tier: is {tier!r}; Anthropic has auto and standard_only")
    return _TIERS[tier]


def _turn(message: Mapping[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    role = message.get("role")
    blocks = _content_blocks(message.get("content"), where)
    if role == "tool":
        return "user", _cached([_tool_result(message, blocks)], message)
    if role != "assistant":
        return "user", _cached(blocks, message)
    if message.get("content_blocks"):  # all blocks, in an order that the other fields cannot express
        return "assistant", _cached(_own_blocks(message, "content_blocks", where), message)
    thoughts = _own_blocks(message, "thinking_blocks", where)
    calls = [_tool_use(call, f"{where}.tool_calls") for call in message.get("tool_calls") or ()]
    return "assistant", _cached(thoughts + blocks + calls, message)


def _own_blocks(message: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """Blocks of an earlier answer, unchanged, because they carry signatures."""
    blocks = message.get(name) or []
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        raise RequestRejected(f"{where}.{name}: give the list that the answer had")
    return [dict(block) for block in blocks]


def _tool_result(message: Mapping[str, Any], blocks: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": message.get("tool_call_id") or ""}
    if blocks:
        result["content"] = blocks
    if message.get("is_error") is not None:
        result["is_error"] = message["is_error"]
    return result


def _cached(blocks: list[dict[str, Any]], marked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The blocks; if the message has a cache mark, the last block gets it."""
    if blocks and marked.get("cache_control") is not None:
        blocks[-1] = {**blocks[-1], "cache_control": marked["cache_control"]}
    return blocks


def _content_blocks(content: Any, where: str) -> list[dict[str, Any]]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content.strip() else []
    if not isinstance(content, Sequence):
        raise RequestRejected(f"{where}.content: give text, or a list of parts")
    blocks = [_block(part, f"{where}.content.{at}") for at, part in enumerate(content)]
    return [block for block in blocks if not _is_blank(block)]


def _is_blank(block: Mapping[str, Any]) -> bool:
    """Whether the API refuses this text: it is empty, or only white space."""
    text = block.get("text")
    return block.get("type") == "text" and isinstance(text, str) and not text.strip()


def _block(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise RequestRejected(f"{where}: give an object with a type")
    if part.get("type") == "image_url":
        image = {"type": "image", "source": _image_source(part.get("image_url"), where)}
        return _cached([image], part)[0]
    if part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal") or ""}
    return dict(part)  # text is the same in both APIs; Anthropic's own blocks pass unchanged


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
        made = {
            "type": "tool_use",
            "id": call["id"],
            "name": function["name"],
            "input": _arguments(function.get("arguments")),
        }
        return _cached([made], call)[0]
    except (AttributeError, KeyError, TypeError, ValueError):
        raise RequestRejected(
            f"{where}: give id, function.name, and function.arguments as the text of a JSON object"
        ) from None


def _arguments(arguments: Any) -> Mapping[str, Any]:
    read = orjson.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    if not isinstance(read, Mapping):
        raise TypeError("arguments are no object")
    return read


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        return dict(tool)  # one of Anthropic's own
    if not function.get("name"):
        raise RequestRejected(f"{where}.function.name: is missing")
    # Fields that OpenAI's tools do not have, such as `cache_control`, are Anthropic's.
    own = {name: value for name, value in tool.items() if name not in {"type", "function"}}
    made = {
        **own,
        **{name: value for name, value in function.items() if name != "parameters"},
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return {name: value for name, value in made.items() if value is not None and value != ""}


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
