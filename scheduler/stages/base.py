"""The interface of stages, and the context that passes through them.

A stage works on a `PromptContext`. All jobs of a route share it, so it keeps no state of a job. To change an
answer while it streams, it adds an `AnswerFilter` for each job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from scheduler.model import Source
from scheduler.observations import AttemptWatcher
from workers.base import MAX_CHOICES, Completed, Piece
from workers.errors import WorkerProtocolError
from workers.extra_fields import gather


@runtime_checkable
class AnswerFilter(Protocol):
    """Changes the text of one job's answer as it streams."""

    def feed(self, text: str) -> str:
        """Take some text and return what may be passed on now. A later call returns what is held back."""
        ...

    def flush(self) -> str:
        """Return what was held back, at the end of the answer."""
        ...


@dataclass(slots=True)
class PromptContext:
    """One attempt of one job on its way through the stages.

    Before inference, stages change `prompt` or `messages`, and `passages`. One of `prompt`, `token_ids` and
    `messages` is set; none is for other kinds of work. Inference calls `deliver` for each piece; what comes
    out of the filters is kept in `texts` and handed to `sink`. Reasoning goes through `reasoning_filters` in
    the same way; tool calls pass as they are. More fields of the message are put together in `extra`;
    `holds_extra`: they do not stream, as no filter can see them.

    If the request asks for several choices, this is the first, and `choices` has the others by their index.
    Each has filters of its own, put in place by the `openers` of the stages.

    `expires_at` is on the clock of `time.monotonic`, None without a deadline. `permit` names the endpoint
    whose rate limit the attempt has passed, "" where none limits it; `take_permit(name)` asks for that of
    another: 0, or in how many milliseconds there is one.
    """

    job_id: str
    attempt: int
    route: str
    tenant: str
    priority: int
    prompt: str | None
    messages: list[dict[str, Any]] | None
    params: Mapping[str, Any]
    request: Mapping[str, Any]
    token_ids: list[int] | None = None
    expires_at: float | None = None
    passages: list[Source] = field(default_factory=list)

    permit: str = ""
    take_permit: Callable[[str], Awaitable[int]] | None = None

    sink: Callable[[Piece], None] | None = None
    filters: list[AnswerFilter] = field(default_factory=list)
    reasoning_filters: list[AnswerFilter] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    tool_calls: list[Mapping[str, Any]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    holds_extra: bool = False
    stopped: bool = False
    choice: int = 0
    choices: dict[int, PromptContext] = field(default_factory=dict)
    openers: tuple[Callable[[PromptContext], None], ...] = ()
    completed: Completed | None = None
    answer: Mapping[str, Any] | None = None  # the result of other kinds of work, instead of text
    endpoint: str = ""
    model: str = ""  # the endpoint's own name for it
    first_token_at: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    watcher: AttemptWatcher | None = None

    def deliver(self, piece: Piece) -> None:
        """Take a piece of the answer from the engine, filter it, keep it and pass it on."""
        if piece.choice != self.choice:
            self._choice(piece.choice).deliver(piece)
            return
        text, reasoning = piece.text, piece.reasoning
        for answer_filter in self.filters:
            text = answer_filter.feed(text) if text else text
        for answer_filter in self.reasoning_filters:
            reasoning = answer_filter.feed(reasoning) if reasoning else reasoning
        if text is not piece.text or reasoning is not piece.reasoning:
            piece = Piece(piece.member, text, reasoning, piece.tool_calls, piece.choice, piece.extra)
        self._pass_on(piece)

    def flush(self) -> None:
        """Pass on what the filters held back, at the end of the answer."""
        text = _flush(self.filters)
        extra = {"refusal": text} if text and "refusal" in self.extra else None
        self._pass_on(Piece(0, text, _flush(self.reasoning_filters), (), self.choice, extra))

    @property
    def all_choices(self) -> tuple[PromptContext, ...]:
        """This choice and the others, ordered by index."""
        return (self, *(self.choices[index] for index in sorted(self.choices)))

    @property
    def all_stopped(self) -> bool:
        """Whether a filter has stopped every requested choice."""
        if not self.stopped:
            return False
        asked = self.params.get("n") or (self.request.get("extra_body") or {}).get("n") or 1
        return len(self.choices) + 1 >= asked and all(one.stopped for one in self.choices.values())

    def _choice(self, index: int) -> PromptContext:
        """Another choice, created when its first piece arrives."""
        if (known := self.choices.get(index)) is not None:
            return known
        if not 0 < index < MAX_CHOICES:
            raise WorkerProtocolError(f"the model worker answered for choice {index}")
        fresh: dict[str, Any] = {name: [] for name in _OF_A_CHOICE}
        made = replace(self, choice=index, choices={}, extra={}, stopped=False, watcher=None, **fresh)
        for open_filters in self.openers:
            open_filters(made)
        self.choices[index] = made
        return made

    def _keep_extra(self, piece: Piece) -> Piece:
        """Keep the fields that have no filter, and return the piece as it may stream."""
        extra = dict(piece.extra or {})
        if "refusal" in extra:  # a refusal is sent as text, and that has been filtered
            extra["refusal"] = piece.text
        gather(self.extra, extra)
        if self.holds_extra:
            extra = {name: value for name, value in extra.items() if name == "refusal"}
        return piece._replace(extra=extra or None)

    def _pass_on(self, piece: Piece) -> None:
        _, text, reasoning, tool_calls, _, extra = piece
        if extra:
            piece = self._keep_extra(piece)
        if text:
            self.texts.append(text)
        if reasoning:
            self.reasonings.append(reasoning)
        if tool_calls:
            self.tool_calls.extend(tool_calls)
        if self.sink and (text or reasoning or tool_calls or piece.extra):
            self.sink(piece)


_OF_A_CHOICE = ("filters", "reasoning_filters", "texts", "reasonings", "tool_calls")


def _flush(filters: list[AnswerFilter]) -> str:
    text = ""
    for answer_filter in filters:
        text = (answer_filter.feed(text) if text else "") + answer_filter.flush()
    return text


class Stage(Protocol):
    """One step between claim and end."""

    @property
    def name(self) -> str:
        """Lower case, one word: it appears in timings and counts."""
        ...

    async def run(self, context: PromptContext) -> None:
        """Do the stage's work on one job.

        Raises:
            workers.errors.WorkerError: the attempt failed; `retryable` decides what happens next.
            scheduler.errors.ConfigError: the job cannot succeed with this configuration.
        """
        ...
