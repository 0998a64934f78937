"""The result of a job that is done."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from scheduler.model.field import Frozen


class Usage(Frozen):
    """Tokens that a job used; None if the engine did not report them."""

    input_tokens: int | None = None
    """Tokens of the prompt."""
    output_tokens: int | None = None
    """Tokens of the answer, reasoning included."""
    total_tokens: int | None = None
    """Both together."""
    cached_tokens: int | None = None
    """Tokens of the prompt that the engine had cached."""
    reasoning_tokens: int | None = None
    """Tokens of the answer that are reasoning."""


class Source(Frozen):
    """A passage that retrieval added to the prompt."""

    path: str
    """The file, relative to the folder of documents."""
    score: float
    """The BM25 score; higher is better."""
    text: str
    """The passage."""


class Timings(Frozen):
    """Where the time of a job went, in milliseconds."""

    queue_ms: float = 0.0
    """From when the job was ready to run to its claim."""
    first_token_ms: float | None = None
    """From the claim to the first token."""
    stages_ms: dict[str, float] = Field(default_factory=dict)
    """The time of each stage, by name."""
    total_ms: float = 0.0
    """`queue_ms`, and from the claim to the end."""


class JobResult(Frozen):
    """The result of a job that is done."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str
    """The answer."""
    message: dict[str, Any] = Field(default_factory=dict)
    """The whole assistant message, in OpenAI's shape."""
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    """The tool calls of the answer, in OpenAI's shape."""
    reasoning: str = ""
    """The reasoning before the answer."""
    finish_reason: str = "stop"
    """`stop`, `length`, `tool_calls`, `content_filter`, or `unknown` if the engine gave no reason."""
    usage: Usage = Usage()
    """Tokens used."""
    model: str = ""
    """The model, by the name that the engine gave it, else that of the route."""
    endpoint: str = ""
    """The endpoint that answered."""
    attempts: int = 1
    """Attempts it took, the successful one included."""
    reused: bool = False
    """Whether this is the finished answer of an earlier request, by dedup mode `window`."""
    hits: int = 0
    """How many requests have got the finished answer in this way, this one included."""
    age_s: float | None = None
    """How old the reused answer was when you asked; None unless `reused`."""
    sources: list[Source] = Field(default_factory=list)
    """The passages that retrieval added."""
    timings: Timings = Timings()
    """Where the time went."""
