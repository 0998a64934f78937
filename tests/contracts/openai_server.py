"""Speaks OpenAI's protocol as vLLM does, without a model: it says the words of a prompt in circles."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any

from tests.contracts.wire import DONE, FakeServer, Request, answer, stream, write_chunk

_MAX_TOKENS = 16


class OpenAIServer(FakeServer):
    """A word is a token; `generating` prompts are at work."""

    def __init__(self) -> None:
        super().__init__()
        self.generating = 0

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body is not None:
            await self._generate(request, writer)
        elif request.path.endswith("/models"):
            await answer(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})(writer)
        elif request.path == "/health":
            await answer(200, b"")(writer)
        else:
            await answer(404, {"detail": "Not Found"})(writer)

    async def _generate(self, request: Request, writer: asyncio.StreamWriter) -> None:
        body = request.body
        if not isinstance(body.get("temperature", 0), int | float):
            message = "temperature: Input should be a valid number"
            await answer(400, {"error": {"message": message, "type": "Bad Request", "code": 400}})(writer)
            return
        prompts = _prompts(body)
        self.generating += len(prompts)
        try:
            await self._say(prompts, request, writer)
        finally:
            self.generating -= len(prompts)

    async def _say(self, prompts: list[str], request: Request, writer: asyncio.StreamWriter) -> None:
        body = request.body
        if body.get("tools"):
            await stream(*_tool_call(prompts[0], body["tools"][0]["function"]["name"]), DONE)(writer)
            return
        if not body.get("stream", False):
            await answer(200, _whole(prompts, body))(writer)
            return
        await stream(end=False)(writer)
        for chunk in _chunks(prompts, body):
            if request.left.is_set():
                return
            write_chunk(writer, chunk)
            await writer.drain()
            await asyncio.sleep(0)
        write_chunk(writer, {"model": "tiny", "choices": [], "usage": _sum(prompts, body)})
        write_chunk(writer, DONE)
        writer.write(b"0\r\n\r\n")
        await writer.drain()


def _tool_call(prompt: str, name: str) -> Iterator[dict[str, Any]]:
    """A streamed call of the first tool, with the prompt as its one argument, in fragments."""
    arguments = json.dumps({"text": prompt})
    half = len(arguments) // 2
    fragments: list[dict[str, Any]] = [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}},
        {"index": 0, "function": {"arguments": arguments[:half]}},
        {"index": 0, "function": {"arguments": arguments[half:]}},
    ]
    for fragment in fragments:
        yield {"choices": [{"index": 0, "delta": {"tool_calls": [fragment]}, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}


def _whole(prompts: list[str], body: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to plain prompts that are not to be streamed."""
    choices = []
    for index, prompt in enumerate(prompts):
        said = list(islice(cycle(prompt.split()), _length(body)))
        choice = {"index": index, "finish_reason": "length", "text": "".join(f" {word}" for word in said)}
        if body.get("return_token_ids"):
            choice |= {"prompt_token_ids": [0] * len(prompt.split()), "token_ids": [0] * len(said)}
        choices.append(choice)
    return {"model": "tiny", "choices": choices, "usage": _sum(prompts, body)}


def _sum(prompts: list[str], body: Mapping[str, Any]) -> dict[str, int]:
    usages = [_usage(prompt, _length(body)) for prompt in prompts]
    return {name: sum(usage[name] for usage in usages) for name in usages[0]}


def _chunks(prompts: list[str], body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    own_usage = len(prompts) > 1 and body["stream_options"].get("continuous_usage_stats")
    words = [islice(cycle(f" {word}" for word in prompt.split()), _length(body)) for prompt in prompts]
    for number, said in enumerate(zip(*words, strict=True), start=1):
        reason = "length" if number == _length(body) else None
        for index, word in enumerate(said):
            content: dict[str, Any] = {"delta": {"content": word}} if "messages" in body else {"text": word}
            chunk: dict[str, Any] = {
                "model": "tiny",
                "choices": [{"index": index, "finish_reason": reason, **content}],
            }
            if own_usage:
                chunk["usage"] = _usage(prompts[index], number)
            yield chunk


def _prompts(body: Mapping[str, Any]) -> list[str]:
    if messages := body.get("messages"):
        return [messages[-1]["content"]]
    prompt = body["prompt"]
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _length(body: Mapping[str, Any]) -> int:
    length: int = body.get("max_tokens", _MAX_TOKENS)
    return length


def _usage(prompt: str, said: int) -> dict[str, int]:
    read = len(prompt.split())
    return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
