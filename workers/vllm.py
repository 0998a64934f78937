"""vLLM's OpenAI-compatible server.

Plain prompts go to `/v1/completions`, many in one call: `choices[].index` is the prompt's, as only one answer
is asked for, and with `continuous_usage_stats` each chunk has its own prompt's usage. The engine batches
continuously whatever comes; what a list saves is HTTP and parsing.

Answers are streamed on the wire, also those that are wanted whole: so the limit of the first token holds.
Short completions that are wanted whole are not (`SHORT_TOKENS`): a stream is most of what they cost the
server. There each member of a list comes with its tokens, which are counted.
vLLM stops a call when its client hangs up; it cannot stop one member of a list.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from workers.base import Capabilities, EndpointConfig, Generation, Health, Load, Output
from workers.calls import (
    answers,
    answers_at_once,
    is_short,
    refuse_chats_in_a_list,
    refuse_tools,
    set_parameters,
    whole,
)
from workers.errors import RequestRejected, WorkerError
from workers.headers import bearer
from workers.http import HttpEndpoint
from workers.network import check_base_url
from workers.openai_chat_answer import ChatReader
from workers.openai_completion_answer import CompletionReader
from workers.openai_wire import (
    OURS,
    chat_body,
    completion_body,
    model_names,
    request_id_header,
)
from workers.optional_fields import OptionalFields
from workers.options import flag_option, refuse_unknown_options
from workers.prometheus import load_of
from workers.vllm_priority import says_priority, shows_priority

OPTIONS = ("priority", "stream_options", "try_priority")

_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"
_REQUEST_ID = "X-Request-Id"
_OURS = OURS | {"priority"}
_NORMAL = 5

NO_PRIORITIES = (
    "vLLM was started without --scheduling-policy priority: inside it urgent prompts do not overtake others; "
    "start it with that, or set options = { priority = false }"
)


class VllmWorker:
    """The adapter to one vLLM server.

    `base_url` is the server's root; a `/v1` at its end is taken off. Without `api_key_env` the key is that of
    `VLLM_API_KEY`, if it is set.

    Options: `priority`, tell the server each prompt's priority (default true); `stream_options`, ask for the
    usage by them (default true); `try_priority`, find out by a trial whether it minds priorities, when it is
    idle and does not say (default true).
    """

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, OPTIONS)
        self._priority = flag_option(config, "priority", default=True)
        self._try_priority = flag_option(config, "try_priority", default=True)
        self._stream_options = flag_option(config, "stream_options", default=True)
        self._optional = OptionalFields("stream_options", "return_token_ids", "priority")
        self._minds_priority: bool | None = None
        self._model = config.model
        config = replace(config, api_key=config.api_key or config.environ.get("VLLM_API_KEY"))
        self._endpoint = HttpEndpoint(
            config,
            engine="vllm",
            base_url=check_base_url(config.base_url).removesuffix("/v1"),
            headers=bearer(config),
        )

    @property
    def capabilities(self) -> Capabilities:
        """All, priorities by option."""
        return Capabilities(lists=True, streaming=True, chat=True, tools=True, priority=self._priority)

    def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run a batch; see `ModelWorker.generate`. Any error fails the batch as a whole."""
        refuse_chats_in_a_list(batch)
        first = batch[0]
        if first.messages is None and not first.stream and is_short(first):
            return self._complete_at_once(batch)
        outputs = self._complete(batch) if first.messages is None else self._chat(first)
        return outputs if first.stream else whole(outputs)

    async def health(self) -> Health:
        """Ready when the engine lives and the server takes our key; warns of a server without priorities."""
        try:
            with suppress(RequestRejected):  # a proxy that passes on only /v1
                await self._endpoint.get_bytes("/health")
            models = await model_names(self._endpoint, "/v1/models")
        except WorkerError as error:
            self._minds_priority = None  # it may come back with other settings
            return Health(ready=False, detail=str(error))
        warnings = (*self._optional.warnings, *await self._warnings(models))
        return Health(ready=True, models=models, warnings=warnings, exclusive=True)

    async def capacity(self) -> int | None:
        """None: vLLM does not say."""
        return None

    async def load(self) -> Load | None:
        """What its metrics say, summed over its engines."""
        return await load_of(
            self._endpoint,
            "/metrics",
            running="vllm:num_requests_running",
            waiting="vllm:num_requests_waiting",
        )

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        await self._endpoint.aclose()

    def _complete(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        body = self._completion_body(batch)
        if len(batch) > 1 and self._stream_options:
            body["stream_options"]["continuous_usage_stats"] = True
        reader = CompletionReader(len(batch))
        headers = request_id_header(_REQUEST_ID, batch[0])
        return answers(self._endpoint, _COMPLETION, body, reader, headers=headers, optional=self._optional)

    def _complete_at_once(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        body = self._completion_body(batch)
        body.pop("stream_options", None)
        body["stream"] = False
        if len(batch) > 1:
            body["return_token_ids"] = True
        reader = CompletionReader(len(batch))
        headers = request_id_header(_REQUEST_ID, batch[0])
        events = _members if len(batch) > 1 else _alone
        return answers_at_once(
            self._endpoint, _COMPLETION, body, reader, events, headers=headers, optional=self._optional
        )

    def _completion_body(self, batch: Sequence[Generation]) -> dict[str, Any]:
        refuse_tools(batch[0])
        body = completion_body(batch)
        self._set_parameters(body, batch)
        return body

    def _chat(self, generation: Generation) -> AsyncGenerator[Output, None]:
        body = chat_body(generation)
        self._set_parameters(body, [generation])
        headers = request_id_header(_REQUEST_ID, generation)
        return answers(self._endpoint, _CHAT, body, ChatReader(), headers=headers, optional=self._optional)

    def _set_parameters(self, body: dict[str, Any], batch: Sequence[Generation]) -> None:
        body["model"] = self._model or batch[0].model
        if not self._stream_options:
            del body["stream_options"]
        if self._priority:
            # vLLM runs the lowest first, and takes 0 where a request says nothing: that is our normal. A list
            # has one priority; the most urgent member must not wait for the others' sake.
            body["priority"] = _NORMAL - max(generation.priority for generation in batch)
        set_parameters(body, batch[0], names={}, ours=_OURS)

    async def _warnings(self, models: Sequence[str]) -> tuple[str, ...]:
        if not self._priority or "priority" in self._optional.refused:
            return ()
        if self._minds_priority is None:
            self._minds_priority = await says_priority(self._endpoint)
        if self._minds_priority is None and self._try_priority and (self._model or models):
            self._minds_priority = await shows_priority(
                self._endpoint, model=self._model or models[0], load=self.load
            )
        return (NO_PRIORITIES,) if self._minds_priority is False else ()


def _alone(answer: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (answer,)


def _members(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each member's part of the whole answer to a list, with its own usage in the place of the sum."""
    for choice in answer["choices"]:
        usage = {
            "prompt_tokens": _length(choice.get("prompt_token_ids")),
            "completion_tokens": _length(choice.get("token_ids")),
        }
        yield {"model": answer.get("model"), "choices": (choice,), "usage": usage}


def _length(token_ids: Any) -> int | None:
    """None: a server that gives no token ids, older than 0.10.2."""
    return len(token_ids) if isinstance(token_ids, list) else None
