"""What the core tells those who look on, such as metrics and traces.

An observer is an object with a method for each kind of observation that it wants to hear of, named as the
fields of `Observers` are. What nobody wants is not even made. Methods are called in the event loop, in the
task in which it happened; they must be quick; an error of theirs is logged and goes no further. Moments are
seconds on the clock of `time.monotonic`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from scheduler.batching import Flush
from scheduler.logs import traced
from scheduler.queue.records import ClaimedJob, TickReport
from workers.base import Completed, Generation

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    RETRIED = "retried"  # it failed, and the job goes on with another attempt
    GIVEN_BACK = "given_back"  # the worker process stops
    LOST = "lost"  # the job was cancelled, is another's now, or will be when its lease ends


class AttemptWatcher(Protocol):
    """Who follows one attempt, through its stages to its end. Must not raise."""

    def stage_began(self, stage: str) -> None:
        """The stage begins, in the task that runs it."""
        ...

    def stage_ended(self, stage: str, error: BaseException | None) -> None:
        """The stage has ended, well or with an error."""
        ...

    def attempt_ended(self, seen: EndedAttempt) -> None:
        """The same that observers hear of."""
        ...


class Progress(Protocol):
    """How far an attempt has come. Set `watcher` to follow it further."""

    request: Mapping[str, Any]
    endpoint: str
    model: str
    completed: Completed | None
    texts: list[str]
    reasonings: list[str]
    tool_calls: list[Mapping[str, Any]]
    first_token_at: float | None
    stages_ms: dict[str, float]
    watcher: AttemptWatcher | None


class Claimed(NamedTuple):
    """One claim brought these jobs."""

    jobs: Sequence[ClaimedJob]


class AttemptBegan(NamedTuple):
    """A job is about to enter its first stage, in the task that takes it through them."""

    job: ClaimedJob
    progress: Progress
    claimed_at: float


class EndedAttempt(Protocol):
    """An attempt whose end is in Redis, or has been refused because the job is another's now.

    Each that has begun ends; when the process stops, what could not be written has been lost. It is the
    engine's own record, to be read and not to be kept: what comes with every job must cost next to nothing.
    `progress` is None where the attempt ended before its first stage. `code` is that of the error, "" without
    one. `ended_at` is when its last stage was over.
    """

    @property
    def job(self) -> ClaimedJob:
        """What was claimed."""
        ...

    @property
    def progress(self) -> Progress | None:
        """How far it has come."""
        ...

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        ...

    @property
    def code(self) -> str:
        """The code of the error."""
        ...

    @property
    def claimed_at(self) -> float:
        """When it came."""
        ...

    @property
    def ended_at(self) -> float:
        """When its stages were over."""
        ...


class Flushed(NamedTuple):
    """Gathered prompts have gone to an endpoint as one call.

    Of one that goes alone and at once nothing is told: `Batcher.at_once` counts those.
    """

    endpoint: str
    flush: Flush


class CallBegan(NamedTuple):
    """A call begins, in the task that carries it out. `call` tells it from others until it has ended."""

    call: object
    endpoint: str
    backend: str
    base_url: str
    generations: Sequence[Generation]


class EndedCall(Protocol):
    """A call that has ended: well, with an error, or because nobody waited for it any more (`given_up`).

    As `EndedAttempt`, to be read and not to be kept.
    """

    endpoint: str
    began_at: float
    ended_at: float
    error: Exception | None
    given_up: bool


class BreakerChanged(NamedTuple):
    """An endpoint's breaker has gone to another state: closed, open, half_open."""

    endpoint: str
    state: str


class Written(NamedTuple):
    """What happened to `jobs` jobs is in Redis and published, `lag_s` after the first of it was ready."""

    jobs: int
    lag_s: float


class RoundTrip(NamedTuple):
    """Redis has answered a script of that name after `seconds`, as the event loop saw it."""

    script: str
    seconds: float


class Ticked(NamedTuple):
    """One round of maintenance by this process, or a look whether another does it."""

    report: TickReport


@dataclass(frozen=True, slots=True)
class Observers:
    """For each kind of observation whom to call; None where nobody wants it."""

    claimed: Callable[[Claimed], None] | None = None
    attempt_began: Callable[[AttemptBegan], None] | None = None
    attempt_ended: Callable[[EndedAttempt], None] | None = None
    flushed: Callable[[Flushed], None] | None = None
    call_began: Callable[[CallBegan], None] | None = None
    call_ended: Callable[[EndedCall], None] | None = None
    breaker_changed: Callable[[BreakerChanged], None] | None = None
    written: Callable[[Written], None] | None = None
    round_trip: Callable[[RoundTrip], None] | None = None
    ticked: Callable[[Ticked], None] | None = None

    @classmethod
    def of(cls, observers: Iterable[object]) -> Observers:
        """Find the methods that these have."""
        observers = tuple(observers)
        return cls(
            **{
                kind.name: _guarded(found)
                for kind in fields(cls)
                if (found := [m for one in observers if (m := getattr(one, kind.name, None)) is not None])
            }
        )


def _guarded(methods: Sequence[Callable[[Any], None]]) -> Callable[[Any], None]:
    def observe(observation: Any) -> None:
        for method in methods:
            try:
                method(observation)
            except Exception as error:
                what = type(observation).__name__
                logger.error("an observer failed on %s", what, exc_info=traced(error, logger))

    return observe


NOBODY = Observers()
