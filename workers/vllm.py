"""vLLM's OpenAI-compatible server.

Plain prompts go to `/v1/completions`, many in one call. `choices[].index` is the prompt's index, because only
one answer is requested for each, and with `continuous_usage_stats` each chunk has the usage of its own
prompt. The engine batches continuously anyway; a list saves HTTP and parsing.

Whole answers are streamed too, so that the limit of the first token holds. Short completions are the
exception (`SHORT_TOKENS`), because a stream is most of their cost to the server; the tokens of each member
are counted from its token ids. vLLM stops a call when its client hangs up; it cannot stop one member of a
list.

Source: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from workers.base import Capabilities, EndpointConfig, Generation, Health, Output
from workers.calls import refuse_tools
from workers.errors import RequestRejected, WorkerError
from workers.headers import bearer
from workers.http import HttpEndpoint
from workers.http_worker import EngineWorker
from workers.network import check_base_url
from workers.openai_choices import chat_reader, completion_reader
from workers.openai_wire import OURS, chat_body, completion_body
from workers.optional_fields import OptionalFields
from workers.options import flag_option, refuse_unknown_options
from workers.parameters import CHAT_ONLY, LABELS, PLAIN_ONLY, PROVIDERS_ONLY, Parameters
from workers.vllm_priority import says_priority, shows_priority

OPTIONS = ("priority", "stream_options", "try_priority")

_CHAT = "/v1/chat/completions"
_COMPLETION = "/v1/completions"
_OURS = OURS | {"priority"}
# vLLM ignores these since it calls them `structured_outputs`, without a word.
_RENAMED = dict.fromkeys(
    ("guided_choice", "guided_grammar", "guided_json", "guided_regex"),
    "give response_format, or extra_body.structured_outputs",
)
_CHAT_PARAMETERS = Parameters(
    "vLLM's chat", _OURS, is_chat=True, lacks=PROVIDERS_ONLY | PLAIN_ONLY, instead=_RENAMED
)
_PLAIN_PARAMETERS = Parameters(
    "vLLM's plain completion",
    _OURS,
    names={"max_completion_tokens": "max_tokens"},
    lacks=(CHAT_ONLY - LABELS) | {"best_of", "suffix"},
    instead=_RENAMED,
)
_LACKS = _CHAT_PARAMETERS.lacks & _PLAIN_PARAMETERS.lacks
_NORMAL = 5

NO_PRIORITIES = (
    "vLLM was started without --scheduling-policy priority: inside it urgent prompts do not overtake others; "
    "start it with that, or set options = { priority = false }"
)

NO_TOOLS = "vLLM was started without --enable-auto-tool-choice and --tool-call-parser, and refuses tools"
_WITH_A_TOOL: Mapping[str, Any] = {
    "messages": [{"role": "user", "content": "Hi"}],
    "tools": [{"type": "function", "function": {"name": "none", "parameters": {"type": "object"}}}],
    "max_tokens": 1,
}
# Older versions refuse a priority where current ones ignore it.
_WITH_PRIORITY: Mapping[str, Any] = {"prompt": "Hi", "max_tokens": 1, "priority": 1}


class VllmWorker(EngineWorker):
    """The adapter to one vLLM server.

    `base_url` is the server's root; a `/v1` at its end is removed. Without `api_key_env` the key is that
    of `VLLM_API_KEY`, if it is set.

    Options: `priority`, send priorities (default true); `stream_options`, ask for token counts (default
    true); `try_priority`, detect by a trial whether an idle server respects priorities, if it does not say so
    itself (default true).
    """

    request_id_header = "X-Request-Id"
    running_metric = "vllm:num_requests_running"
    waiting_metric = "vllm:num_requests_waiting"

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, OPTIONS)
        self._priority = flag_option(config, "priority", default=True)
        self._try_priority = flag_option(config, "try_priority", default=True)
        self._stream_options = flag_option(config, "stream_options", default=True)
        self._respects_priority: bool | None = None
        optional = OptionalFields("stream_options", "return_token_ids", "priority")
        super().__init__(vllm_endpoint(config), model=config.model, optional=optional)

    @property
    def capabilities(self) -> Capabilities:
        """All, priorities by option."""
        return Capabilities(lists=True, tools=True, priority=self._priority, lacks=_LACKS)

    async def health(self) -> Health:
        """Ready when the engine runs and the server accepts the key. Warns of a server without priorities."""
        try:
            with suppress(RequestRejected):  # a proxy passes on only /v1
                await self.endpoint.get_bytes("/health")
            models = await self.models()
        except WorkerError as error:
            self._respects_priority = None  # it may restart with other settings
            return Health(ready=False, detail=str(error))
        warnings = (*self.optional.warnings, *await self._warnings(models))
        return Health(ready=True, models=models, warnings=warnings, exclusive=True)

    async def advice(self) -> tuple[str, ...]:
        """Whether the server takes tools and priorities: it is asked for one token with each."""
        asked: list[tuple[str, Mapping[str, Any], str, str]] = [
            (_CHAT, _WITH_A_TOOL, "--enable-auto-tool-choice", NO_TOOLS)
        ]
        if self._priority and self._respects_priority is None:
            asked.append((_COMPLETION, _WITH_PRIORITY, "riority scheduling is not enabled", NO_PRIORITIES))
        advice = []
        with suppress(WorkerError):
            model = self.model or next(iter(await self.models()), None)
            for path, body, words, sentence in asked:
                try:
                    await self.endpoint.post(path, {"model": model, **body})
                except RequestRejected as error:
                    advice += [sentence] if words in str(error) else []
        return tuple(advice)

    def _complete(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        body = self._completion_body(batch)
        if len(batch) > 1 and self._stream_options:
            body["stream_options"]["continuous_usage_stats"] = True
        return self.answers(_COMPLETION, body, completion_reader(batch), batch[0])

    def _complete_at_once(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        body = self._completion_body(batch)
        body.pop("stream_options", None)
        body["stream"] = False
        if len(batch) > 1:
            body["return_token_ids"] = True
        reader = completion_reader(batch)
        events = _members if len(batch) > 1 else _alone
        return self.answers_at_once(_COMPLETION, body, reader, events, batch[0])

    def _completion_body(self, batch: Sequence[Generation]) -> dict[str, Any]:
        refuse_tools(batch[0])
        body = completion_body(batch)
        self._set_parameters(body, batch, _PLAIN_PARAMETERS)
        return body

    def _chat(self, generation: Generation) -> AsyncGenerator[Output, None]:
        body = chat_body(generation)
        self._set_parameters(body, [generation], _CHAT_PARAMETERS)
        return self.answers(_CHAT, body, chat_reader(generation), generation)

    def _set_parameters(
        self, body: dict[str, Any], batch: Sequence[Generation], parameters: Parameters
    ) -> None:
        body["model"] = self.model or batch[0].model
        if not self._stream_options:
            del body["stream_options"]
        if self._priority:
            # vLLM runs the lowest number first; its default 0 is our normal. A list has one priority: that of
            # its most urgent member, which must not wait because of the others.
            body["priority"] = _NORMAL - max(generation.priority for generation in batch)
        parameters.put(body, batch[0])

    async def _warnings(self, models: Sequence[str]) -> tuple[str, ...]:
        if not self._priority or "priority" in self.optional.refused:
            return ()
        if self._respects_priority is None:
            self._respects_priority = await says_priority(self.endpoint)
        if self._respects_priority is None and self._try_priority and (self.model or models):
            self._respects_priority = await shows_priority(
                self.endpoint, model=self.model or models[0], load=self.load
            )
        return (NO_PRIORITIES,) if self._respects_priority is False else ()


def vllm_endpoint(config: EndpointConfig) -> HttpEndpoint:
    """The endpoint of a vLLM server. `base_url` and key as for `VllmWorker`.

    Raises:
        WorkerConfigError: the URL or the key is wrong.
    """
    config = replace(config, api_key=config.api_key or config.environ.get("VLLM_API_KEY"))
    return HttpEndpoint(
        config,
        engine="vllm",
        base_url=check_base_url(config.base_url).removesuffix("/v1"),
        headers=bearer(config),
    )


def _alone(answer: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    return (answer,)


def _members(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each member's part of the answer to a list, with its own usage instead of the sum."""
    for choice in answer["choices"]:
        usage = {
            "prompt_tokens": _length(choice.pop("prompt_token_ids", None)),
            "completion_tokens": _length(choice.pop("token_ids", None)),
        }
        yield {"model": answer.get("model"), "choices": (choice,), "usage": usage}


def _length(token_ids: Any) -> int | None:
    """The number of tokens; None if the server, older than 0.10.2, sends no token ids."""
    return len(token_ids) if isinstance(token_ids, list) else None
