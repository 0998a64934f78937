"""A request to enqueue a prompt."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    field_validator,
    model_validator,
)

from scheduler.model.field import Frozen, Number, Text
from scheduler.model.job_request import JobRequest
from scheduler.model.kind import Kind

MAX_PROMPT_CHARS = 1_000_000
DEFAULT_MODEL = "echo"
"""The route without any configuration."""


class Message(Frozen):
    """One chat message, in OpenAI's shape; fields that have no name here reach the engine as they are.

    So a `result.message` goes back as it came, with all that the engine wants to see again.
    """

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who speaks."""
    content: Text | list[dict[str, Any]] | None = None
    """Text, or a list of content parts."""
    name: Text | None = None
    """A name that tells speakers of one role apart."""
    tool_calls: list[dict[str, Any]] | None = None
    """The calls that an `assistant` message makes."""
    tool_call_id: Text | None = None
    """The call that a `tool` message answers."""
    is_error: StrictBool | None = None
    """Whether a `tool` message reports a failed call. For Anthropic; others do not get it."""
    cache_control: dict[str, Any] | None = None
    """Marks the end of a prefix to cache. For Anthropic; others do not get it."""

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        if self.content is None and self.model_extra and self.role != "assistant":
            raise ValueError(f"content: is missing, and {next(iter(self.model_extra))} is no such field")
        return self


class GenerationParams(Frozen):
    """Sampling parameters by their OpenAI names. Only those that you set reach the engine.

    Types are strict: `"0.5"` is not a temperature. Parameters with no name here go into `extra_body`.
    """

    max_tokens: Annotated[StrictInt, Field(ge=1, le=10_000_000)] | None = None
    """The most tokens to generate."""
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

    @field_validator("stop")
    @classmethod
    def _stop_says_something(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 16 or not all(stops):
            raise ValueError("give at most 16 strings, none of them empty")
        return stop


class PromptRequest(JobRequest):
    """A prompt to enqueue. Give either `prompt` or `messages`, and `model` if there are several routes.

    Durations are in seconds or a `timedelta`, and count from the enqueue.
    """

    kind: ClassVar[Kind] = Kind.GENERATE
    """The kind of work that it asks for."""
    parameters: ClassVar[tuple[str, ...]] = tuple(GenerationParams.model_fields)
    """The names in `params`, to be suggested for an unknown field."""

    prompt: Text | None = None
    """The text of a single user message, at most 1,000,000 characters."""
    messages: list[Message] | None = None
    """A chat, in the order of its messages."""
    tools: list[dict[str, Any]] | None = None
    """Tools that the model may call, in OpenAI's shape."""
    tool_choice: Text | dict[str, Any] | None = None
    """Which tool to call, in OpenAI's shape."""
    response_format: dict[str, Any] | None = None
    """The format of the answer, in OpenAI's shape."""
    params: GenerationParams = GenerationParams()
    """Sampling parameters."""
    stream: StrictBool = True
    """Whether to publish the answer token by token."""

    @model_validator(mode="after")
    def _check_content(self) -> PromptRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages, and not both")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt: is empty; give it some text")
        if self.messages is not None and not self.messages:
            raise ValueError("messages: is empty; give at least one message")
        if len(self.prompt or "") > MAX_PROMPT_CHARS:
            raise ValueError(
                f"prompt: has {len(self.prompt or ''):,} characters; give at most {MAX_PROMPT_CHARS:,}"
            )
        return self
