"""A prompt on its way in."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from scheduler.model.field import Duration, Frozen, Level, Name, Number, Text
from scheduler.model.priority import Priority
from scheduler.model.refusal import invalid_request

MAX_PROMPT_CHARS = 1_000_000
MAX_DEDUP_KEY_BYTES = 1024
MAX_REQUEST_BYTES = 8 * 1024 * 1024
DEFAULT_TENANT = "default"
DEFAULT_MODEL = "echo"
"""The route that there is where nothing is configured."""


class DedupMode(StrEnum):
    """What a duplicate gets: the job at work, also a finished answer, or the old one's place."""

    UNTIL_FINISHED = "until_finished"
    WINDOW = "window"
    REPLACE = "replace"


class Message(Frozen):
    """One chat message, in OpenAI's shape. `content` is text or a list of content parts.

    `is_error` says that a `tool` message is about a call that failed; `cache_control` marks the end of a
    prefix that is worth caching. Both are Anthropic's; other engines are not told.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[dict[str, Any]] | None = None
    name: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: Text | None = None
    is_error: StrictBool | None = None
    cache_control: dict[str, Any] | None = None


class GenerationParams(Frozen):
    """Sampling parameters by their OpenAI names. Only those that are set reach the engine.

    Strict: `"0.5"` is no temperature. What else an engine knows goes into `extra_body`.
    """

    max_tokens: Annotated[StrictInt, Field(ge=1, le=10_000_000)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    stop: Text | list[Text] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    repetition_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None

    @field_validator("stop")
    @classmethod
    def _stop_says_something(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > 16 or not all(stops):
            raise ValueError("takes at most 16 strings, none of them empty")
        return stop


class PromptRequest(Frozen):
    """One prompt on its way in. Give `prompt` or `messages`, and `model` where there are several routes.

    Durations are seconds (or a `timedelta`), counted from the enqueue. `dedup_key="auto"` makes the key from
    all that changes the answer. `extra_body` is passed to the engine as it is. `job_id` makes the enqueue
    idempotent: an id that exists returns that job. `max_attempts` bounds failures, `max_waits` the attempts
    that cost nothing because the endpoints asked for a wait.
    """

    prompt: Text | None = None
    messages: list[Message] | None = None
    model: Name | None = None
    priority: Level = int(Priority.NORMAL)
    dedup_key: Text | None = None
    dedup: DedupMode = DedupMode.UNTIL_FINISHED
    tenant: Name = DEFAULT_TENANT
    session: Annotated[Text, Field(max_length=256)] | None = None
    deadline_s: Annotated[Duration, Field(gt=0)] | None = None
    delay_s: Annotated[Duration, Field(ge=0)] | None = None
    max_attempts: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    max_waits: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    result_ttl_s: Annotated[Duration, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Text | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    params: GenerationParams = GenerationParams()
    stream: StrictBool = True
    extra_body: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    job_id: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")] | None = None

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
                f"prompt: has {len(self.prompt or ''):,} characters; at most {MAX_PROMPT_CHARS:,} are taken"
            )
        if self.dedup_key is not None and not 1 <= len(self.dedup_key.encode()) <= MAX_DEDUP_KEY_BYTES:
            raise ValueError(
                f"dedup_key: has {len(self.dedup_key.encode()):,} bytes; give 1 to {MAX_DEDUP_KEY_BYTES:,}, "
                "for example a hash of what makes the work equal"
            )
        if self.dedup is not DedupMode.UNTIL_FINISHED and self.dedup_key is None:
            raise ValueError(f"dedup: mode {self.dedup.value} needs a dedup_key")
        return self

    @classmethod
    def parse(cls, /, **fields: Any) -> PromptRequest:
        """Make a request from keyword arguments.

        Raises:
            InvalidRequest: naming the field at fault and what to do about it.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid_request(
                error, fields=tuple(cls.model_fields), parameters=tuple(GenerationParams.model_fields)
            ) from None
