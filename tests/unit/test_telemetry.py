"""Names of traces, what they may say, and how a process of ours sets OpenTelemetry up."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
import threading
from importlib.metadata import EntryPoint
from pathlib import Path
from types import MappingProxyType
from typing import Any

import orjson
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter

from scheduler import AsyncClient, ConfigError, PromptRequest, load_settings
from scheduler.admin.dead import changed_request
from scheduler.client.routes import KnownRoute
from scheduler.client.submission import new_job
from scheduler.stages.base import PromptContext
from scheduler.stages.pipeline import DeadlinePassed
from scheduler.telemetry import attributes as about
from scheduler.telemetry import conventions, sdk
from scheduler.telemetry.bound import TraceBound
from scheduler.telemetry.failures import code_of
from scheduler.telemetry.host import Telemetry
from scheduler.telemetry.messages import input_messages, is_captured, output_messages
from scheduler.testing import local_client
from tests.integration.trace_room import keep_spans
from tests.patience import SOON_S
from workers.base import Generation
from workers.errors import WorkerTimeout

ROOT = Path(__file__).parents[2]
TELEMETRY = ROOT / "scheduler" / "telemetry"
PREFIXES = ("gen_ai.", "messaging.", "prompt_scheduler.", "error.", "server.", "service.")
TRACED = load_settings(environ={}, traces=True)


def attribute_names() -> set[str]:
    """All that the module of conventions spells."""
    found: set[str] = set()
    for value in vars(conventions).values():
        values = value.values() if isinstance(value, MappingProxyType) else [value]
        found.update(one for one in values if isinstance(one, str) and one.startswith(PREFIXES))
    return found


# Names


@pytest.mark.parametrize("path", sorted(TELEMETRY.glob("*.py")), ids=lambda path: path.name)
def test_names_are_spelled_in_one_module(path: Path) -> None:
    if path.name == "conventions.py":
        return
    spelled = [
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert not [text for text in spelled if text.startswith(PREFIXES)]


def test_the_document_has_every_name_and_no_other() -> None:
    text = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    written = set(re.findall(r"`((?:gen_ai|messaging|prompt_scheduler|error|server|service)\.[\w.]+)`", text))
    assert written == attribute_names()


# What is loaded


def test_without_the_setting_nobody_looks_on() -> None:
    made = Telemetry(load_settings(environ={}), instance="a")
    assert made.observers == []


def test_nothing_of_opentelemetry_is_loaded_without_the_setting() -> None:
    program = """
import asyncio, sys
from scheduler.testing import local_scheduler
from scheduler.telemetry.bound import TraceBound
from scheduler.telemetry.host import Telemetry
from scheduler.settings import load_settings
import scheduler.host.worker_settings

async def main():
    Telemetry(load_settings(environ={}), instance="a")
    async with local_scheduler() as client:
        await client.run("hello")

asyncio.run(main())
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
"""
    path = f"import sys\nsys.path[:0] = {sys.path!r}\n"
    done = subprocess.run([sys.executable, "-c", path + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sdk", "traces", "client_traces"):
        monkeypatch.setitem(sys.modules, f"scheduler.telemetry.{name}", None)


@pytest.mark.usefixtures("without_extra")
def test_a_missing_extra_is_named() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'prompt-scheduler\[otel\]'"):
        Telemetry(TRACED, instance="a")
    with pytest.raises(ConfigError, match=r"pip install 'prompt-scheduler\[otel\]'"):
        AsyncClient(settings=TRACED)


# The SDK in a process of ours


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exporters of the provider that is made; no thread of theirs is started, and nothing is global."""
    made: list[Any] = []
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: None)
    monkeypatch.setattr(TracerProvider, "add_span_processor", lambda self, one: made.append(one))
    monkeypatch.setattr(sdk, "BatchSpanProcessor", lambda exporter: exporter)
    return made


def test_spans_go_by_otlp_over_http_unless_variables_say_otherwise(processors: list[Any]) -> None:
    provider = sdk.set_up("host:1:abc")
    assert [type(one) for one in processors] == [OTLPSpanExporter]
    assert provider is not None
    assert provider.resource.attributes["service.name"] == "prompt-scheduler"
    assert provider.resource.attributes["service.instance.id"] == "host:1:abc"


