"""llama.cpp's `llama-server` over HTTP.

Plain prompts go to its own `/completion` instead of `/v1/completions`, because only there each member of a
list has its own token counts (the OpenAI endpoint's `usage` for a list is that of the first prompt). Chats go
to `/v1/chat/completions`, which applies the model's template and parses tool calls.

Whole answers are streamed too: a busy llama-server checks only between two events of a stream whether its
client is still there, so a cancelled call without a stream would continue. Short ones are the exception
(`SHORT_TOKENS`): for them a stream costs the server a third of its rate.

Source: tools/server/README.md of llama.cpp.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from workers.base import (
    Capabilities,
    Completed,
    EndpointConfig,
    Generation,
    Health,
    Output,
    Piece,
    TokenUsage,
)
from workers.calls import MALFORMED, NO_HEAD, refuse_tools
from workers.counts import token_count
from workers.errors import (
    ContextOverflow,
    ModelNotFound,
    RequestRejected,
    WorkerError,
    WorkerOverloaded,
    WorkerUnavailable,
)
from workers.finish_reasons import UNKNOWN
from workers.headers import bearer
from workers.http import HttpEndpoint
from workers.http_worker import EngineWorker, HttpWorker
from workers.llama_cpp_cache import keeps_prefixes
from workers.network import check_base_url
from workers.openai_choices import chat_reader
from workers.openai_content import model_name
from workers.openai_wire import OURS, chat_body, plain_prompt
from workers.optional_fields import OptionalFields
from workers.options import refuse_unknown_options
from workers.parameters import CHAT_ONLY, LABELS, PLAIN_ONLY, PROVIDERS_ONLY, Parameters
from workers.refusals import Refusal, error_class

MAX_SLOTS = 65_536
"""More than any server has: a larger number is a mistake."""

NO_TOOLS = (
    "the chat template of this model knows no tools, and llama-server ignores them without a word; "
    "for tools, choose another model, or give a template with --chat-template-file"
)
NO_PREFIX_CACHE = (
    "llama-server forgets a prompt when another one takes its slot, and reads earlier turns again; "
    "start it without --cache-ram 0 and --no-cache-prompt (some models keep no prefixes even so)"
)

_COMPLETION = "/completion"
_CHAT = "/v1/chat/completions"

# Without this the last event repeats the prompt and all settings: some kilobytes for each member.
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
_FINISH_REASONS = {"eos": "stop", "word": "stop", "limit": "length"}
# llama-server answers 500 if it raises an exception while it reads a faulty request.
_REQUEST_WORDS = (
    " input is not supported",  # an image, sound or film for a text model
    "Failed to parse messages",
    "Failed to parse tool",  # the tools; the arguments of a call in the history
    "Failed to load image",
    "Failed to download image",
    "Invalid base64",
    "Invalid uri",
    "scheme is not supported",
    "Cannot use both",
    "Cannot specify",
    "Cannot continue an assistant message",
    "Unknown reasoning format",
    "Unsupported tool",
    "Missing tool",
    "Jinja Exception",  # the model's own template refuses the messages
    "[json.exception.type_error.302]",  # a field of another type
    "[json.exception.out_of_range.403]",  # a field that is missing
)
# It was started without --embeddings or --reranking: another endpoint may do this kind of work.
_START_IT_WITH = "Start it with"
_OURS = OURS | {"response_fields"}
_CHAT_PARAMETERS = Parameters(
    "llama.cpp's chat",
    _OURS,
    is_chat=True,
    names={"repetition_penalty": "repeat_penalty", "max_completion_tokens": "max_tokens"},
    lacks=PROVIDERS_ONLY | PLAIN_ONLY,
)
_PLAIN_PARAMETERS = Parameters(
    "llama.cpp's plain completion",
    _OURS,
    names={
        "repetition_penalty": "repeat_penalty",
        "max_tokens": "n_predict",
        "max_completion_tokens": "n_predict",
    },
    lacks=(CHAT_ONLY - LABELS) | PLAIN_ONLY | {"logprobs", "n", "top_logprobs"},
    instead=dict.fromkeys(("logprobs", "n", "n_cmpl", "top_logprobs"), "give messages instead of prompt"),
)

_LACKS = _CHAT_PARAMETERS.lacks & _PLAIN_PARAMETERS.lacks


class LlamaServer(HttpWorker):
    """The base of the adapters to a llama-server, whatever its kind of work."""

    async def health(self) -> Health:
        """Ready when the model is loaded and the server accepts the key."""
        try:
            await self.endpoint.get("/health")
            models = await self.models()
            await self.settings()
        except WorkerError as error:
            return Health(ready=False, detail=str(error))
        return Health(ready=True, models=models, warnings=self.optional.warnings)

    async def settings(self) -> Mapping[str, Any]:
        """The server's properties. Unlike its health, they need the key."""
        try:
            settings = await self.endpoint.get("/props")
        except RequestRejected:  # a proxy does not pass it on
            return {}
        return settings if isinstance(settings, dict) else {}


