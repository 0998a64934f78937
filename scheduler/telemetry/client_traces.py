"""The client's spans: `send <queue>` around each enqueue, whose context travels in the jobs.

Uses only OpenTelemetry's API: the application decides which spans are made and where they go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import orjson
from opentelemetry import trace as otel
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from scheduler.errors import SchedulerError
from scheduler.telemetry import conventions as names
from scheduler.telemetry.failures import code_of, mark_failed

PROPAGATOR = TraceContextTextMapPropagator()


class SentJob(Protocol):
    """A job that was sent together with others."""

    @property
    def deduplicated(self) -> bool:
        """Whether it joined another job."""
        ...


class Sending:
    """One `send` span. `carrier` is its context for the stored requests: a JSON object, or empty."""

    __slots__ = ("_span", "carrier")

    def __init__(self, span: Span) -> None:
        self._span = span
        fields: dict[str, str] = {}
        PROPAGATOR.inject(fields)  # the current span is this one
        self.carrier = orjson.dumps(fields) if fields else b""

    def sent(self, job_id: str, *, deduplicated: bool, reused: bool) -> None:
        """Record that a job is in the queue, or has joined another job."""
        self._span.set_attributes(
            {
                names.MESSAGING_MESSAGE_ID: job_id,
                names.JOB_DEDUPLICATED: deduplicated,
                names.JOB_REUSED: reused,
            }
        )

    def sent_many(self, outcomes: Sequence[SentJob | SchedulerError]) -> None:
        """Record the outcomes of several jobs: some may have joined others, some may have been refused."""
        refused = [outcome for outcome in outcomes if isinstance(outcome, SchedulerError)]
        joined = sum(not isinstance(one, SchedulerError) and one.deduplicated for one in outcomes)
        self._span.set_attributes({names.JOBS_DEDUPLICATED: joined, names.JOBS_REFUSED: len(refused)})
        if refused:
            mark_failed(self._span, refused[0].code)


class ClientTraces:
    """Makes the spans of one client. `queue` is the name of its queue."""

    def __init__(self, queue: str) -> None:
        self._tracer = otel.get_tracer(names.SCOPE)
        self._span_name = f"{names.SEND} {queue}"
        self._attributes = {
            names.MESSAGING_SYSTEM: names.SYSTEM,
            names.MESSAGING_DESTINATION_NAME: queue,
            names.MESSAGING_OPERATION_NAME: names.SEND,
            names.MESSAGING_OPERATION_TYPE: names.SEND,
        }

    @contextmanager
    def sending(self, many: int | None = None) -> Iterator[Sending]:
        """The span of an enqueue, child of the caller's current span; `many` is the number of requests."""
        attributes: dict[str, str | int] = dict(self._attributes)
        if many is not None:
            attributes[names.MESSAGING_BATCH_MESSAGE_COUNT] = many
        span = self._tracer.start_span(self._span_name, kind=SpanKind.PRODUCER, attributes=attributes)
        # Messages of errors may hold text of the prompt, so the API must not record them.
        with otel.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield Sending(span)
            except BaseException as error:
                mark_failed(span, code_of(error))
                raise
