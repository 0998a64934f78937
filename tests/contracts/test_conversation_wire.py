"""A conversation of five turns with tools, each assistant message sent back as the result had it.

The wires have the forms of OpenAI's and Anthropic's; what later requests carry is compared with what the
answers had.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import orjson

from scheduler.model import JobResult, PromptRequest
from scheduler.payload import decode, encode, payload_of
from scheduler.stages.base import PromptContext
from scheduler.stages.stream import build_result
from tests.contracts.wire import DONE, FakeServer, outputs_of, stream
from workers import EndpointConfig, Generation, GenerationWorker, Piece
from workers.anthropic import AnthropicWorker
from workers.openai import OpenAIWorker

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("sky", "sea")
]


class Conversation:
    """The messages of one conversation, and the results of its turns."""

    def __init__(self, server: FakeServer, worker: GenerationWorker) -> None:
        self.server = server
        self.worker = worker
        self.messages: list[dict[str, Any]] = [{"role": "user", "content": "What colour are sky and sea?"}]

    async def turn(self, *events: Any) -> JobResult:
        """Ask with all messages so far, as a client and a worker process do; append the answer."""
        request = PromptRequest.parse(messages=self.messages, tools=TOOLS)
        payload = decode(encode(payload_of(request)))
        generation = Generation("m", messages=tuple(payload["messages"]), tools=tuple(payload["tools"]))
        self.server.script = stream(*events)
        *pieces, end = await outputs_of(self.worker, generation)
        result = result_of(pieces, end)
        self.messages.append(result.message)
        return result

    def answer(self, *results: str) -> None:
        """Append the results of the last message's tool calls."""
        calls = self.messages[-1]["tool_calls"]
        for call, content in zip(calls, results, strict=True):
            self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})


def result_of(pieces: Sequence[Piece], end: Any) -> JobResult:
    context = PromptContext(
        job_id="j",
        attempt=1,
        route="r",
        tenant="default",
        priority=5,
        prompt=None,
        messages=[],
        params={},
        request={},
    )
    for piece in pieces:
        context.deliver(piece)
    context.completed = end
    return JobResult.model_validate_json(build_result(context, queue_ms=0, claimed_at=time.monotonic()))


# OpenAI, and a gateway to Gemini that speaks its form: signatures are in `extra_content`


def chunk(reason: str | None = None, **delta: Any) -> dict[str, Any]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "gpt-1"}
    return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}


def call(at: int, name: str, **extra: Any) -> list[dict[str, Any]]:
    """The chunks of one call, in pieces."""
    function = {"name": name, "arguments": ""}
    opening = {"index": at, "id": f"call_{name}_{at}", "type": "function", "function": function, **extra}
    parts = ({"index": at, "function": {"arguments": part}} for part in ('{"at":', f"{at}}}"))
    return [chunk(tool_calls=[opening]), *(chunk(tool_calls=[part]) for part in parts)]


async def test_five_turns_go_back_as_they_came_in_openais_form(server: FakeServer) -> None:
    worker = OpenAIWorker(EndpointConfig("openai", server.base_url))
    talk = Conversation(server, worker)
    role = chunk(role="assistant", content=None)
    signature = {"google": {"thought_signature": "c2ln"}}
    await talk.turn(
        role, *call(0, "sky", extra_content=signature), *call(1, "sea"), chunk("tool_calls"), DONE
    )
    talk.answer("blue", "green")
    cited = {
        "type": "url_citation",
        "url_citation": {"url": "https://example.org", "start_index": 0, "end_index": 4},
    }
    await talk.turn(role, chunk(content="Blue."), chunk(annotations=[cited]), chunk("stop"), DONE)
    talk.messages.append({"role": "user", "content": "And at night?"})
    details = [{"type": "reasoning.encrypted", "data": "ZW5j", "index": 0}]
    await talk.turn(
        role, chunk(reasoning="hm", reasoning_details=details), *call(0, "sky"), chunk("tool_calls"), DONE
    )
    talk.answer("black")
    await talk.turn(role, chunk(refusal="I will "), chunk(refusal="not say."), chunk("stop"), DONE)
    talk.messages.append({"role": "user", "content": "Why?"})
    await talk.turn(role, chunk(content="Because."), chunk("stop"), DONE)
    await worker.aclose()

    sent = [body["messages"] for body in server.bodies]
    first, cited_one, thoughtful, refused = (sent[-1][at] for at in (1, 4, 6, 8))
    assert first["tool_calls"] == [
        {
            "id": "call_sky_0",
            "type": "function",
            "function": {"name": "sky", "arguments": '{"at":0}'},
            "extra_content": signature,
        },
        {"id": "call_sea_1", "type": "function", "function": {"name": "sea", "arguments": '{"at":1}'}},
    ]
    assert cited_one == {"role": "assistant", "content": "Blue.", "annotations": [cited]}
    assert thoughtful["reasoning_details"] == details
    assert refused == {"role": "assistant", "refusal": "I will not say."}
    assert_each_begins_with_the_one_before(sent)


