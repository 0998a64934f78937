"""Which of OpenAI's parameters an API takes, under what names; what it lacks is refused with words.

Nothing is dropped in silence: a parameter goes out, or the request is refused by its name, unless its value
is what the API does anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workers.base import Generation
from workers.errors import RequestRejected, UnsupportedParameter

PARAMETERS = frozenset(
    {
        "audio",
        "best_of",
        "echo",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "repetition_penalty",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "suffix",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""All that `Generation.params` may have."""

PLAIN_ONLY = frozenset({"best_of", "echo", "suffix"})
"""Parameters of OpenAI's legacy completions alone."""

PROVIDERS_ONLY = frozenset(
    {"audio", "modalities", "moderation", "prediction", "store", "verbosity", "web_search_options"}
)
"""What an engine of your own has no service for, and would ignore."""

LABELS = frozenset(
    {
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
"""What changes no answer: an engine of your own gets it, and may ignore it."""

CHAT_ONLY = PROVIDERS_ONLY | (LABELS - {"user"}) | {"parallel_tool_calls", "reasoning_effort"}
"""Parameters of OpenAI's chat completions alone."""

# What every API does if it is asked for nothing else.
_DEFAULTS: Mapping[str, Any] = {
    "best_of": 1,
    "echo": False,
    "logprobs": False,
    "modalities": ["text"],
    "n": 1,
    "n_cmpl": 1,
    "parallel_tool_calls": True,
    "service_tier": "auto",
    "store": False,
}
# Fields that ask for several answers, by any API's name for them.
_COUNTS = frozenset({"best_of", "n", "n_cmpl"})


@dataclass(frozen=True, slots=True)
class Parameters:
    """What one call of an API takes."""

    api: str
    """Its name in messages."""
    ours: frozenset[str]
    """The fields of a request that only the adapter sets."""
    is_chat: bool = False
    """Whether log probabilities are asked for as in chats; else as in plain completions."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The API's names for parameters that have another one there."""
    lacks: frozenset[str] = frozenset()
    """Parameters that it does not have."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """What to do instead, by the parameter or the field of `extra_body`, which is refused too."""

    def put(self, body: dict[str, Any], generation: Generation) -> None:
        """Put the parameters and `extra_body` into a request.

        Raises:
            UnsupportedParameter: the API lacks one of them.
            RequestRejected: `extra_body` has a field that only the adapter sets.
        """
        if generation.params:
            body.update(self.named(generation))
        if generation.extra_body:
            self.put_extra(body, generation.extra_body)

    def named(self, generation: Generation) -> dict[str, Any]:
        """The parameters under the API's names.

        Raises:
            UnsupportedParameter: the API lacks one of them.
        """
        found: dict[str, Any] = {}
        for name, value in generation.params.items():
            if name not in self.lacks:
                found[self.names.get(name, name)] = value
            elif not is_default(name, value):
                raise self._lacking("params", name)
        return _chat_logprobs(found) if self.is_chat else _plain_logprobs(found)

    def put_extra(self, body: dict[str, Any], extra_body: Mapping[str, Any]) -> None:
        """Put `extra_body` into a request, over what is there.

        Raises:
            UnsupportedParameter: the API lacks one of its fields, and would ignore it.
            RequestRejected: it has a field that only the adapter sets.
        """
        for name, value in extra_body.items():
            if name in self.ours:
                raise RequestRejected(f"extra_body.{name}: is set from the request itself; leave it out")
            if (name in self.instead or name in self.lacks & _COUNTS) and not is_default(name, value):
                raise self._lacking("extra_body", name)
            body[name] = value

    def _lacking(self, where: str, name: str) -> UnsupportedParameter:
        instead = self.instead.get(name, "leave it out, or use a route that has it")
        return UnsupportedParameter(f"{where}.{name}: {self.api} has no such parameter; {instead}")


def _chat_logprobs(named: dict[str, Any]) -> dict[str, Any]:
    """Parameters with log probabilities as chats ask for them: a truth, and a number."""
    asked = named.get("logprobs")
    if type(asked) is int:
        named = {"top_logprobs": asked} | named | {"logprobs": True}
    elif asked is None and "top_logprobs" in named:
        named = {**named, "logprobs": True}
    return named


def _plain_logprobs(named: dict[str, Any]) -> dict[str, Any]:
    """Parameters with log probabilities as plain completions ask for them: a number."""
    if not named.keys() & {"logprobs", "top_logprobs"}:
        return named
    asked, alternatives = named.get("logprobs"), named.get("top_logprobs")
    rest = {name: value for name, value in named.items() if name not in {"logprobs", "top_logprobs"}}
    if asked is False:
        return rest
    return {**rest, "logprobs": asked if type(asked) is int else alternatives or 0}


def is_default(name: str, value: Any) -> bool:
    """Whether a parameter asks for what every API does anyway."""
    default = _DEFAULTS.get(name)
    return type(value) is type(default) and value == default
