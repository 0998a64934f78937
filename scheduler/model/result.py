"""What a job that is done has to show."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from scheduler.model.field import Frozen


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
