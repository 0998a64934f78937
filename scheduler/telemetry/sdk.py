"""Sets up OpenTelemetry's SDK in a worker process, by the standard `OTEL_*` variables.

An application sets up its own. The SDK and its exporters read most variables themselves; the ones read here
are those that they leave to the program.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points, version

from opentelemetry import trace as otel
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

from scheduler.errors import ConfigError
from scheduler.telemetry import conventions as names

logger = logging.getLogger(__name__)

DISTRIBUTION = "prompt-scheduler"
STOP_S = 2.0
"""How long a stop waits for the last spans."""

EXPORTERS = "opentelemetry_traces_exporter"
"""The group of entry points with which packages offer exporters."""

OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def set_up(instance: str) -> TracerProvider | None:
    """Make the process's tracer provider; None if the program has set one. `instance` names the process.

    Raises:
        ConfigError: a variable names an exporter that is not installed, or the exporter rejects a variable.
    """
    if not isinstance(otel.get_tracer_provider(), otel.ProxyTracerProvider):
        return None
    provider = TracerProvider(resource=_resource(instance), shutdown_on_exit=False)
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true":
        for exporter in _exporters():
            provider.add_span_processor(BatchSpanProcessor(exporter))
    otel.set_tracer_provider(provider)
    return provider


async def shut_down(provider: TracerProvider) -> None:
    """Send the spans that are left, for at most `STOP_S` seconds. Does not block the event loop."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def work() -> None:
        provider.shutdown()
        try:
            loop.call_soon_threadsafe(done.set)
        except RuntimeError:
            return  # the loop has been closed

    # Not one of the loop's threads: the interpreter would wait for it at the end.
    threading.Thread(target=work, name="traces-shutdown", daemon=True).start()
    try:
        async with asyncio.timeout(STOP_S):
            await done.wait()
    except TimeoutError:
        logger.warning("the last traces could not be sent within %g s; they are lost", STOP_S)


def _resource(instance: str) -> Resource:
    given = OTELResourceDetector().detect().attributes
    ours = {
        names.SERVICE_NAME: DISTRIBUTION,
        names.SERVICE_VERSION: version(DISTRIBUTION),
        names.SERVICE_INSTANCE_ID: instance,
    }
    return Resource.create({name: value for name, value in ours.items() if name not in given})


def _exporters() -> Iterator[SpanExporter]:
    wanted = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    for name in (part.strip() for part in wanted.split(",")):
        if name and name != "none":
            yield _exporter(_otlp() if name == "otlp" else name)


def _otlp() -> str:
    protocol = (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    ).strip()
    if protocol not in OTLP:
        raise ConfigError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} is unknown; give one of {', '.join(OTLP)}"
        )
    return OTLP[protocol]


def _exporter(name: str) -> SpanExporter:
    found = tuple(entry_points(group=EXPORTERS, name=name))
    if not found:
        known = ", ".join(sorted(entry.name for entry in entry_points(group=EXPORTERS)))
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER, OTEL_EXPORTER_OTLP_PROTOCOL: no exporter {name!r} is installed; "
            f"give one of {known}, or none"
        )
    try:
        exporter: SpanExporter = found[0].load()()
    except Exception as error:
        raise ConfigError(
            f"the exporter {name!r} cannot be made: {type(error).__name__}: {error}; see its OTEL_* variables"
        ) from error
    return exporter
