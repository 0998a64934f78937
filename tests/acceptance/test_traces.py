"""A whole trace, over OpenTelemetry's own protocol, from a client and a real worker process."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from scheduler import AsyncClient, Delta, Event, Retrying, load_settings
from tests.acceptance.conftest import StartWorker, wait_for_line
from tests.contracts.openai_server import OpenAIServer
from tests.contracts.wire import Request, answer, listening
from tests.patience import SOON_S

MARKER = "unspeakable"


class Receiver:
    """Takes OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.requests: list[ExportTraceServiceRequest] = []
        bodies, requests = self.bodies, self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                assert self.headers["Content-Type"] == "application/x-protobuf"
                bodies.append(body)
                requests.append(ExportTraceServiceRequest.FromString(body))
                content = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)

    @property
    def spans(self) -> list[tuple[str, Span]]:
        """By the name of the service that made them."""
        return [
            (str(attributes_of(of_service.resource.attributes)["service.name"]), span)
            for request in self.requests
            for of_service in request.resource_spans
            for scope in of_service.scope_spans
            for span in scope.spans
        ]

    def named(self, name: str) -> list[Span]:
        found = [span for _, span in self.spans if span.name == name]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes_of(pairs: Iterable[KeyValue]) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in pairs}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.thread.join()
    receiver.server.server_close()


