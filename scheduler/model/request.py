"""A request to enqueue a prompt."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
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
"""The route without any configuration."""


class DedupMode(StrEnum):
    """What a request with a dedup key that is in use gets."""

    UNTIL_FINISHED = "until_finished"
    """It joins the job while that waits or runs."""
    WINDOW = "window"
    """The same, and for `dedup_ttl_s` after the end it gets the finished answer."""
    REPLACE = "replace"
    """It takes the place of the waiting job, which is cancelled."""


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


class PromptRequest(Frozen):
    """A prompt to enqueue. Give either `prompt` or `messages`, and `model` if there are several routes.

    Durations are in seconds or a `timedelta`, and count from the enqueue.
    """

    prompt: Text | None = None
    """The text of a single user message, at most 1,000,000 characters."""
    messages: list[Message] | None = None
    """A chat, in the order of its messages."""
    model: Name | None = None
    """The route; may be left out if there is only one."""
    priority: Level = int(Priority.NORMAL)
    """0 to 9; higher is more urgent."""
    dedup_key: Text | None = None
    """Requests with equal keys share a job; `"auto"` makes the key from all that changes the answer."""
    dedup: DedupMode = DedupMode.UNTIL_FINISHED
    """What a request with a key that is in use gets."""
    tenant: Name = DEFAULT_TENANT
    """The tenant whose limits apply, and whose dedup keys these are."""
    session: Annotated[Text, Field(max_length=256)] | None = None
    """Requests of one session go to the same endpoint, if possible."""
    deadline_s: Annotated[Duration, Field(gt=0)] | None = None
    """If the job has not ended by then, it expires."""
    delay_s: Annotated[Duration, Field(ge=0)] | None = None
    """The job waits this long before it may run."""
    max_attempts: Annotated[StrictInt, Field(ge=1, le=1000)] | None = None
    """Failures after which the job has failed for good; None: the route's setting."""
    max_waits: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = None
    """Attempts that may end at no cost because endpoints asked to wait; None: the route's setting."""
    result_ttl_s: Annotated[Duration, Field(ge=1)] | None = None
    """How long to keep the result after the job's end; None: the queue's setting."""
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
    extra_body: dict[str, Any] | None = None
    """Fields for the engine that have no name here, passed on unchanged."""
    metadata: dict[str, Any] | None = None
    """Your own data; templates and your own stages see it."""
    job_id: Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")] | None = None
    """An id of yours makes the enqueue idempotent: if the id exists, you get that job."""

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
        if self.dedup_key is not None and not 1 <= len(self.dedup_key.encode()) <= MAX_DEDUP_KEY_BYTES:
            raise ValueError(
                f"dedup_key: has {len(self.dedup_key.encode()):,} bytes; give 1 to {MAX_DEDUP_KEY_BYTES:,}, "
                "for example a hash of the input"
            )
        if self.dedup is not DedupMode.UNTIL_FINISHED and self.dedup_key is None:
            raise ValueError(f"dedup: mode {self.dedup.value} needs a dedup_key")
        return self

    @classmethod
    def parse(cls, /, **fields: Any) -> PromptRequest:
        """Make a request from keyword arguments.

        Raises:
            InvalidRequest: a field is wrong; the message names it and says what to give.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid_request(
                error, fields=tuple(cls.model_fields), parameters=tuple(GenerationParams.model_fields)
            ) from None