def test_the_resource_is_as_variables_say(processors: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "chat")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=mine,team=blue")
    provider = sdk.set_up("host:1:abc")
    assert provider is not None
    found = provider.resource.attributes
    assert (found["service.name"], found["service.instance.id"], found["team"]) == ("chat", "mine", "blue")


@pytest.mark.parametrize(
    ("name", "value", "kinds"),
    [
        ("OTEL_TRACES_EXPORTER", "none", []),
        ("OTEL_TRACES_EXPORTER", "console", [ConsoleSpanExporter]),
        ("OTEL_TRACES_EXPORTER", "otlp, console", [OTLPSpanExporter, ConsoleSpanExporter]),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", [OTLPSpanExporter]),
        ("OTEL_SDK_DISABLED", "true", []),
    ],
)
def test_the_exporter_is_the_one_that_variables_name(
    processors: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, value: str, kinds: list[type]
) -> None:
    monkeypatch.setenv(name, value)
    sdk.set_up("a")
    assert [type(one) for one in processors] == kinds


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "no exporter 'zipkin' is installed"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke", "'smoke' is unknown; give one of http/protobuf, grpc"),
    ],
)
def test_an_exporter_that_is_not_there_is_said(
    processors: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        sdk.set_up("a")


def test_an_exporter_that_cannot_be_made_is_said(
    processors: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = EntryPoint("otlp_proto_http", "builtins:no_such_exporter", sdk.EXPORTERS)
    monkeypatch.setattr(sdk, "entry_points", lambda **which: (broken,))
    with pytest.raises(ConfigError, match=r"'otlp_proto_http' cannot be made: AttributeError"):
        sdk.set_up("a")


def test_a_provider_that_somebody_has_set_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = keep_spans(monkeypatch)
    made = Telemetry(TRACED, instance="a")
    assert len(made.observers) == 1
    assert trace.get_tracer_provider() is spans.provider


async def test_a_stop_sends_what_is_left_and_leaves_the_loop_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdk, "STOP_S", SOON_S)

    class Slow(TracerProvider):
        def shutdown(self) -> None:
            began.set()
            assert loop_turns.wait(SOON_S)
            super().shutdown()
            threads.append(threading.current_thread().name)

    threads: list[str] = []
    began, loop_turns = threading.Event(), threading.Event()
    stop = asyncio.create_task(sdk.shut_down(Slow(shutdown_on_exit=False)))
    while not began.is_set():
        await asyncio.sleep(0.005)
    loop_turns.set()
    await stop
    assert threads == ["traces-shutdown"]


async def test_a_stop_does_not_wait_for_a_collector_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answered = threading.Event()

    class Stuck(TracerProvider):
        def shutdown(self) -> None:
            answered.wait(10 * SOON_S)

    monkeypatch.setattr(sdk, "STOP_S", 0.05)
    await asyncio.wait_for(sdk.shut_down(Stuck(shutdown_on_exit=False)), SOON_S)
    assert "could not be sent within 0.05 s" in caplog.text
    answered.set()


async def test_the_provider_is_shut_down_once(processors: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shut_down: list[object] = []

    async def note(provider: object) -> None:
        shut_down.append(provider)

    monkeypatch.setattr(sdk, "shut_down", note)
    made = Telemetry(TRACED, instance="a")
    await asyncio.gather(made.stop(), made.stop())
    assert len(shut_down) == 1


async def test_a_provider_of_somebody_else_is_not_shut_down(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = keep_spans(monkeypatch)
    made = Telemetry(TRACED, instance="a")
    await made.stop()
    with spans.provider.get_tracer("test").start_as_current_span("after"):
        pass
    assert [span.name for span in spans.all] == ["after"]


# What spans say


@pytest.mark.parametrize(
    ("url", "address", "port"),
    [
        ("http://engine:8000/v1", "engine", 8000),
        ("https://user:secret@api.example.com/v1?key=secret", "api.example.com", 443),
        ("http://[::1]:9/", "::1", 9),
        ("http://host:99999999/", None, None),
        ("", None, None),
    ],
)
def test_of_an_address_only_host_and_port_are_said(url: str, address: str | None, port: int | None) -> None:
    found = about.of_endpoint("chat.0", "openai", url)
    assert (found.get("server.address"), found.get("server.port")) == (address, port)
    assert found["gen_ai.provider.name"] == "openai"
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, ""),
        (WorkerTimeout("unspeakable"), "worker_timeout"),
        (DeadlinePassed("rag"), "expired"),
        (asyncio.CancelledError(), "cancelled"),
        (ValueError("unspeakable"), "ValueError"),
    ],
)
def test_an_error_goes_by_its_code_or_its_class(error: BaseException | None, code: str) -> None:
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("value", "wanted"),
    [("", False), ("false", False), ("True", True), ("span_only", True), ("event_only", False)],
)
def test_text_is_wanted_where_the_variable_says_so(value: str, wanted: bool) -> None:
    assert is_captured({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": value}) is wanted


def test_messages_have_the_shape_of_the_conventions() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    image = {"type": "image_url", "image_url": {"url": "http://picture"}}
    generation = Generation(
        model="m",
        messages=(
            {"role": "user", "content": [{"type": "text", "text": "what?"}, image]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ),
    )
    shown_call = {"type": "tool_call", "id": "1", "name": "look", "arguments": "{}"}
    assert orjson.loads(input_messages(generation)) == [
        {"role": "user", "parts": [{"type": "text", "content": "what?"}, image]},
        {"role": "assistant", "parts": [shown_call]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "1", "response": "rain"}]},
    ]
    context = _context()
    context.reasonings, context.texts, context.tool_calls = ["hm"], ["a", "b"], [call]
    assert orjson.loads(output_messages(context, "stop")) == [
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "hm"},
                {"type": "text", "content": "ab"},
                shown_call,
            ],
            "finish_reason": "stop",
        }
    ]


