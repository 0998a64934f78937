"""Sets up the metrics and traces of a worker process by its settings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scheduler.engine import Engine
from scheduler.observations import Observer
from scheduler.settings import Settings
from scheduler.telemetry.needed import needs

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from scheduler.http_server import HttpServer
    from scheduler.telemetry.worker_metrics import WorkerMetrics

logger = logging.getLogger(__name__)


class Telemetry:
    """The metrics and traces of one worker process. `start()` and `stop()` are safe to call twice.

    Make the engine with `observers`, and pass it to `start`. Libraries are loaded only if the settings need
    them. `instance` names the process.

    Raises:
        ConfigError: an extra is not installed, or a variable of its library is wrong.
    """

    def __init__(self, settings: Settings, *, instance: str) -> None:
        self.observers: list[Observer] = []
        self._settings = settings
        self._metrics: WorkerMetrics | None = None
        self._server: HttpServer | None = None
        self._provider: TracerProvider | None = None
        if settings.metrics_port is not None:
            self._metrics = _worker_metrics()
            self.observers.append(self._metrics)
        if settings.traces:
            self._add_traces(instance)

    def _add_traces(self, instance: str) -> None:
        try:
            from scheduler.telemetry.sdk import set_up  # noqa: PLC0415  an extra
            from scheduler.telemetry.traces import Traces  # noqa: PLC0415  the same
        except ImportError as error:
            raise needs("traces", "otel", error) from None
        self._provider = set_up(instance)
        self.observers.append(Traces(self._settings.queue, per_s=self._settings.traces_per_s))

    async def start(self, engine: Engine) -> None:
        """Serve the metrics of the engine and the observers.

        Raises:
            ConfigError: no port is free for the metrics.
        """
        if self._metrics is None or self._server is not None:
            return
        from scheduler.http_server import HttpServer  # noqa: PLC0415  an extra
        from scheduler.telemetry.pages import HealthPages, MetricsPage  # noqa: PLC0415  the same

        routes = [*MetricsPage(engine, self._metrics).routes, *HealthPages(engine).routes]
        host, port = self._settings.metrics_host, self._settings.metrics_port or 0
        self._server = HttpServer(routes, name="metrics", host=host, port=port)
        await self._server.start()
        engine.metrics_url = f"{self._server.url}/metrics"
        logger.info("metrics are at %s", engine.metrics_url)

    async def stop(self) -> None:
        """Stop serving, and send the last spans. Stop the engine first."""
        if self._server is not None:
            await self._server.stop()
        provider, self._provider = self._provider, None
        if provider is not None:
            from scheduler.telemetry.sdk import shut_down  # noqa: PLC0415  an extra

            await shut_down(provider)


def _worker_metrics() -> WorkerMetrics:
    try:
        from scheduler.telemetry.worker_metrics import WorkerMetrics  # noqa: PLC0415  an extra
    except ImportError as error:
        raise needs("metrics_port", "metrics", error) from None
    return WorkerMetrics()
