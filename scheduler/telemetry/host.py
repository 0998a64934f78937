"""Puts together what looks on in a worker process, as its settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.engine import Engine
from scheduler.errors import ConfigError
from scheduler.settings import Settings

if TYPE_CHECKING:
    from scheduler.telemetry.server import MetricsServer
    from scheduler.telemetry.worker_metrics import WorkerMetrics


class Telemetry:
    """What looks on in one worker process. `start()` and `stop()` are safe to call twice.

    `observers` are for the engine, which is made with them; `start` gets that engine.

    Raises:
        ConfigError: an extra that the settings need is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self.observers: list[object] = []
        self._settings = settings
        self._metrics: WorkerMetrics | None = None
        self._server: MetricsServer | None = None
        if settings.metrics_port is not None:
            try:
                from scheduler.telemetry.worker_metrics import WorkerMetrics  # noqa: PLC0415  an extra
            except ImportError as error:
                raise _needs("metrics_port", "metrics", error) from None
            self._metrics = WorkerMetrics()
            self.observers.append(self._metrics)

    async def start(self, engine: Engine) -> None:
        """Begin to serve what the engine's observers and the engine know.

        Raises:
            ConfigError: the metrics have no port.
        """
        if self._metrics is None or self._server is not None:
            return
        from scheduler.telemetry.server import MetricsServer  # noqa: PLC0415  an extra

        settings = self._settings
        self._server = MetricsServer(
            engine, self._metrics, host=settings.metrics_host, port=settings.metrics_port or 0
        )
        await self._server.start()

    async def stop(self) -> None:
        """Stop serving. The engine should have stopped before."""
        if self._server is not None:
            await self._server.stop()


def _needs(setting: str, extra: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"{setting}: needs what is not installed ({error.name}): pip install 'prompt-scheduler[{extra}]'"
    )
