"""What tests of traces share: a tracer provider that keeps its spans, and ways to look at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags


class Spans:
    """The spans that have ended, of all jobs."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.begun: list[ReadableSpan] = []
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.provider.add_span_processor(_Counting(self.begun))

    @property
    def all(self) -> list[ReadableSpan]:
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.all]

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def parent_of(self, span: ReadableSpan) -> str | None:
        """Its name; None at the root, and where that has not been kept."""
        if span.parent is None:
            return None
        return next((one.name for one in self.all if context_of(one) == span.parent.span_id), None)

    def assert_none_is_open(self) -> None:
        assert {context_of(span) for span in self.begun} == {context_of(span) for span in self.all}

    def text(self) -> str:
        """All that the spans say."""
        return "\n".join(span.to_json() for span in self.all)


class _Counting(SimpleSpanProcessor):
    def __init__(self, begun: list[ReadableSpan]) -> None:
        super().__init__(InMemorySpanExporter())
        self._begun = begun

    def on_start(self, span: ReadableSpan, parent_context: object = None) -> None:
        self._begun.append(span)

    def on_end(self, span: ReadableSpan) -> None: ...


def context_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id


def links_of(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


def outcome_of(span: ReadableSpan) -> tuple[object, str, object]:
    attributes = span.attributes or {}
    return (
        attributes.get("prompt_scheduler.outcome"),
        span.status.status_code.name,
        attributes.get("error.type"),
    )


@contextmanager
def unsampled() -> Iterator[None]:
    """A current span whose trace is not sampled."""
    context = SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(TraceFlags.DEFAULT))
    with trace.use_span(NonRecordingSpan(context)):
        yield


def keep_spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Let this process's spans be kept; the API takes a provider only once, so not by its front door."""
    kept = Spans()
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", kept.provider)
    return kept
