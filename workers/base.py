"""The port between the scheduler and a back end.

A model worker takes a *batch* of generations and yields *outputs*, each naming its member by index. It
translates the wire and nothing else: no retries, no queueing, no choice of endpoint.

To cancel a call, close the iterator (or cancel the task that reads it): the worker then drops the
connection, and the back end stops generating. There is no cancelling of one member after dispatch; whoever
reads the outputs simply ignores that member.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from workers.errors import WorkerError


@dataclass(frozen=True, slots=True)
class Generation:
    """One prompt for a back end. Exactly one of `prompt` and `messages` is set.

    `params` holds the sampling parameters by their OpenAI names (`max_tokens`, `temperature`, `top_p`,
    `stop`, `seed`, …), only those the user set. `extra_body` goes into the engine's request as it is.
    `priority` is the scheduler's, 0 to 9, higher is more urgent: an adapter turns it into the engine's
    polarity.
    """

    model: str
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    priority: int = 5
    stream: bool = True
    request_id: str = ""


# Outputs are made for every token: a named tuple costs a third of a frozen dataclass.


class TokenUsage(NamedTuple):
    """Tokens of one member. None means that the engine did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Piece(NamedTuple):
    """Some text, reasoning or tool-call fragments that the engine has produced for one member.

    `tool_calls` are OpenAI's streamed fragments:
    `{"index": 0, "id": …, "function": {"name": …, "arguments": …}}`.
    """

    member: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()


class Completed(NamedTuple):
    """One member has ended well. What it said is the sum of its pieces.

    `finish_reason` is OpenAI's: stop, length, tool_calls or content_filter; or unknown, where the engine gave
    none that is known. `model` is the name that the engine gave.
    """

    member: int
    finish_reason: str
    usage: TokenUsage = TokenUsage()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """One member has ended badly while others of the batch go on."""

    member: int
    error: WorkerError


Output: TypeAlias = Piece | Completed | MemberFailed


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a back end can do.

    `lists`: several plain prompts with equal parameters may share one call. `chat`, `tools`, `streaming`,
    `priority`: the engine knows them.
    """

    lists: bool = False
    streaming: bool = True
    chat: bool = True
    tools: bool = False
    priority: bool = False


@dataclass(frozen=True, slots=True)
class Health:
    """What a probe found: `ready` for work, the `models` it serves (empty: unknown), and why not when not.

    `exclusive`: it takes no other name for a model than those; many servers take aliases, or any name.
    `warnings` say what will not work as asked for although the back end is ready, a sentence each.
    """

    ready: bool
    models: tuple[str, ...] = ()
    detail: str = ""
    warnings: tuple[str, ...] = ()
    exclusive: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What a back end says of its own work, whoever sent it: prompts that `running`, and `waiting` in it."""

    running: int
    waiting: int


@runtime_checkable
class ModelWorker(Protocol):
    """The adapter to one endpoint of one kind of back end."""

    @property
    def capabilities(self) -> Capabilities:
        """What this back end can do; constant for the life of the worker."""
        ...

    def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        """Run a batch; yield pieces as they come and exactly one `Completed` or `MemberFailed` a member.

        More than one member only when `capabilities.lists` and all are plain prompts that differ in nothing
        but `prompt`, `priority` and `request_id`.

        Raises:
            WorkerError: the call failed as a whole; every member without an end has failed with it.
        """
        ...

    async def health(self) -> Health:
        """Ask the back end whether it can take work. Never raises `WorkerError`: trouble is `ready=False`."""
        ...

    async def capacity(self) -> int | None:
        """How many prompts the back end says it can hold at once (llama.cpp: its slots).

        None: it does not say, or cannot be asked now. Never raises `WorkerError`.
        """
        ...

    async def load(self) -> Load | None:
        """What the back end has to do at this moment.

        None: it does not say, or cannot be asked now. Never raises `WorkerError`.
        """
        ...

    async def aclose(self) -> None:
        """Close connections. Safe to call twice."""
        ...


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """What a model worker is made from: one base URL and how to talk to it.

    `headers` and `query` go with every request, over the adapter's own; they may hold secrets.
    `first_token_timeout_s` bounds the wait for the first output of an answer that is streamed,
    `idle_timeout_s` that for each of the next, `timeout_s` any wait, also that for a whole answer;
    `total_timeout_s` a whole call, if it is set. `options` are
    settings of that kind of worker alone (echo: `delay_s`, `failure_rate`, …). `environ` holds the process's
    environment variables, for the ones that the back end's own SDK reads (`OPENAI_API_KEY`).
    """

    backend: str
    base_url: str = ""
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    first_token_timeout_s: float = 30.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)
