"""The ports between the scheduler and back ends: `ModelWorker`, and one port for each kind of work.

A model worker is the adapter to one endpoint of one kind of back end. It translates the wire and nothing
else: no retries, no queueing, no choice of endpoint. `ModelWorker` holds what the scheduler asks of every
model worker, and `GenerationWorker` adds text generation. Another kind of work gets a port of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from workers.errors import WorkerError

MAX_CHOICES = 128
"""The most choices that a prompt may have, as many as OpenAI makes of one."""

TOKEN_DETAILS = frozenset(
    {"logprobs", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "top_logprobs"}
)
"""Parameters that ask for something beside each token: log probabilities, token ids."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One prompt for a back end. Exactly one of `prompt`, `token_ids` and `messages` is set."""

    model: str
    """The model's name on the back end, unless the endpoint sets its own."""
    prompt: str | None = None
    """A plain prompt."""
    token_ids: Sequence[int] | None = None
    """A plain prompt as token ids of the model."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    """A chat, in OpenAI's form."""
    params: Mapping[str, Any] = field(default_factory=dict)
    """The sampling parameters that the user set, by OpenAI's names: `max_tokens`, `temperature`, `stop`, …"""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools that the model may call, in OpenAI's form."""
    tool_choice: str | Mapping[str, Any] | None = None
    """Which tool to call, in OpenAI's form."""
    response_format: Mapping[str, Any] | None = None
    """The form of the answer, as OpenAI writes it: text, a JSON object, a JSON schema."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Fields to put into the request to the engine unchanged."""
    priority: int = 5
    """The scheduler's priority, 0 to 9; higher is more urgent. The adapter converts it for the engine."""
    stream: bool = True
    """Whether to yield text as it comes; otherwise long answers come in one piece a second."""
    request_id: str = ""
    """The job's id, for the server's log."""


# Outputs are made for every token: a named tuple costs a third of a frozen dataclass.


class TokenUsage(NamedTuple):
    """The tokens of one member. None means that the engine did not say."""

    input_tokens: int | None = None
    """Tokens of the prompt, cached ones included."""
    output_tokens: int | None = None
    """Tokens of the answer, reasoning included."""
    cached_tokens: int | None = None
    """Tokens of the prompt that came from the engine's cache."""
    reasoning_tokens: int | None = None
    """Tokens of the reasoning."""
    cache_write_tokens: int | None = None
    """Tokens of the prompt that the engine put into its cache."""
    input_audio_tokens: int | None = None
    """Tokens of the prompt's audio."""
    output_audio_tokens: int | None = None
    """Tokens of the answer's audio."""
    cost: float | None = None
    """What the call cost, in the currency of the engine's account."""
    extra: Mapping[str, Any] | None = None
    """The other fields of the engine's `usage`, as they came."""


class Piece(NamedTuple):
    """Text, reasoning, fragments of tool calls or more, for one member. At least one of them is not empty."""

    member: int
    """The member's index in the batch."""
    text: str = ""
    """The next part of the answer."""
    reasoning: str = ""
    """The next part of the reasoning."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """OpenAI's streamed fragments: `{"index": 0, "id": …, "function": {"name": …, "arguments": …}}`."""
    choice: int = 0
    """The choice that it belongs to, if the prompt asked for several."""
    extra: Mapping[str, Any] | None = None
    """More fields of the message: `refusal`, `annotations`, `audio`, `thinking_blocks`, …; and `logprobs`.

    The same field in several pieces is put together by `workers.extra_fields.gather`. A `refusal` repeats the
    `text` of its piece.
    """


class ChoiceEnd(NamedTuple):
    """How one of several choices has ended."""

    choice: int
    """Its index."""
    finish_reason: str
    """As in `Completed`."""
    raw_finish_reason: str | None = None
    """As in `Completed`."""
    extra: Mapping[str, Any] | None = None
    """The other fields of the choice, as they came."""