def _context() -> PromptContext:
    fields: dict[str, Any] = {"job_id": "a", "attempt": 1, "route": "r", "tenant": "t", "priority": 5}
    return PromptContext(**fields, prompt="p", messages=None, params={}, request={})


# How a trace travels


def test_a_trace_is_stored_beside_the_request_and_is_no_content() -> None:
    request = PromptRequest(prompt="x", dedup_key="auto")
    trace_fields = {"traceparent": "00-a-b-01", "tracestate": 'v="1"'}
    route = KnownRoute("echo", "r", uses_metadata=True)
    plain = new_job(request, route)
    traced = new_job(request, route, trace=orjson.dumps(trace_fields))
    assert orjson.loads(traced.payload) == {"prompt": "x", **trace_fields}
    assert orjson.loads(plain.payload) == {"prompt": "x"}
    assert (traced.content_hash, traced.dedup_hash) == (plain.content_hash, plain.dedup_hash)


def test_a_dead_letter_that_is_changed_keeps_its_trace() -> None:
    stored = {"prompt": "x", "traceparent": "00-a-b-01"}
    assert orjson.loads(changed_request(stored, {"prompt": "y"}, model="echo")) == {**stored, "prompt": "y"}


def test_the_client_without_async_takes_the_span_of_the_callers_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans = keep_spans(monkeypatch)
    with (
        local_client(TRACED) as client,
        trace.get_tracer("application").start_as_current_span("application"),
    ):
        assert client.run("one", timeout_s=SOON_S).text == "one"
        client.enqueue_many([PromptRequest(prompt="two")])
    assert [spans.parent_of(span) for span in spans.named("send default")] == ["application"] * 2


# The bound


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_so_many_jobs_a_second_have_spans_and_the_rest_none(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    bound = TraceBound(10, clock=clock)
    assert sum(bound.passes() for _ in range(25)) == 10
    clock.now += 0.5
    assert sum(bound.passes() for _ in range(25)) == 5
    clock.now += 3600
    assert sum(bound.passes() for _ in range(25)) == 10
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("more than traces_per_s = 10 sampled jobs a second; 1 had no spans")
    assert "36 had no spans" in second


def test_fewer_than_one_trace_a_second_are_some_after_all() -> None:
    clock = Clock()
    bound = TraceBound(0.1, clock=clock)
    assert [bound.passes(), bound.passes()] == [True, False]
    clock.now += 10
    assert bound.passes()