class LlamaCppWorker(LlamaServer, EngineWorker):
    """The adapter to one llama-server. It takes no options.

    `base_url` is the server's root; a `/v1` at its end is removed. Start the server with `--metrics` if the
    worker is to know its load.
    """

    running_metric = "llamacpp:requests_processing"
    waiting_metric = "llamacpp:requests_deferred"

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, ())
        optional = OptionalFields("response_fields", "stream_options")
        super().__init__(llama_cpp_endpoint(config), model=config.model, optional=optional)

    @property
    def capabilities(self) -> Capabilities:
        """All but priorities: the server's queue has none."""
        return Capabilities(lists=True, tools=True, lacks=_LACKS)

    async def capacity(self) -> int | None:
        """The number of the server's slots; None while it cannot be asked."""
        try:
            slots = (await self.settings()).get("total_slots")
        except WorkerError:
            return None
        return slots if isinstance(slots, int) and 0 < slots <= MAX_SLOTS else None

    async def advice(self) -> tuple[str, ...]:
        """Whether the model's template knows tools, and whether the server keeps prefixes of prompts."""
        advice = []
        with suppress(WorkerError, *MALFORMED):
            if (await self.settings())["chat_template_caps"]["supports_tools"] is False:
                advice.append(NO_TOOLS)
        with suppress(WorkerError, *MALFORMED):
            if await keeps_prefixes(self.endpoint, model=self.model) is False:
                advice.append(NO_PREFIX_CACHE)
        return tuple(advice)

    def _complete(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        body = self._completion_body(batch)
        reader = _CompletionReader(len(batch))
        return self.answers(_COMPLETION, body, reader, batch[0])

    def _complete_at_once(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        body = {**self._completion_body(batch), "stream": False}
        reader = _CompletionReader(len(batch))
        return self.answers_at_once(_COMPLETION, body, reader, _as_list, batch[0])

    def _completion_body(self, batch: Sequence[Generation]) -> dict[str, Any]:
        first = batch[0]
        refuse_tools(first)
        body: dict[str, Any] = {
            "prompt": plain_prompt(batch),
            "stream": True,
            "response_fields": _LAST_FIELDS,
        }
        if schema := _json_schema(first.response_format):
            body["json_schema"] = schema
        self._set_parameters(body, first, _PLAIN_PARAMETERS)
        return body

    def _chat(self, generation: Generation) -> AsyncGenerator[Output, None]:
        body = chat_body(generation)
        if isinstance(generation.tool_choice, Mapping):
            _choose_tool(body, generation.tool_choice)
        self._set_parameters(body, generation, _CHAT_PARAMETERS)
        if effort := body.pop("reasoning_effort", None):  # it is for the model's template
            body["chat_template_kwargs"] = {
                "reasoning_effort": effort,
                **(body.get("chat_template_kwargs") or {}),
            }
        return self.answers(_CHAT, body, chat_reader(generation), generation)

    def _set_parameters(self, body: dict[str, Any], generation: Generation, parameters: Parameters) -> None:
        body["model"] = self.model or generation.model
        parameters.put(body, generation)


class _CompletionReader:
    """Reads the stream of `/completion`; each member's last event has its usage."""

    __slots__ = ("_waiting", "head", "total")

    def __init__(self, total: int) -> None:
        self.total = total
        self.head: Mapping[str, Any] = NO_HEAD
        self._waiting = set(range(total))

    @property
    def missing(self) -> int:
        return len(self._waiting)

    @property
    def complete(self) -> bool:
        return not self._waiting

    def read(self, event: Mapping[str, Any]) -> Sequence[Output]:
        member, text = event["index"], event["content"]
        if member not in self._waiting or not isinstance(text, str):
            raise ValueError("no such member, or no text")
        pieces = (Piece(member, text),) if text else ()
        if not event["stop"]:
            return pieces
        end = _completed(member, event, self.head)
        self._waiting.remove(member)
        return (*pieces, end)

    def finish(self) -> Sequence[Output]:
        return ()


def _as_list(answer: Any) -> list[Any]:
    """llama-server answers a list with a list, and a single prompt with a single answer."""
    return answer if isinstance(answer, list) else [answer]


def _completed(member: int, event: Mapping[str, Any], head: Mapping[str, Any]) -> Completed:
    usage = TokenUsage(
        input_tokens=token_count(event, "tokens_evaluated"),
        output_tokens=token_count(event, "tokens_predicted"),
        cached_tokens=token_count(event, "timings/cache_n"),
    )
    said = event.get("stop_type")
    reason = _FINISH_REASONS.get(str(said), UNKNOWN)
    raw_reason = said if isinstance(said, str) and said != reason else None
    return Completed(member, reason, usage, model_name(event.get("model")), raw_reason, head or None)


def _json_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema of a response format: `/completion` takes schemas only."""
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


def _choose_tool(body: dict[str, Any], choice: Mapping[str, Any]) -> None:
    """Let the model call the one tool that a choice names: llama-server takes a named choice for `auto`.

    Raises:
        RequestRejected: there is no such tool.
    """
    name = (choice.get("function") or {}).get("name")
    tools = [tool for tool in body.get("tools") or () if (tool.get("function") or {}).get("name") == name]
    if not name or not tools:
        raise RequestRejected(f"tool_choice.function.name: is {name!r}, which is none of the tools")
    body["tools"], body["tool_choice"] = tools[:1], "required"


def llama_cpp_endpoint(config: EndpointConfig) -> HttpEndpoint:
    """The endpoint of a llama-server. `base_url` as for `LlamaCppWorker`.

    Raises:
        WorkerConfigError: the URL or the key is wrong.
    """
    return HttpEndpoint(
        config,
        engine="llama.cpp",
        base_url=check_base_url(config.base_url).removesuffix("/v1"),
        # The server closes the connection after a stream, whatever its Keep-Alive says, and a call that
        # reuses it just before would fail.
        headers={"Connection": "close", **bearer(config)},
        translate=_error_class,
    )


def _error_class(refusal: Refusal) -> type[WorkerError]:
    if refusal.kind == "unavailable_error":  # 503 while the model is loading; llama-server has no other
        return WorkerUnavailable
    if refusal.kind == "not_supported_error":  # 501
        return ModelNotFound if _START_IT_WITH in refusal.words else RequestRejected
    if refusal.kind == "server_error" and "is too large to process" in refusal.words:
        return ContextOverflow  # an input to embed must fit one physical batch
    if refusal.kind == "server_error" and refusal.words.startswith("Context size has been exceeded"):
        return WorkerOverloaded  # all slots together have filled the cache; the prompt may fit by itself
    if refusal.kind == "server_error" and any(words in refusal.words for words in _REQUEST_WORDS):
        return RequestRejected
    return error_class(refusal)
