"""The nouns of the system: a request and what it may hold, a job's state, its result, its record."""

from __future__ import annotations

import difflib
from datetime import timedelta
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from scheduler.errors import InvalidRequest
from scheduler.mistakes import alternatives, what_to_give

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_PROMPT_CHARS = 1_000_000
MAX_DEDUP_KEY_BYTES = 1024
MAX_DURATION_S = 10 * 365 * 86_400.0
MAX_REQUEST_BYTES = 8 * 1024 * 1024
DEFAULT_TENANT = "default"
DEFAULT_MODEL = "echo"
"""The route that there is where nothing is configured."""


class Priority(IntEnum):
    """Names for the levels 0 to 9; higher is more urgent. Any integer from 0 to 9 is a priority."""

    BACKGROUND = 1
    LOW = 3
    NORMAL = 5
    HIGH = 7
    CRITICAL = 9


URGENT = 8
"""Priorities from here on go strictly first, and get the places that endpoints keep for them (`reserved`)."""


def is_urgent(priority: int) -> bool:
    """Whether a priority is 8 or 9."""
    return priority >= URGENT


class JobState(StrEnum):
    """Where a job is. The last five are ends: a job in one of them changes no more."""

    WAITING = "waiting"
    DELAYED = "delayed"
    HELD = "held"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SHED = "shed"

    @property
    def ended(self) -> bool:
        """Whether the job has come to an end."""
        return self in _ENDED


_ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.SHED})


class DedupMode(StrEnum):
    """What a duplicate gets: the job at work, also a finished answer, or the old one's place."""

    UNTIL_FINISHED = "until_finished"
    WINDOW = "window"
    REPLACE = "replace"


def _utf8(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"is not valid UTF-8: lone surrogate at character {error.start}") from None
    return value


def _seconds(value: object) -> object:
    return value.total_seconds() if isinstance(value, timedelta) else value


def _level(value: object) -> object:
    return int(value) if isinstance(value, Priority) else value


Text: TypeAlias = Annotated[StrictStr, AfterValidator(_utf8)]
NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
Name: TypeAlias = Annotated[StrictStr, Field(pattern=rf"^{NAME}$")]
Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Duration: TypeAlias = Annotated[
    float, BeforeValidator(_seconds), Field(strict=True, allow_inf_nan=False, le=MAX_DURATION_S)
]
Level: TypeAlias = Annotated[StrictInt, BeforeValidator(_level), Field(ge=0, le=9)]


class Frozen(BaseModel):
    """Base of what crosses an edge: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


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
            raise invalid_request(error) from None


def invalid_request(error: ValidationError) -> InvalidRequest:
    """Turn pydantic's report into one line that names the first field at fault. Never repeats the input."""
    details = error.errors(include_url=False, include_input=False)
    first, path = details[0], _path(details[0])
    for detail in details:  # of a union: the member that came furthest
        if _path(detail).startswith(f"{path}.") and first["loc"][0] == detail["loc"][0]:
            first, path = detail, _path(detail)
    message = alternatives([what_to_give(detail) for detail in details if _path(detail) == path])
    if not path and ": " in message:
        path, message = message.split(": ", 1)
    if first["type"] == "extra_forbidden":
        message = f"no such field; {_meant(path)}"
    elif first["type"] == "string_pattern_mismatch":
        signs = ". _ : -" if path == "job_id" else ". _ : / @ + -"
        message = f"begin with a letter or a digit; then come at most 127 letters, digits and {signs}"
    return InvalidRequest(f"{path}: {message}" if path else message, field=path or None)


def _path(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"] if not _is_union_tag(part))


def _meant(path: str) -> str:
    """Which field may have been meant."""
    parent, _, name = path.rpartition(".")
    parameters = tuple(GenerationParams.model_fields)
    fields = parameters if parent == "params" else tuple(PromptRequest.model_fields)
    if not parent and name in parameters:
        return f"params has it: params={{'{name}': …}}"
    near = difflib.get_close_matches(name, fields, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"


def _is_union_tag(part: int | str) -> bool:
    # pydantic adds the tried member of a union to the path: ("temperature", "int")
    return isinstance(part, str) and (
        part in {"int", "float", "str", "function-after[_utf8(), str]"} or "[" in part
    )


class Usage(Frozen):
    """Tokens that a job used; None where the engine did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Source(Frozen):
    """A passage that retrieval put into the prompt: the file it is from, its BM25 score, its text."""

    path: str
    score: float
    text: str


class Timings(Frozen):
    """Where the time went, in milliseconds: waiting in the queue, to the first token, each stage, all."""

    queue_ms: float = 0.0
    first_token_ms: float | None = None
    stages_ms: dict[str, float] = Field(default_factory=dict)
    total_ms: float = 0.0


class JobResult(Frozen):
    """What a job that is done has to show.

    `message` is the whole assistant message in OpenAI's shape. `finish_reason` is stop, length, tool_calls,
    content_filter, or unknown where the engine did not say why the answer ended. `reused` is true when the
    answer had been made for an earlier duplicate (dedup mode `window`): `age_s` seconds before this caller
    asked, who is number `hits` to get it again. `sources` are the passages that retrieval added.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str
    message: dict[str, Any] = Field(default_factory=dict)
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    reasoning: str = ""
    finish_reason: str = "stop"
    usage: Usage = Usage()
    model: str = ""
    endpoint: str = ""
    attempts: int = 1
    reused: bool = False
    hits: int = 0
    age_s: float | None = None
    sources: list[Source] = Field(default_factory=list)
    timings: Timings = Timings()


class JobError(Frozen):
    """Why a job, or one attempt of it, went wrong: a stable code and words for people."""

    code: str
    message: str


class HistoryEntry(Frozen):
    """One thing that happened to a job. `at_ms`: milliseconds since the epoch, by Redis' clock.

    What happened `count` times in a row is one entry: it tells of the last time, and `first_at_ms` when the
    first one was.
    """

    at_ms: int
    what: str
    worker: str | None = None
    attempt: int | None = None
    detail: str | None = None
    count: int = 1
    first_at_ms: int | None = None


class JobInfo(Frozen):
    """A job's record. Times are milliseconds since the epoch, by Redis' clock; None where there is none.

    `position` is the number of jobs of its lane that would be claimed before it, while it waits; `place` says
    in words why it is there.
    """

    id: str
    state: JobState
    model: str
    priority: int
    tenant: str = DEFAULT_TENANT
    position: int | None = None
    place: str | None = None
    attempts: int = 0
    failures: int = 0
    lost_leases: int = 0
    max_attempts: int | None = None
    tickets: int = 1
    joined: int = 0
    hits: int = 0
    dedup: DedupMode | None = None
    worker: str | None = None
    error: JobError | None = None
    reason: str | None = None
    enqueued_at_ms: int
    due_at_ms: int | None = None
    deadline_at_ms: int | None = None
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    history: list[HistoryEntry] = Field(default_factory=list)
