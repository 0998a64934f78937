"""The spans of one attempt of one job."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind

from scheduler.batching import Work
from scheduler.observations import AttemptBegan, CallBegan, EndedAttempt, Outcome
from scheduler.queue.records import ClaimedJob
from scheduler.telemetry import attributes as about
from scheduler.telemetry import conventions as names
from scheduler.telemetry.failures import code_of, mark_failed
from scheduler.telemetry.messages import input_messages, output_messages

logger = logging.getLogger(__name__)

P = ParamSpec("P")

NO_CONTEXT = Context()
INFERENCE = "inference"
FAILURES = frozenset({Outcome.FAILED, Outcome.EXPIRED, Outcome.RETRIED})


def epoch_offset_ns() -> int:
    """The offset from the clock of `time.monotonic` to that of spans, in nanoseconds."""
    return time.time_ns() - time.monotonic_ns()


def nanoseconds(moment_s: float, offset_ns: int) -> int:
    """Convert a moment of `time.monotonic` to the clock of spans."""
    return int(moment_s * 1e9) + offset_ns


def make_current(context: Context) -> None:
    """Make a span current for the rest of this task. The task is the job's own, so nothing restores it."""
    otel_context.attach(context)


def _unraised(
    method: Callable[Concatenate[AttemptSpans, P], None],
) -> Callable[Concatenate[AttemptSpans, P], None]:
    """Log errors of spans, so that none ends a job."""

    @wraps(method)
    def guarded(self: AttemptSpans, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception:
            logger.exception("%s failed", method.__qualname__)

    return guarded


class AttemptSpans:
    """Follows an attempt through its stages and calls, and ends all of its spans with it.

    With `captures`, the spans of calls hold the texts of prompt and answer.
    """

    __slots__ = (
        "_call",
        "_call_began_at",
        "_call_error",
        "_captures",
        "_context",
        "_ended",
        "_offset_ns",
        "_on_end",
        "_progress",
        "_span",
        "_stage",
        "_stage_context",
        "_tracer",
        "_unended",
        "job_id",
    )

    def __init__(
        self,
        tracer: otel.Tracer,
        span: Span,
        seen: AttemptBegan,
        offset_ns: int,
        *,
        captures: bool,
        on_end: Callable[[AttemptSpans], None],
    ) -> None:
        self.job_id = seen.job.id
        self._progress = seen.progress
        self._on_end = on_end
        self._tracer = tracer
        self._span = span
        self._offset_ns = offset_ns
        self._captures = captures
        self._context = self._stage_context = otel.set_span_in_context(span, NO_CONTEXT)
        self._stage: Span | None = None
        self._call: Span | None = None
        self._call_began_at = 0.0
        self._call_error: tuple[str, float] | None = None
        # Filters hold back the last of the answer until its call is over: spans that capture it end later.
        self._unended: list[tuple[Span, int, str]] = []
        self._ended = False
        make_current(self._context)
        self._report_wait(seen.job, seen.claimed_at)

    def _report_wait(self, job: ClaimedJob, claimed_at: float) -> None:
        wait = self._tracer.start_span(
            names.QUEUE_WAIT_SPAN,
            context=self._context,
            start_time=self.at(claimed_at - job.waited_ms / 1000),
            attributes={names.LANE: job.lane, names.PRIORITY: job.priority},
        )
        wait.end(self.at(claimed_at))

    # Stages

    @_unraised
    def stage_began(self, stage: str) -> None:
        """See `AttemptWatcher`."""
        if self._ended:
            return
        self._stage = self._tracer.start_span(
            names.STAGE_SPAN + stage, context=self._context, start_time=self._now()
        )
        self._stage_context = otel.set_span_in_context(self._stage, NO_CONTEXT)
        make_current(self._stage_context)

    @_unraised
    def stage_ended(self, stage: str, error: BaseException | None) -> None:
        """See `AttemptWatcher`."""
        if self._ended:
            return
        code = code_of(error)
        if stage == INFERENCE:
            self._end_call(time.monotonic(), code)
        self._end_stage(code)
        make_current(self._context)

    def _end_stage(self, error: str) -> None:
        stage, self._stage, self._stage_context = self._stage, None, self._context
        if stage is not None:
            mark_failed(stage, error)
            stage.end(self._now())

    # Calls

    def batch_began(self, endpoint: str, size: int) -> Span:
        """Begin the span of a call with several members, of which this attempt is one."""
        return self._tracer.start_span(
            names.BATCH_SPAN + endpoint,
            context=self._stage_context,
            start_time=self._now(),
            attributes={names.ENDPOINT: endpoint, names.BATCH_SIZE: size},
        )

    def call_began(self, seen: CallBegan, work: Work, batch: Span | None) -> Span:
        """Begin the span of a call with this attempt's prompt; `batch` is the span of all members."""
        began_at = time.monotonic()
        self._end_call(began_at, "")  # the one before failed or was given up
        call = self._tracer.start_span(
            f"{about.operation_of(work)} {work.model}",
            context=self._stage_context,
            kind=SpanKind.CLIENT,
            attributes={
                **about.of_endpoint(seen.endpoint, seen.backend, seen.base_url),
                **about.of_work(work),
            },
            links=[Link(batch.get_span_context())] if batch is not None else None,
            start_time=self.at(began_at),
        )
        if self._captures:
            call.set_attribute(names.GEN_AI_INPUT_MESSAGES, input_messages(work))
        self._call, self._call_began_at, self._call_error = call, began_at, None
        return call

    def call_ended(self, call: Span, error: str, at: float) -> None:
        """Note the error of a call. Its answer has not arrived yet, so the span ends with the stage."""
        if call is self._call and error:
            self._call_error = error, at

    def _end_call(self, at: float, error: str) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        progress, finish_reason = self._progress, "error"
        if (first_at := progress.first_token_at) is not None:
            call.set_attribute(names.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first_at - self._call_began_at)
            call.add_event(names.FIRST_TOKEN_EVENT, timestamp=self.at(first_at))
        if progress.completed is not None:
            finish_reason = progress.completed.finish_reason
            call.set_attributes(about.of_answer(progress.completed))
        elif self._call_error is not None:
            error, at = self._call_error
            mark_failed(call, error)
        else:
            mark_failed(call, error or names.ERROR_OTHER)
        if self._captures:
            self._unended.append((call, self.at(at), finish_reason))
        else:
            call.end(self.at(at))

    # The end

    @_unraised
    def attempt_ended(self, seen: EndedAttempt) -> None:
        """See `AttemptWatcher`. Nothing that the attempt does after this gets a span."""
        if self._ended:
            return
        self._on_end(self)
        self._end_call(seen.ended_at, seen.outcome.value)
        self._end_stage(seen.outcome.value)
        self._ended = True
        for call, at_ns, finish_reason in self._unended:
            call.set_attribute(names.GEN_AI_OUTPUT_MESSAGES, output_messages(self._progress, finish_reason))
            call.end(at_ns)
        self._end_span(seen)
        self._progress.watcher = None  # a reference cycle would wait for the garbage collector

    def _end_span(self, seen: EndedAttempt) -> None:
        span = self._span
        span.set_attribute(names.OUTCOME, seen.outcome.value)
        if self._progress.endpoint:
            span.set_attribute(names.ENDPOINT, self._progress.endpoint)
        if seen.outcome in FAILURES:
            mark_failed(span, seen.code or seen.outcome.value)
        if seen.outcome is not Outcome.LOST:
            span.add_event(names.WRITTEN_EVENT, timestamp=self._now())
        span.end(self.at(seen.ended_at))

    def at(self, moment_s: float) -> int:
        """Convert a moment of `time.monotonic` to the clock of these spans."""
        return nanoseconds(moment_s, self._offset_ns)

    def _now(self) -> int:
        return time.monotonic_ns() + self._offset_ns
