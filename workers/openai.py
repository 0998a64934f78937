"""OpenAI, and every server compatible with its chat completions.

Whole answers are streamed too, so cancelled calls stop at the server and `first_token_timeout_s` applies.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from workers.base import Capabilities, EndpointConfig, Generation, Health, Output
from workers.calls import refuse_chats_in_a_list, refuse_tools, whole
from workers.errors import WorkerConfigError
from workers.http_worker import HttpWorker
from workers.openai_choices import chat_reader, completion_reader
from workers.openai_endpoint import is_azure, is_openai, openai_endpoint
from workers.openai_wire import OURS, chat_body, completion_body
from workers.optional_fields import OptionalFields
from workers.options import flag_option, refuse_unknown_options
from workers.parameters import CHAT_ONLY, PLAIN_ONLY, Parameters

OPTIONS = ("completions", "lists", "organization", "project", "stream_options")

_CHAT = "/chat/completions"
_COMPLETION = "/completions"
_CHAT_PARAMETERS = Parameters("OpenAI's chat", OURS, is_chat=True, lacks=PLAIN_ONLY)
# OpenAI's newer models refuse the old name.
_OPENAIS = replace(_CHAT_PARAMETERS, names={"max_tokens": "max_completion_tokens"})
_PLAIN_PARAMETERS = Parameters(
    "OpenAI's legacy completion", OURS, names={"max_completion_tokens": "max_tokens"}, lacks=CHAT_ONLY
)
# Proxies to them refuse the old name, others the newer one.
_SYNONYMS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


class OpenAIWorker(HttpWorker):
    """The adapter to OpenAI or a server that is compatible with it.

    `base_url` is the same as in OpenAI's SDK: `/chat/completions` is appended to it. Without a path,
    `/v1` is added, at Azure `/openai/v1`. The default is `OPENAI_BASE_URL`, or OpenAI's own.

    Options: `completions`, send plain prompts to the legacy `/completions`, instead of as a chat with one
    message; `lists`, let several of them share a call; `organization` and `project`, the ids that OpenAI
    bills; `stream_options`, ask for token counts (default true).
    """

    models_path = "/models"
    request_id_header = "X-Client-Request-Id"

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, OPTIONS)
        self._completions = flag_option(config, "completions", default=False)
        self._lists = flag_option(config, "lists", default=False)
        if self._lists and not self._completions:
            raise WorkerConfigError("options.lists: needs completions = true; a chat takes no list")
        self._stream_options = flag_option(config, "stream_options", default=True)
        endpoint = openai_endpoint(config)
        self._azure = is_azure(endpoint.url)
        self._chat_parameters = _OPENAIS if is_openai(endpoint.url) else _CHAT_PARAMETERS
        optional = OptionalFields("stream_options", synonyms=_SYNONYMS)
        super().__init__(endpoint, model=config.model, optional=optional)

    @property
    def capabilities(self) -> Capabilities:
        """Chats with tools; lists by option; no priorities."""
        lacks = (
            _CHAT_PARAMETERS.lacks & _PLAIN_PARAMETERS.lacks if self._completions else _CHAT_PARAMETERS.lacks
        )
        return Capabilities(lists=self._lists, chat=True, tools=True, lacks=lacks)

    def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run a batch; see `GenerationWorker.generate`. Any error fails the batch as a whole."""
        refuse_chats_in_a_list(batch)
        first = batch[0]
        plain = self._completions and first.messages is None
        outputs = self._complete(batch) if plain else self._chat(first)
        return outputs if first.stream else whole(outputs)

    async def health(self) -> Health:
        """Ready when the server accepts the key. Azure's list is left out: its requests name deployments."""
        health = await super().health()
        return replace(health, models=()) if self._azure else health

    def _chat(self, generation: Generation) -> AsyncGenerator[Output, None]:
        body = chat_body(generation)
        self._set_parameters(body, generation, self._chat_parameters)
        return self.answers(_CHAT, body, chat_reader(generation), generation)

    def _complete(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        refuse_tools(batch[0])
        body = completion_body(batch)
        self._set_parameters(body, batch[0], _PLAIN_PARAMETERS)
        return self.answers(_COMPLETION, body, completion_reader(batch), batch[0])

    def _set_parameters(self, body: dict[str, Any], generation: Generation, parameters: Parameters) -> None:
        body["model"] = self.model or generation.model
        if not self._stream_options:
            del body["stream_options"]
        parameters.put(body, generation)