class Completed(NamedTuple):
    """One member has ended well. Its answer is the sum of its pieces."""

    member: int
    """The member's index in the batch."""
    finish_reason: str
    """OpenAI's stop, length, tool_calls or content_filter; unknown if the engine gave no known reason."""
    usage: TokenUsage = TokenUsage()
    """The tokens of this member alone."""
    model: str | None = None
    """The model's name as the engine reports it."""
    raw_finish_reason: str | None = None
    """The engine's own word for the finish reason, if it is another."""
    extra: Mapping[str, Any] | None = None
    """What else the engine says: `id`, `system_fingerprint`, `service_tier`, `request_id`, `rate_limits`."""
    choices: tuple[ChoiceEnd, ...] = ()
    """How each choice has ended, if the prompt asked for several; the fields above are those of choice 0."""


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """One member has failed; the others of the batch continue."""

    member: int
    """The member's index in the batch."""
    error: WorkerError
    """Why it failed."""


Output: TypeAlias = Piece | Completed | MemberFailed


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end that generates can do."""

    lists: bool = False
    """Several plain prompts with equal parameters may share one call."""
    streaming: bool = True
    """Answers come in pieces."""
    chat: bool = True
    """It takes messages."""
    tools: bool = False
    """It calls tools."""
    priority: bool = False
    """Its own queue respects priorities."""
    lacks: frozenset[str] = frozenset()
    """Names of `Generation.params` that it refuses, whatever the prompt."""


@dataclass(frozen=True, slots=True)
class Health:
    """The result of a probe."""

    ready: bool
    """Whether the back end can take work."""
    models: tuple[str, ...] = ()
    """The models that it serves. Empty: unknown."""
    detail: str = ""
    """Why it is not ready."""
    warnings: tuple[str, ...] = ()
    """What will not work as configured although the back end is ready; one sentence each."""
    exclusive: bool = False
    """It accepts no model names other than `models`. Many servers accept aliases, or any name."""


@dataclass(frozen=True, slots=True)
class Load:
    """The work in a back end, from all its clients."""

    running: int
    """Prompts that it is running."""
    waiting: int
    """Prompts in its own queue."""


@runtime_checkable
class ModelWorker(Protocol):
    """What every model worker has, whatever its kind of work."""

    async def health(self) -> Health:
        """Ask the back end whether it can take work. Never raises `WorkerError`: trouble is `ready=False`."""
        ...

    async def capacity(self) -> int | None:
        """How many prompts the back end says it can run at once (llama.cpp: its slots).

        None: it does not say, or cannot be asked now. Never raises `WorkerError`.
        """
        ...

    async def load(self) -> Load | None:
        """The work that the back end has at this moment.

        None: it does not say, or cannot be asked now. Never raises `WorkerError`.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...


@runtime_checkable
class GenerationWorker(ModelWorker, Protocol):
    """A model worker that generates text: it takes a batch of generations and yields outputs.

    To cancel a call, close the iterator or cancel the task that reads it. The worker then drops the
    connection, and the back end stops generating. A single member cannot be cancelled after dispatch: ignore
    its outputs.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What this back end can do. Constant for the life of the worker."""
        ...

    def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        """Run a batch: yield pieces as they come, and one `Completed` or `MemberFailed` for each member.

        A batch has more than one member only if `capabilities.lists` is true and all members are plain
        prompts that differ only in `prompt`, `priority` and `request_id`.

        Raises:
            WorkerError: the call failed as a whole; every member without an end has failed with it.
        """
        ...


@runtime_checkable
class Advisor(Protocol):
    """A model worker that can tell how its back end could be set up better. `doctor` asks."""

    async def advice(self) -> tuple[str, ...]:
        """What some requests will miss, and what to do about it; one sentence each. Never raises."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """What a model worker of any kind is made from: one base URL and how to talk to it.

    Times are in seconds.
    """

    backend: str
    """The name of the adapter."""
    base_url: str = ""
    """The server's URL. Some adapters have a default."""
    model: str | None = None
    """The model's name on that server. None: the one that each request names."""
    api_key: str | None = field(default=None, repr=False)
    """The API key."""
    timeout_s: float = 120.0
    """Limit of any single wait for the server, including the wait for an answer that is not streamed."""
    first_token_timeout_s: float = 30.0
    """Limit of the wait for the first output of a streamed answer."""
    idle_timeout_s: float = 60.0
    """Limit of the wait for each further output."""
    total_timeout_s: float | None = None
    """Limit of a whole call. None: no limit."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Headers of every request; they win over the adapter's own. They may hold secrets."""
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Query parameters of every request. They may hold secrets."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of this adapter alone (echo: `delay_s`, `failure_rate`, …)."""
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The process's environment variables, for those that the back end's own SDK reads (`OPENAI_API_KEY`)."""
