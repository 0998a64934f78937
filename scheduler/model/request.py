"""A request to enqueue a prompt."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict, Field, StrictBool, StrictInt, field_validator, model_validator

from scheduler.model.field import Frozen, Text
from scheduler.model.job_request import JobRequest
from scheduler.model.kind import Kind
from scheduler.model.params import GenerationParams

MAX_PROMPT_CHARS = 1_000_000
MAX_TOKEN_ID = 2**31 - 1
TokenId: TypeAlias = Annotated[StrictInt, Field(ge=0, le=MAX_TOKEN_ID)]

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


class PromptRequest(JobRequest):
    """A prompt to enqueue. Give either `prompt` or `messages`, and `model` if there are several routes.

    Durations are in seconds or a `timedelta`, and count from the enqueue.
    """

    kind: ClassVar[Kind] = Kind.GENERATE
    """The kind of work that it asks for."""
    parameters: ClassVar[tuple[str, ...]] = tuple(GenerationParams.model_fields)
    """The names in `params`, to be suggested for an unknown field."""

    prompt: Text | list[TokenId] | None = None
    """The text of a single user message, at most 1,000,000 characters; or a plain prompt as token ids."""
    messages: list[Message] | None = None
    """A chat, in the order of its messages."""
    tools: list[dict[str, Any]] | None = None
    """Tools that the model may call, in OpenAI's shape."""
    tool_choice: Text | dict[str, Any] | None = None
    """Which tool to call, in OpenAI's shape."""
    response_format: dict[str, Any] | None = None
    """The format of the answer, in OpenAI's shape."""
    params: GenerationParams = GenerationParams()
    """Parameters of the generation."""
    stream: StrictBool = True
    """Whether to publish the answer token by token."""

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: object) -> object:
        if isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt):
            raise ValueError("is a list of prompts, which are as many jobs: call enqueue_many")
        return prompt

    def _check_content(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("prompt: give either prompt or messages, and not both")
        if isinstance(self.prompt, str) and not self.prompt.strip():
            raise ValueError("prompt: is empty; give it some text")
        if self.prompt == []:
            raise ValueError("prompt: is empty; give it some token ids")
        if self.messages is not None and not self.messages:
            raise ValueError("messages: is empty; give at least one message")
        if len(self.prompt or "") > MAX_PROMPT_CHARS:
            unit = "characters" if isinstance(self.prompt, str) else "tokens"
            raise ValueError(
                f"prompt: has {len(self.prompt or ''):,} {unit}; give at most {MAX_PROMPT_CHARS:,}"
            )
        if self.extra_body and (twice := self.extra_body.keys() & self.params.model_fields_set):
            raise ValueError(f"extra_body.{min(twice)}: is in params too; give it once")
