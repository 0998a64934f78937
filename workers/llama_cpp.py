"""llama.cpp's `llama-server` over HTTP.

Plain prompts go to its own `/completion` and not to `/v1/completions`: only there does each member of a list
come with its own token counts (the OpenAI endpoint's `usage` for a whole answer is the first prompt's alone).
Chats go to `/v1/chat/completions`, which applies the model's template and parses tool calls.

Every answer is streamed on the wire, also when it is wanted whole: a busy llama-server looks only between two
events of a stream whether its client is still there, so that a call without a stream would run on when it is
cancelled.

Source: tools/server/README.md of llama.cpp.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from workers.base import (
    Capabilities,
    Completed,
    EndpointConfig,
    Generation,
    Health,
    Load,
    Output,
    Piece,
    TokenUsage,
)
from workers.errors import (
    RequestRejected,
    WorkerError,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerUnavailable,
)
from workers.http import HttpEndpoint, Refusal, bearer, check_base_url, error_class
from workers.openai_chat import ChatStream, chat_body
from workers.options import refuse_unknown_options

_COMPLETION = "/completion"
_CHAT = "/v1/chat/completions"

_OWN_NAMES = {"repetition_penalty": "repeat_penalty"}
_COMPLETION_NAMES = {**_OWN_NAMES, "max_tokens": "n_predict"}

# Without this the last event repeats the prompt and all settings, some kilobytes a member.
_LAST_FIELDS = (
    "index",
    "content",
    "stop",
    "stop_type",
    "model",
    "tokens_predicted",
    "tokens_evaluated",
    "timings/cache_n",
)
_OURS = frozenset({"messages", "model", "prompt", "response_fields", "stream", "stream_options"})
_MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


class LlamaCppWorker:
    """The adapter to one llama-server. It takes no options.

    `base_url` is the server's root; a `/v1` at its end is taken off.
    """

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, ())
        self._model = config.model
        self._endpoint = HttpEndpoint(
            config,
            engine="llama.cpp",
            base_url=check_base_url(config.base_url).removesuffix("/v1"),
            # It closes the connection after a stream, whatever its Keep-Alive says, and a call that takes it
            # from the pool just before would fail.
            headers={"Connection": "close", **bearer(config)},
            translate=_error_class,
        )

    @property
    def capabilities(self) -> Capabilities:
        """All but priorities: its queue knows none."""
        return Capabilities(lists=True, streaming=True, chat=True, tools=True, priority=False)

    def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run a batch; see `ModelWorker.generate`. Any error fails the batch as a whole."""
        first = batch[0]
        if first.messages is not None and len(batch) > 1:
            raise ValueError("llama.cpp takes one chat in a call; lists are for plain prompts")
        outputs = self._prompts(batch) if first.messages is None else self._chat(first)
        return outputs if first.stream else _whole(outputs)

    async def health(self) -> Health:
        """Ready when the model is loaded and the server takes our key."""
        try:
            await self._endpoint.get("/health")
            models = _model_names(await self._endpoint.get("/v1/models"))
            await self._settings()
        except WorkerError as error:
            return Health(ready=False, detail=str(error))
        return Health(ready=True, models=models)

    async def capacity(self) -> int | None:
        """The server's slots; None while it cannot be asked."""
        try:
            slots = (await self._settings()).get("total_slots")
        except WorkerError:
            return None
        return slots if isinstance(slots, int) and slots > 0 else None

    async def load(self) -> Load | None:
        """Nothing yet."""
        return None

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        await self._endpoint.aclose()

    async def _settings(self) -> Mapping[str, Any]:
        """The server's account of itself. Unlike its health, it is shown only to those who have the key."""
        try:
            settings = await self._endpoint.get("/props")
        except RequestRejected:  # a proxy that does not pass it on
            return {}
        return settings if isinstance(settings, dict) else {}

    async def _prompts(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        waiting = set(range(len(batch)))
        async with self._endpoint.stream(_COMPLETION, self._completion_body(batch)) as stream:
            async for events in stream:
                for event in events:
                    for output in self._read_completion(event, waiting):
                        stream.output_began()
                        yield output
                if not waiting:
                    return
        raise self._cut_off(len(waiting), len(batch))

    async def _chat(self, generation: Generation) -> AsyncGenerator[Output, None]:
        chat = ChatStream()
        async with self._endpoint.stream(_CHAT, self._chat_body(generation)) as stream:
            async for events in stream:
                for event in events:
                    try:
                        piece = chat.read(event)
                    except _MALFORMED:
                        raise self._malformed() from None
                    if piece:
                        stream.output_began()
                        yield piece
        if not chat.ended:
            raise self._cut_off(1, 1)
        yield chat.end()

    def _completion_body(self, batch: Sequence[Generation]) -> dict[str, Any]:
        first = batch[0]
        if first.tools or first.tool_choice is not None:
            raise RequestRejected("tools: need a chat; give messages instead of prompt")
        prompts = [generation.prompt for generation in batch]
        body: dict[str, Any] = {
            "prompt": prompts if len(prompts) > 1 else prompts[0],
            "stream": True,
            "response_fields": _LAST_FIELDS,
        }
        if schema := _json_schema(first.response_format):
            body["json_schema"] = schema
        return self._with_parameters(body, first, _COMPLETION_NAMES)

    def _chat_body(self, generation: Generation) -> dict[str, Any]:
        return self._with_parameters(chat_body(generation), generation, _OWN_NAMES)

    def _with_parameters(
        self, body: dict[str, Any], generation: Generation, names: Mapping[str, str]
    ) -> dict[str, Any]:
        body["model"] = self._model or generation.model
        for name, value in generation.params.items():
            body[names.get(name, name)] = value
        for name, value in generation.extra_body.items():
            if name in _OURS:
                raise RequestRejected(f"extra_body.{name}: is set from the request itself; leave it out")
            if name in {"n", "n_cmpl"} and value != 1:
                raise RequestRejected(
                    f"extra_body.{name}: a job has one answer; enqueue the prompt several times"
                )
            body[name] = value
        return body

    def _read_completion(self, event: Mapping[str, Any], waiting: set[int]) -> Sequence[Output]:
        """What an event says; a member that has ended leaves `waiting`."""
        try:
            member, text = event["index"], event["content"]
            if member not in waiting or not isinstance(text, str):
                raise self._malformed()
            pieces = (Piece(member, text),) if text else ()
            if not event["stop"]:
                return pieces
            end = _completed(member, event)
        except _MALFORMED:
            raise self._malformed() from None
        waiting.remove(member)
        return (*pieces, end)

    def _malformed(self) -> WorkerProtocolError:
        return self._endpoint.protocol_error(
            "sent an answer that is not what llama-server sends; is base_url right?"
        )

    def _cut_off(self, missing: int, total: int) -> WorkerProtocolError:
        return self._endpoint.protocol_error(
            f"ended its answer before the end of {missing} of {total} prompts"
        )


async def _whole(outputs: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
    """The same answers, each in one piece."""
    pieces: defaultdict[int, list[Piece]] = defaultdict(list)
    async with aclosing(outputs):
        async for output in outputs:
            if isinstance(output, Piece):
                pieces[output.member].append(output)
                continue
            if said := pieces.pop(output.member, None):
                yield _joined(output.member, said)
            yield output


def _joined(member: int, pieces: Sequence[Piece]) -> Piece:
    return Piece(
        member,
        "".join(piece.text for piece in pieces),
        "".join(piece.reasoning for piece in pieces),
        tuple(call for piece in pieces for call in piece.tool_calls),
    )


def _completed(member: int, event: Mapping[str, Any]) -> Completed:
    usage = TokenUsage(
        input_tokens=event.get("tokens_evaluated"),
        output_tokens=event.get("tokens_predicted"),
        cached_tokens=event.get("timings/cache_n"),
    )
    return Completed(
        member, "length" if event.get("stop_type") == "limit" else "stop", usage, event.get("model")
    )


def _json_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """`/completion` knows no `response_format`, but JSON schemas."""
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
    elif kind == "json_schema":
        schema = (response_format.get("json_schema") or {}).get("schema")
    else:
        raise RequestRejected(
            f"response_format.type: is {kind!r}; llama.cpp takes text, json_object and json_schema"
        )
    return schema or {"type": "object"}


def _model_names(answer: Any) -> tuple[str, ...]:
    try:
        return tuple(str(model["id"]) for model in answer["data"])
    except _MALFORMED:
        return ()


def _error_class(refusal: Refusal) -> type[WorkerError]:
    if refusal.kind == "unavailable_error":  # 503 while the model is loading; llama-server has no other
        return WorkerUnavailable
    if refusal.kind == "not_supported_error":  # 501
        return RequestRejected
    if refusal.kind == "server_error" and refusal.words.startswith("Context size has been exceeded"):
        return WorkerOverloaded  # all slots together have filled the cache; the prompt alone may fit
    return error_class(refusal)
