"""Anthropic, and every server compatible with its Messages API.

Whole answers are streamed too, so cancelled calls stop at the server and `first_token_timeout_s` applies.

Source: https://docs.anthropic.com/en/api/messages-streaming
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import httpx

from workers.anthropic_answer import MessageReader
from workers.anthropic_messages import chat_fields, format_fields, own_parameters, tool_fields
from workers.base import Capabilities, EndpointConfig, Generation, Output
from workers.calls import whole
from workers.errors import ContextOverflow, WorkerConfigError, WorkerError
from workers.headers import check_key, has_credentials
from workers.http import HttpEndpoint
from workers.http_worker import HttpWorker
from workers.network import check_base_url
from workers.options import count_option, refuse_unknown_options, text_option
from workers.parameters import PARAMETERS, Parameters
from workers.refusals import Refusal, error_class

BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"
MAX_TOKENS = 4096
OPTIONS = ("beta", "max_tokens")

_MESSAGES = "/v1/messages"
# Source: https://docs.anthropic.com/en/api/errors
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_PARAMETERS = Parameters(
    "Anthropic",
    frozenset({"messages", "model", "stream", "system", "tools", "tool_choice"}),
    names={"max_completion_tokens": "max_tokens", "stop": "stop_sequences"},
    lacks=PARAMETERS
    - {
        "max_completion_tokens",
        "max_tokens",
        "parallel_tool_calls",
        "reasoning_effort",
        "safety_identifier",
        "service_tier",
        "stop",
        "temperature",
        "top_k",
        "top_p",
        "user",
    },
    instead={
        "n": "enqueue the prompt several times",
        "prompt_cache_key": "mark a message with cache_control",
    },
)


class AnthropicWorker(HttpWorker):
    """The adapter to Anthropic or a server that is compatible with it.

    `base_url` is the server's root; a `/v1` at its end is removed. The default is `ANTHROPIC_BASE_URL`, or
    Anthropic's own. Without `api_key_env` the key is that of `ANTHROPIC_API_KEY`, else the token of
    `ANTHROPIC_AUTH_TOKEN`.

    Options: `max_tokens`, for requests without it, because the API requires it (4096); `beta`, the value of
    the header `anthropic-beta`.
    """

    def __init__(self, config: EndpointConfig) -> None:
        refuse_unknown_options(config, OPTIONS)
        self._max_tokens = count_option(config, "max_tokens") or MAX_TOKENS
        base_url = check_base_url(
            config.base_url or config.environ.get("ANTHROPIC_BASE_URL") or BASE_URL
        ).removesuffix("/v1")
        beta = text_option(config, "beta")
        endpoint = HttpEndpoint(
            config,
            engine="anthropic",
            base_url=base_url,
            headers={
                "anthropic-version": VERSION,
                **({"anthropic-beta": beta} if beta else {}),
                **_credentials(config, base_url),
            },
            translate=_error_class,
        )
        super().__init__(endpoint, model=config.model)

    @property
    def capabilities(self) -> Capabilities:
        """Chats with tools, one in each call; no priorities."""
        return Capabilities(tools=True, lacks=_PARAMETERS.lacks)

    def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        """Run one generation; see `GenerationWorker.generate`."""
        if len(batch) > 1:
            raise ValueError("takes one generation in a call")
        outputs = self.answers(_MESSAGES, self._body(batch[0]), _reader(batch[0]), batch[0])
        return outputs if batch[0].stream else whole(outputs)

    def _body(self, generation: Generation) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model or generation.model,
            "max_tokens": self._max_tokens,
            "stream": True,
            **chat_fields(generation),
            **tool_fields(generation),
            **format_fields(generation.response_format),
        }
        body.update(own_parameters(_PARAMETERS.named(generation), body))
        _PARAMETERS.put_extra(body, generation.extra_body)
        return body


def _reader(generation: Generation) -> MessageReader:
    return MessageReader(has_more=bool(generation.tools or generation.extra_body))


def _credentials(config: EndpointConfig, base_url: str) -> dict[str, str]:
    """The header with the key of `api_key_env`, or with Anthropic's own key if this server may have it.

    Raises:
        WorkerConfigError: Anthropic needs a key, and there is none.
    """
    if config.api_key:
        return {"x-api-key": check_key(config.api_key)}
    if has_credentials(config):
        return {}
    theirs = f".{httpx.URL(base_url).host}".endswith(".anthropic.com")
    # If the settings name another server, it must not get Anthropic's key.
    if not config.base_url or theirs:
        if key := config.environ.get("ANTHROPIC_API_KEY"):
            return {"x-api-key": check_key(key)}
        if token := config.environ.get("ANTHROPIC_AUTH_TOKEN"):
            return {"Authorization": f"Bearer {check_key(token)}"}
    if theirs:
        raise WorkerConfigError(
            "api_key_env: Anthropic needs a key; set ANTHROPIC_API_KEY, or name another variable here"
        )
    return {}


def _error_class(refusal: Refusal) -> type[WorkerError]:
    # An error inside the stream has a kind and no status.
    refusal = replace(refusal, status=_STATUSES.get(refusal.kind, refusal.status))
    if refusal.status == 413 or "prompt is too long" in refusal.words:
        return ContextOverflow
    return error_class(refusal)
