"""What the core reports to observers, such as metrics and traces.

Derive from `Observer` and override the methods that you want; observations that nobody wants are not made.
Methods are called in the event loop, in the task in which something happened: keep them quick. Their errors
are logged and go no further. Moments are in seconds on the clock of `time.monotonic`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from scheduler.batching import Flush, Work
from scheduler.logs import traced
from scheduler.queue.records import ClaimedJob, TickReport
from workers.base import Completed

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    """How an attempt ended."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    RETRIED = "retried"
    """It failed, and the job gets another attempt."""
    GIVEN_BACK = "given_back"
    """The worker process stops."""
    LOST = "lost"
    """The job was cancelled, belongs to another process, or will when its lease ends."""


class AttemptWatcher(Protocol):
    """Follows one attempt through its stages to its end. Must not raise."""

    def stage_began(self, stage: str) -> None:
        """The stage begins, in the task that runs it."""
        ...

    def stage_ended(self, stage: str, error: BaseException | None) -> None:
        """The stage has ended, with an error or without."""
        ...

    def attempt_ended(self, seen: EndedAttempt) -> None:
        """The attempt has ended, as `Observer.attempt_ended` reports it."""
        ...


class Progress(Protocol):
    """The progress of an attempt. Set `watcher` to follow it."""

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
    """A claim brought these jobs."""

    jobs: Sequence[ClaimedJob]


class AttemptBegan(NamedTuple):
    """A job is about to enter its first stage, in the task that runs its stages."""

    job: ClaimedJob
    progress: Progress
    claimed_at: float


class EndedAttempt(Protocol):
    """An attempt whose end is in Redis, or was refused because the job belongs to another process.

    Each attempt that begins also ends; if the process stops before it could write the end, the outcome is
    `lost`. This is the engine's own record: read it at once, and do not keep it.
    """

    @property
    def job(self) -> ClaimedJob:
        """The job."""
        ...

    @property
    def progress(self) -> Progress | None:
        """Its progress; None if it ended before its first stage."""
        ...

    @property
    def outcome(self) -> Outcome:
        """How it ended."""
        ...

    @property
    def code(self) -> str:
        """The code of its error; empty without one."""
        ...

    @property
    def claimed_at(self) -> float:
        """When the claim brought it."""
        ...

    @property
    def ended_at(self) -> float:
        """When its last stage ended."""
        ...


class Flushed(NamedTuple):
    """Gathered prompts went to an endpoint as one call.

    A prompt that goes alone and at once is not reported: `Batcher.at_once` counts those.
    """

    endpoint: str
    flush: Flush


class CallBegan(NamedTuple):
    """A call begins, in the task that makes it. `call` identifies it until it has ended."""

    call: object
    endpoint: str
    backend: str
    base_url: str
    work: Sequence[Work]


class EndedCall(Protocol):
    """A call that has ended; `given_up` if nobody waited for it any more.

    Read it at once, like `EndedAttempt`.
    """

    endpoint: str
    began_at: float
    ended_at: float
    error: Exception | None
    given_up: bool


class BreakerChanged(NamedTuple):
    """An endpoint's breaker went to another state: closed, open, half_open."""

    endpoint: str
    state: str


class Written(NamedTuple):
    """Events and ends of `jobs` jobs are in Redis and published, `lag_s` after the first was ready."""

    jobs: int
    lag_s: float


class RoundTrip(NamedTuple):
    """Redis answered a script of this name after `seconds`, as measured in the event loop."""

    script: str
    seconds: float


class Ticked(NamedTuple):
    """A round of maintenance by this process, or a check whether another process does it."""

    report: TickReport


class Observer:
    """Base of observers. A method that you do not override is never called."""

    def claimed(self, seen: Claimed) -> None:
        """A claim brought jobs."""

    def attempt_began(self, seen: AttemptBegan) -> None:
        """An attempt is about to begin."""

    def attempt_ended(self, seen: EndedAttempt) -> None:
        """An attempt has ended."""

    def flushed(self, seen: Flushed) -> None:
        """Gathered prompts went out as one call."""

    def call_began(self, seen: CallBegan) -> None:
        """A call to a back end begins."""

    def call_ended(self, seen: EndedCall) -> None:
        """A call to a back end has ended."""

    def breaker_changed(self, seen: BreakerChanged) -> None:
        """A breaker went to another state."""

    def written(self, seen: Written) -> None:
        """Events and ends are in Redis."""

    def round_trip(self, seen: RoundTrip) -> None:
        """Redis answered a script."""

    def ticked(self, seen: Ticked) -> None:
        """A round of maintenance is over."""


@dataclass(frozen=True, slots=True)
class Observers:
    """The methods to call for each kind of observation; None if nobody wants it."""

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
    def of(cls, observers: Iterable[Observer]) -> Observers:
        """Find the methods that these override."""
        observers = tuple(observers)
        wanted = {kind.name: _overridden(observers, kind.name) for kind in fields(cls)}
        return cls(**{name: _guarded(methods) for name, methods in wanted.items() if methods})


def _overridden(observers: Sequence[Observer], name: str) -> list[Callable[[Any], None]]:
    methods = [getattr(one, name) for one in observers]
    return [one for one in methods if getattr(one, "__func__", None) is not getattr(Observer, name)]


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
