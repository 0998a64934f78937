"""Parameters of a generation, by their OpenAI names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, ValidationInfo, field_validator

from scheduler.model.field import Frozen, Number, Text
from workers.base import MAX_CHOICES

_Count = Annotated[StrictInt, Field(ge=1, le=10_000_000)]


class GenerationParams(Frozen):
    """Parameters by the names of OpenAI's API. Only those that you set reach the engine.

    Types are strict: `"0.5"` is not a temperature. Parameters with no name here go into `extra_body`; none
    may be in both. docs/parameters.md says what each back end makes of them.
    """

    max_tokens: _Count | None = None
    """The most tokens to generate."""
    max_completion_tokens: _Count | None = None
    """The newer name of `max_tokens`; give one of them."""
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    """Randomness; 0 is the least."""
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Sample from the most likely tokens that have this probability together."""
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    """Sample from this many of the most likely tokens; -1 for all."""
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    """Leave out tokens below this share of the likeliest one's probability."""
    stop: Text | list[Text] | None = None
    """Text that ends the answer; at most 16 strings."""
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    """A seed for sampling, where the engine has one."""
    presence_penalty: Number | None = None
    """Penalty for tokens that have occurred."""
    frequency_penalty: Number | None = None
    """Penalty for tokens by how often they have occurred."""
    repetition_penalty: Number | None = None
    """Factor against repetition; 1 is none."""
    logit_bias: dict[str, Number] | None = None
    """What to add to the logits of tokens, by token id."""
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    """How many answers to generate: `result.choices`. Limits on tokens count all of them."""
    best_of: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] | None = None
    """Generate this many answers, of which the `n` best are returned. Plain completions only."""
    logprobs: StrictBool | Annotated[StrictInt, Field(ge=0, le=1000)] | None = None
    """Whether to return log probabilities; or of how many alternatives, which is `top_logprobs`."""
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=1000)] | None = None
    """Return the log probabilities of this many alternatives to each token."""
    echo: StrictBool | None = None
    """Repeat the prompt before the answer. Plain completions only."""
    suffix: Text | None = None
    """What comes behind the answer. Plain completions only."""
    parallel_tool_calls: StrictBool | None = None
    """Whether the model may call several tools at once."""
    reasoning_effort: Text | None = None
    """How much to reason: `low`, `medium`, `high`, or what else the model knows."""
    verbosity: Text | None = None
    """How long the answer should be: `low`, `medium`, `high`."""
    service_tier: Text | None = None
    """The provider's class of service. The scheduler's own is `priority`."""
    prediction: dict[str, Any] | None = None
    """Text that most of the answer will repeat."""
    modalities: list[Text] | None = None
    """The kinds of output: `text`, `audio`."""
    audio: dict[str, Any] | None = None
    """Voice and format of spoken answers."""
    web_search_options: dict[str, Any] | None = None
    """Let the provider search the web."""
    moderation: dict[str, Any] | None = None
    """Let the provider moderate prompt and answer."""
    store: StrictBool | None = None
    """Whether the provider may keep the answer."""
    user: Text | None = None
    """Your user, for the provider's own checks. Its older name for `safety_identifier`."""
    safety_identifier: Text | None = None
    """Your user, for the provider's own checks; best as a hash."""
    prompt_cache_key: Text | None = None
    """Which prompts share the provider's cache. The scheduler's own is `session`."""
    prompt_cache_retention: Text | None = None
    """How long the provider keeps the prompt in its cache."""
    prompt_cache_options: dict[str, Any] | None = None
    """How the provider caches the prompt."""

    @field_validator("stop")
    @classmethod
    def _stop_says_something(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 16 or not all(stops):
            raise ValueError("give at most 16 strings, none of them empty")
        return stop

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_bound(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and info.data.get("max_tokens") is not None:
            raise ValueError("is another name of max_tokens; give one of them")
        return most
