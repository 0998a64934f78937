"""Spans of the jobs that an engine runs.

    process <queue>                 an attempt, child of the client's `send <queue>`
    ├── queue wait
    ├── stage rag
    ├── stage inference
    │   ├── batch <endpoint>        a call of several; linked with the `chat` of each member
    │   └── chat <model>
    └── stage stream

A job whose `traceparent` is not sampled gets no span, and costs next to nothing. Messages of errors stay out
of spans: they may hold text of the prompt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from scheduler.observations import AttemptBegan, CallBegan, EndedCall, Observer
from scheduler.telemetry import attributes as about
from scheduler.telemetry import conventions as names
from scheduler.telemetry.attempt_spans import (
    NO_CONTEXT,
    AttemptSpans,
    epoch_offset_ns,
    make_current,
    nanoseconds,
)
from scheduler.telemetry.bound import TraceBound
from scheduler.telemetry.failures import code_of, mark_failed
from scheduler.telemetry.messages import is_captured

PROPAGATOR = TraceContextTextMapPropagator()

FLAG_AT = 54
"""The index in a `traceparent` of the digit with the flag of a sampled trace."""
SAMPLED = frozenset("13579bdf")
"""The values of that digit in a sampled trace."""


class Traces(Observer):
    """Makes the spans of one engine's jobs. `queue` is the name of its queue, `per_s` the bound."""

    def __init__(self, queue: str, *, per_s: float = 50.0) -> None:
        self._queue = queue
        self._bound = TraceBound(per_s)
        self._captures = is_captured()
        self._tracer = otel.get_tracer(names.SCOPE)
        self._span_name = f"{names.PROCESS} {queue}"
        self._live: dict[str, AttemptSpans] = {}  # by job id
        self._calls: dict[object, _Call] = {}
        # Current in tasks without a trace, so that libraries in them do not begin one.
        self._unsampled = otel.set_span_in_context(NonRecordingSpan(_made_up()), NO_CONTEXT)

    def attempt_began(self, seen: AttemptBegan) -> None:
        """Begin the spans of a job whose trace is sampled."""
        traceparent = seen.progress.request.get(names.TRACEPARENT)
        brought = isinstance(traceparent, str)
        sampled = traceparent[FLAG_AT : FLAG_AT + 1] in SAMPLED if isinstance(traceparent, str) else True
        if sampled and self._bound.passes():
            self._follow(seen, _context_of(seen.progress.request) if brought else NO_CONTEXT)
        else:
            make_current(self._unsampled)

    def call_began(self, seen: CallBegan) -> None:
        """Begin the spans of those members of a call that have a trace."""
        traced = [
            (spans, work) for work in seen.work if (spans := self._live.get(work.request_id)) is not None
        ]
        if not traced:
            # A call runs in the context of the task that made room for it, which may belong to another trace.
            if otel_context.get_current() is not self._unsampled:
                make_current(self._unsampled)
            return
        batch, first = None, traced[0][0]
        if len(seen.work) > 1:
            batch = first.batch_began(seen.endpoint, len(seen.work))
        members = [(spans, spans.call_began(seen, work, batch)) for spans, work in traced]
        if batch is not None:
            for _, span in members:
                batch.add_link(span.get_span_context())
        self._calls[seen.call] = _Call(members, batch)
        make_current(otel.set_span_in_context(batch or members[0][1], NO_CONTEXT))

    def call_ended(self, seen: EndedCall) -> None:
        """End the span of a batch; those of its members end with their stages."""
        if call := self._calls.pop(seen, None):
            call.ended(names.CANCELLED if seen.given_up else code_of(seen.error))

    def _follow(self, seen: AttemptBegan, parent: Context) -> None:
        creation = otel.get_current_span(parent).get_span_context()
        offset_ns = epoch_offset_ns()
        span = self._tracer.start_span(
            self._span_name,
            context=parent,
            kind=SpanKind.CONSUMER,
            links=[Link(creation)] if creation.is_valid else None,
            start_time=nanoseconds(seen.claimed_at, offset_ns),
        )
        if not span.is_recording():
            self._bound.refund()
            make_current(self._unsampled)
            return
        span.set_attributes(about.of_job(self._queue, seen.job))
        spans = AttemptSpans(
            self._tracer, span, seen, offset_ns, captures=self._captures, on_end=self._forget
        )
        seen.progress.watcher = spans
        self._live[seen.job.id] = spans  # replaces a lost attempt that is not over yet

    def _forget(self, spans: AttemptSpans) -> None:
        if self._live.get(spans.job_id) is spans:
            del self._live[spans.job_id]


class _Call(NamedTuple):
    """A running call: its members with a trace, and the span of all members if there are several."""

    members: Sequence[tuple[AttemptSpans, Span]]
    batch: Span | None

    def ended(self, error: str) -> None:
        at = time.monotonic()
        if self.batch is not None:
            mark_failed(self.batch, error)
            self.batch.end(self.members[0][0].at(at))
        for spans, span in self.members:
            spans.call_ended(span, error, at)


def _context_of(request: Mapping[str, Any]) -> Context:
    found = {
        name: value
        for name in (names.TRACEPARENT, names.TRACESTATE)
        if isinstance(value := request.get(name), str)
    }
    return PROPAGATOR.extract(found, context=NO_CONTEXT)


def _made_up() -> SpanContext:
    return SpanContext(random.getrandbits(128) | 1, random.getrandbits(64) | 1, is_remote=False)