@pytest.fixture
def application(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> TracerProvider:
    """The tracer provider of the client's process, which is the application's own."""
    resource = Resource.create({"service.name": "application"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=f"{receiver.url}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    return provider


class StumblingServer(OpenAIServer):
    """Has no answer to the first prompt, with others nor alone, and says so with words of it."""

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        asked = [each for each in self.requests if f"{MARKER} one" in repr(each.body)]
        if request in asked[:2]:
            await answer(500, {"error": {"message": f"out of memory at {MARKER}"}})(writer)
            return
        await super().respond(request, writer)


@pytest.fixture
async def engine_server() -> AsyncIterator[StumblingServer]:
    async with listening(StumblingServer()) as server:
        yield server


async def test_a_streamed_batched_and_retried_job_is_one_whole_trace(
    valkey_url: str,
    start_worker: StartWorker,
    receiver: Receiver,
    application: TracerProvider,
    engine_server: StumblingServer,
) -> None:
    settings = load_settings(environ={}, redis_url=valkey_url, traces=True, routes=routes(engine_server))
    async with AsyncClient(settings=settings) as client:
        with trace.get_tracer("shop").start_as_current_span("checkout"):
            job = await client.enqueue(
                f"{MARKER} one two", model="chat", dedup_key=f"key-{MARKER}", params={"max_tokens": 4}
            )
        other = await client.enqueue(f"{MARKER} three", model="chat", params={"max_tokens": 4})
        worker = await asyncio.to_thread(
            start_worker,
            valkey_url,
            toml=toml(engine_server),
            SCHEDULER_TRACES="true",
            SCHEDULER_RETRY_BASE_S="0",
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )
        events: list[Event] = [event async for event in job.events()]
        result = await job.result(timeout_s=SOON_S)
        await other.result(timeout_s=SOON_S)
    worker.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(worker.wait, SOON_S) == 0
    await asyncio.to_thread(application.shutdown)

    assert MARKER in result.text
    assert any(isinstance(event, Delta) for event in events)
    assert any(isinstance(event, Retrying) for event in events)
    check_trace(receiver, job.id)
    assert len(receiver.bodies) >= 2
    assert not [body for body in receiver.bodies if MARKER.encode() in body]


def check_trace(receiver: Receiver, job_id: str) -> None:
    (root,) = receiver.named("checkout")
    ours = [(service, span) for service, span in receiver.spans if span.trace_id == root.trace_id]
    by_id = {span.span_id: span for _, span in ours}
    assert len(by_id) == len(ours)
    of_service = {service: {span.name for of, span in ours if of == service} for service, _ in ours}
    assert of_service["application"] == {"checkout", "send default"}
    (sent,) = [span for _, span in ours if span.name == "send default"]
    assert sent.parent_span_id == root.span_id
    assert sent.kind == Span.SPAN_KIND_PRODUCER
    assert attributes_of(sent.attributes)["messaging.message.id"] == job_id

    first, second = [span for span in receiver.named("process default") if span.trace_id == root.trace_id]
    for number, (process, outcome) in enumerate([(first, "retried"), (second, "done")], start=1):
        assert process.parent_span_id == sent.span_id
        assert process.kind == Span.SPAN_KIND_CONSUMER
        attributes = attributes_of(process.attributes)
        assert attributes["messaging.message.id"] == job_id
        assert attributes["prompt_scheduler.attempt"] == number
        assert attributes["prompt_scheduler.outcome"] == outcome
        below = {span.name: span for _, span in ours if span.parent_span_id == process.span_id}
        assert {"queue wait", "stage inference"} <= below.keys()
        # With the other prompt and then alone; alone.
        calls = [
            span
            for _, span in ours
            if span.parent_span_id == below["stage inference"].span_id and span.name.startswith("text")
        ]
        assert [call.name for call in calls] == ["text_completion tiny"] * (3 - number)
        call = calls[-1]
        assert attributes_of(call.attributes)["gen_ai.provider.name"] == "vllm"
    assert first.status.code == Status.STATUS_CODE_ERROR
    assert first.status.message == ""
    assert attributes_of(first.attributes)["error.type"] == "worker_unavailable"
    assert second.status.code == Status.STATUS_CODE_UNSET
    assert attributes_of(call.attributes)["gen_ai.usage.output_tokens"] == 4
    assert [event.name for event in call.events] == ["prompt_scheduler.first_token"]
    assert {"stage post", "stage stream"} <= below.keys()
    check_batch(receiver)
    instance = next(
        attributes_of(one.resource.attributes)
        for request in receiver.requests
        for one in request.resource_spans
        if attributes_of(one.resource.attributes)["service.name"] == "prompt-scheduler"
    )
    assert str(instance["service.instance.id"]).count(":") >= 2
    assert instance["deployment.environment.name"] == "test"


def check_batch(receiver: Receiver) -> None:
    batch, *_ = receiver.named("batch chat.0")
    members = {link.span_id for link in batch.links}
    linked = [span for span in receiver.named("text_completion tiny") if span.span_id in members]
    assert len(linked) == 2, "both jobs were members of the first call"
    assert all([link.span_id for link in span.links] == [batch.span_id] for span in linked)
    assert batch.parent_span_id in {span.parent_span_id for span in linked}
    assert batch.trace_id in {span.trace_id for span in linked}
    assert len({span.trace_id for span in linked}) == 2
    assert batch.status.code == Status.STATUS_CODE_ERROR


def routes(server: StumblingServer) -> dict[str, object]:
    endpoint = {"backend": "vllm", "base_url": server.base_url, "model": "tiny"}
    return {"chat": {"endpoints": [endpoint]}}


def toml(server: StumblingServer) -> str:
    return f"""
        [routes.chat]
        [[routes.chat.endpoints]]
        backend = "vllm"
        base_url = "{server.base_url}"
        model = "tiny"
        max_in_flight = 8
    """


def test_traces_without_the_extra_are_explained_in_one_line(
    valkey_url: str, start_worker: StartWorker, tmp_path_factory: pytest.TempPathFactory
) -> None:
    hidden = tmp_path_factory.mktemp("hidden")
    (hidden / "opentelemetry.py").write_text("raise ImportError('not installed')")
    worker = start_worker(valkey_url, wait=False, SCHEDULER_TRACES="true", PYTHONPATH=str(hidden))
    line = wait_for_line(worker, "traces")
    assert "pip install 'prompt-scheduler[otel]'" in line
    assert worker.wait(SOON_S) == 2
