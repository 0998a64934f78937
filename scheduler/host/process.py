"""A worker process between arq's start and its end: the engine, the signals, and leaving."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from scheduler.client import AsyncClient
from scheduler.engine import Engine, Outage, SettingsReloader, worker_id
from scheduler.errors import ConfigError, SchedulerError
from scheduler.host.arq_logs import show_logs
from scheduler.host.arq_options import arq_option
from scheduler.host.run_prompt import RunPrompt
from scheduler.logs import identify
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.errors import translate
from scheduler.settings import Settings, config_path, load_settings
from scheduler.telemetry.host import Telemetry

logger = logging.getLogger(__name__)

FAREWELL_S = 5.0
"""How long arq may take to end once the engine has stopped."""


class WorkerProcess:
    """Starts and stops the services of one worker process. `prompts` has the function that arq runs."""

    def __init__(self, settings: Settings, url: str, server: EmbeddedServer | None, outage: Outage) -> None:
        self.prompts = RunPrompt()
        self._settings = settings
        self._url = url
        self._server = server
        self._outage = outage
        self._engine: Engine | None = None
        self._client: AsyncClient | None = None
        self._telemetry: Telemetry | None = None
        self._reloader: SettingsReloader | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def on_startup(self, context: dict[str, Any]) -> None:
        """Start the engine, and take over the signals from arq."""
        show_logs(self._settings)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._server is not None:
            self._server.when_it_ends(loop, self._lose_server)
        try:
            engine = await self._start()
        except (SchedulerError, RedisError, OSError) as error:
            logger.error("%s", error if isinstance(error, SchedulerError) else translate(error, self._url))
            await self.on_shutdown(context)
            os._exit(2 if isinstance(error, ConfigError) else 1)
        _collect_garbage_less_often()
        self._take_signals(asyncio.current_task())
        if arq_option("burst"):
            await engine.run_until_drained()

    async def _start(self) -> Engine:
        redis = open_redis(self._url, timeout_s=self._settings.redis_timeout_s)
        name = worker_id(self._settings)
        self._telemetry = Telemetry(self._settings, instance=name)
        self._engine = engine = self._make_engine(redis, name, self._telemetry)
        identify(queue=self._settings.queue, worker=engine.id)
        self._reloader = SettingsReloader(engine, load_settings, config_path())
        self._client = AsyncClient(self._url, settings=self._settings)
        self.prompts.begin(self._client)
        await self._telemetry.start(engine)
        await engine.start()
        await self._reloader.start()
        return engine

    def _make_engine(self, redis: Redis, name: str, telemetry: Telemetry) -> Engine:
        return Engine(
            self._settings,
            redis,
            name=name,
            observers=telemetry.observers,
            connect=partial(open_redis, self._url, retries=0),
            outage=self._outage,
        )

    def _reload(self) -> None:
        if self._reloader is not None:  # else the process is still starting, with the new settings
            self._reloader.reload_soon()

    def _lose_server(self) -> None:
        logger.error("the embedded server has ended, so this worker process ends; start it again")
        os._exit(1)

    def _take_signals(self, main: asyncio.Task[Any] | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number), main)

    def _on_signal(self, number: signal.Signals, main: asyncio.Task[Any] | None) -> None:
        if self._stopping is not None:
            logger.warning(
                "%s again: leaving at once; running jobs return to the queue when their leases end",
                number.name,
            )
            self._end_server()
            os._exit(1)
        logger.info("%s: no more claims; send it again to leave at once", number.name)
        self._stopping = asyncio.create_task(self._stop(main))

    async def _stop(self, main: asyncio.Task[Any] | None) -> None:
        """Drain, then end arq's main task: arq's own handler can skip on_shutdown."""
        try:
            await self._stop_services()
        finally:
            asyncio.get_running_loop().call_later(FAREWELL_S, self._leave)
            if main is not None:
                main.cancel()

    def _leave(self) -> None:
        """Leave without arq: it deletes its health check at the end, and waits for Redis to do so."""
        logger.warning("arq has not ended within %g s; leaving without it", FAREWELL_S)
        self._end_server()
        os._exit(0)

    async def on_shutdown(self, context: dict[str, Any]) -> None:
        """Stop what `on_startup` started. Safe to call twice."""
        await self._stop_services()
        if self._engine is not None:
            await self._engine.queue.redis.aclose()
        if self._client is not None:
            await self._client.aclose()
        self._end_server()

    async def _stop_services(self) -> None:
        self.prompts.leave()
        if self._reloader is not None:
            await self._reloader.stop()
        if self._engine is not None:
            await self._engine.stop()
        if self._telemetry is not None:
            await self._telemetry.stop()

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.stop()


def _collect_garbage_less_often() -> None:
    """Raise the thresholds of Python's collector, which would take a quarter of a busy process's time.

    Thousands of jobs come and go and leave hardly any cycles; imported modules stay.
    """
    gc.freeze()
    gc.set_threshold(25_000, 20, 20)
