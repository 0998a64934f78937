"""The result of a job that is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import ConfigDict, Field

from scheduler.model.field import Frozen


class Usage(Frozen):
    """Tokens that a job used; None if the engine did not report them."""

    model_config = ConfigDict(extra="ignore")

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
    cache_write_tokens: int | None = None
    """Tokens of the prompt that the engine put into its cache."""
    input_audio_tokens: int | None = None
    """Tokens of the prompt's audio."""
    output_audio_tokens: int | None = None
    """Tokens of the answer's audio."""
    cost: float | None = None
    """What the answer cost, in the currency of the engine's account, where the engine says it."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """The other fields of the engine's `usage`, as they came."""


class Source(Frozen):
    """A passage that retrieval added to the prompt."""

    path: str
    """The file, relative to the folder of documents."""
    score: float
    """Its score; higher is better: that of BM25, or of the fusion or the reranker where there is one."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of the answers to a request that asked for several."""

    index: int = 0
    """Its number, from 0."""
    text: str = ""
    """The answer."""
    message: dict[str, Any] = field(default_factory=dict)
    """The whole assistant message; see `JobResult.message`."""
    reasoning: str = ""
    """The reasoning before the answer."""
    finish_reason: str = "stop"
    """As in `JobResult`."""
    raw_finish_reason: str = ""
    """The engine's own word for it, if it is another."""
    logprobs: dict[str, Any] | None = None
    """Log probabilities of the tokens, in OpenAI's shape, if the request asked for them."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The other fields of the choice, as the engine sent them."""


def _only_choice(fields: dict[str, Any]) -> list[Choice]:
    """The answer as a choice, where there is one alone: it is not stored twice."""
    return [Choice(**{name: fields[name] for name in _OF_A_CHOICE if name in fields})]


_OF_A_CHOICE = ("text", "message", "reasoning", "finish_reason", "raw_finish_reason", "logprobs")


class JobResult(Frozen):
    """The result of a job that is done."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str
    """The answer."""
    message: dict[str, Any] = Field(default_factory=dict)
    """The whole assistant message, in OpenAI's shape: put it into the `messages` of the next turn as it is.

    It has what the engine wants back: `thinking_blocks` with their signatures, `refusal`, `annotations`, and
    fields of its own.
    """
    tool_calls: list[dict[str, Any]] = Field(default_factory=list)
    """The tool calls of the answer, in OpenAI's shape."""
    reasoning: str = ""
    """The reasoning before the answer."""
    finish_reason: str = "stop"
    """`stop`, `length`, `tool_calls`, `content_filter`, or `unknown` if the engine gave no reason."""
    raw_finish_reason: str = ""
    """The engine's own word for it, if it is another."""
    logprobs: dict[str, Any] | None = None
    """Log probabilities of the tokens, in OpenAI's shape, if the request asked for them."""
    choices: list[Choice] = Field(default_factory=_only_choice)
    """All answers, by their index; the fields above are those of the first. A single one is not stored."""
    usage: Usage = Usage()
    """Tokens used, by all choices."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Also said: `id`, `system_fingerprint`, `service_tier`, `request_id`, `rate_limits`, …"""
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