# Anthropic


def message(*blocks: Mapping[str, Any], reason: str = "tool_use") -> list[dict[str, Any]]:
    """The events of a message whose blocks come in pieces, as Anthropic streams them."""
    events: list[dict[str, Any]] = [
        {
            "type": "message_start",
            "message": {"id": "msg_1", "model": "claude-1", "role": "assistant", "usage": {}},
        }
    ]
    for at, block in enumerate(blocks):
        events += block_events(at, block)
    stop = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {}}
    return [*events, stop, {"type": "message_stop"}]


def block_events(at: int, block: Mapping[str, Any]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = []
    start = dict(block)
    if block["type"] == "thinking":
        start |= {"thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": part} for part in halves(block["thinking"])]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif block["type"] == "text":
        start["text"] = ""
        deltas = [{"type": "text_delta", "text": part} for part in halves(block["text"])]
    elif block["type"] in {"tool_use", "server_tool_use"}:
        start["input"] = {}
        parts = halves(orjson.dumps(block["input"]).decode())
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in parts]
    began = {"type": "content_block_start", "index": at, "content_block": start}
    went_on = ({"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas)
    return [began, *went_on, {"type": "content_block_stop", "index": at}]


def halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


def thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": f"signed {text}"}


def use(name: str, at: int) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{name}_{at}", "name": name, "input": {"at": at}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


async def test_five_turns_go_back_as_they_came_in_anthropics_form(server: FakeServer) -> None:
    worker = AnthropicWorker(EndpointConfig("anthropic", server.base_url))
    talk = Conversation(server, worker)
    search = {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "sky"}}
    found = {
        "type": "web_search_tool_result",
        "tool_use_id": "srv_1",
        "content": [{"encrypted_content": "ZW5j"}],
    }
    answers: list[list[dict[str, Any]]] = [
        [thought("two calls"), text("Let me look."), use("sky", 0), use("sea", 1)],
        [{"type": "redacted_thinking", "data": "b3BhcXVl"}, thought("one more"), use("sky", 2)],
        [thought("search"), search, found, thought("found it"), text("It is blue."), use("sea", 3)],
        [text("First."), thought("between"), text("Second."), use("sky", 4)],
        [text("Done.")],
    ]
    for blocks in answers[:-1]:
        await talk.turn(*message(*blocks))
        talk.answer(*("ok" for _ in talk.messages[-1]["tool_calls"]))
    last = await talk.turn(*message(*answers[-1], reason="end_turn"))
    talk.messages.append({"role": "user", "content": "Thanks."})
    await talk.turn(*message(text("You are welcome."), reason="end_turn"))
    await worker.aclose()

    assert last.message == {"role": "assistant", "content": "Done."}
    sent = [body["messages"] for body in server.bodies]
    assert [turn["content"] for turn in sent[-1] if turn["role"] == "assistant"] == answers
    assert_each_begins_with_the_one_before(sent)


def assert_each_begins_with_the_one_before(sent: Sequence[Sequence[Any]]) -> None:
    """Providers cache by prefix: a turn that is written otherwise the next time costs the whole cache."""
    for before, after in pairwise(sent):
        assert orjson.dumps(after).startswith(orjson.dumps(before)[:-1])
