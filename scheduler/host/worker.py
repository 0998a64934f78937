"""The arq host: `arq scheduler.WorkerSettings` is a worker process.

arq gives the process its command line, logging, health check and burst mode, and runs `run_prompt` for
applications that know arq. Prompts do not pass through arq's queue: the engine moves them.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, cast

import arq.worker
import click
from arq import Retry as ArqRetry
from arq import func
from arq.connections import RedisSettings
from redis.asyncio.connection import parse_url
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import RedisError

from scheduler import arq_jobs
from scheduler.client import AsyncClient
from scheduler.engine import Engine, Outage, SettingsReloader, worker_id
from scheduler.errors import (
    ConfigError,
    InvalidRequest,
    RedisOutOfMemory,
    RedisUnavailable,
    ResultTimeout,
    SchedulerError,
)
from scheduler.host.arq_pool import PatientArqRedis
from scheduler.host.arq_worker import EnduringWorker
from scheduler.logs import OURS, identify, is_ours, set_up, wordless
from scheduler.model import PromptRequest
from scheduler.printable import one_line
from scheduler.queue.keys import Keys
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.errors import translate, translated
from scheduler.redis_server.pool import connection_pool
from scheduler.redis_server.readiness import wait_for_server
from scheduler.redis_server.sentinel import SentinelUrl, is_sentinel
from scheduler.redis_server.url import tls_options
from scheduler.settings import EMBEDDED, Settings, config_path, load_settings
from scheduler.telemetry.host import Telemetry

logger = logging.getLogger(__name__)

# After a crash arq holds a job back for its longest function's timeout: wait in slices, and ask to run again.
RUN_PROMPT_WAIT_S = 60.0
RUN_PROMPT_TIMEOUT_S = 75.0
RUN_PROMPT_TRIES = 100_000
RUN_PROMPT_MAX = 1000

# What arq says of each of its jobs, and every ten seconds.
ARQ_CHATTER = ("→", "←", "↻", "⊘", "recording health")

# The engine has stopped: how long arq may take to end as well.
FAREWELL_S = 5.0


def worker_settings() -> type:
    """Make the class that `arq scheduler.WorkerSettings` runs: reads the settings and looks for Redis.

    Called when arq asks for `scheduler.WorkerSettings`. With `--check` it starts and waits for nothing.
    A user's mistake ends the process with one line: exit code 2 for wrong settings, 1 without Redis.
    """
    checking = bool(_arq_option("check"))
    try:
        settings = load_settings()
        server = None
        url = settings.redis_url.get_secret_value()
        if url == EMBEDDED and not checking:
            server = EmbeddedServer(settings.data_dir)
            server.start()
            url = server.url
        elif url == EMBEDDED:
            url = EmbeddedServer.running_url(settings.data_dir)
        if not checking:
            # arq's command line makes this, and has no option for another.
            arq.worker.Worker = EnduringWorker  # type: ignore[misc]  # it is to be one of that kind everywhere
            asyncio.run(wait_for_server(url, settings.redis_wait_s, tell=_say))
            _set_event_loop()
        return _make_class(settings, url, server)
    except SchedulerError as error:
        _say(str(error))
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None


def _say(words: str) -> None:
    print(f"prompt-scheduler: {one_line(words)}", file=sys.stderr)  # noqa: T201  logging is not set up yet


def _make_class(settings: Settings, url: str, server: EmbeddedServer | None) -> type:
    keys = Keys(settings.queue)
    _listen_to_arq(settings)
    outage = Outage()
    host = _Host(settings, url, server, outage)
    burst = bool(_arq_option("burst"))
    attributes: dict[str, Any] = {
        "functions": [
            func(
                host.run_prompt,  # type: ignore[arg-type]
                name="run_prompt",
                timeout=RUN_PROMPT_TIMEOUT_S,
                max_tries=RUN_PROMPT_TRIES,
                keep_result=settings.result_ttl_s,
            )
        ],
        # A worker process has its pool; only the check makes one of these.
        "redis_settings": _arq_settings(url) if _arq_option("check") else RedisSettings(),
        "redis_pool": None,
        "queue_name": keys.fixed("arq"),
        "health_check_key": keys.of("health", f"{socket.gethostname()}:{settings.worker_name or ''}"),
        "health_check_interval": 10,
        "poll_delay": 0.1 if burst else 2.0,
        "max_jobs": RUN_PROMPT_MAX,
        "allow_abort_jobs": True,
        "job_timeout": RUN_PROMPT_TIMEOUT_S,
        "max_tries": RUN_PROMPT_TRIES,
        "job_serializer": arq_jobs.encode,
        "job_deserializer": arq_jobs.decode,
        "log_results": False,
        "on_startup": host.on_startup,
        "on_shutdown": host.on_shutdown,
    }
    if not _arq_option("check"):
        attributes["redis_pool"] = PatientArqRedis(
            connection_pool(url, retries=3),
            outage=outage,
            timeout_s=settings.redis_timeout_s,
            default_queue_name=keys.fixed("arq"),
            job_serializer=arq_jobs.encode,
            job_deserializer=arq_jobs.decode,
        )
    return type("WorkerSettings", (), attributes)


def _arq_settings(url: str) -> RedisSettings:
    """What `arq --check` connects by.

    Raises:
        RedisUnavailable: no sentinel knows a primary.
    """
    if not is_sentinel(url):
        settings = RedisSettings.from_dsn(url)
        if settings.ssl:
            known = {field.name for field in fields(settings)}
            options = {**tls_options(url), **parse_url(url)}
            for name in known & {name for name in options if name.startswith("ssl_")}:
                setattr(settings, name, options[name])
        return settings
    at = SentinelUrl.parse(url)
    # arq would ask sentinels without TLS and without credentials.
    host, port = asyncio.run(_primary(url))
    return RedisSettings(
        host=host,
        port=port,
        database=at.db,
        username=at.username,
        password=at.password,
        ssl=at.tls,
        ssl_ca_certs=at.ssl_ca_certs,
        ssl_check_hostname=at.tls,
    )


async def _primary(url: str) -> tuple[str, int]:
    pool = cast("SentinelConnectionPool", connection_pool(url, retries=0))
    try:
        with translated(url):
            host, port = await pool.get_master_address()
        return str(host), int(port)
    finally:
        await pool.disconnect()


class _Host:
    """What one worker process holds between arq's start and its end."""

    def __init__(self, settings: Settings, url: str, server: EmbeddedServer | None, outage: Outage) -> None:
        self._settings = settings
        self._url = url
        self._server = server
        self._outage = outage
        self._engine: Engine | None = None
        self._client: AsyncClient | None = None
        self._telemetry: Telemetry | None = None
        self._reloader: SettingsReloader | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()

    async def on_startup(self, context: dict[str, Any]) -> None:
        """Start the engine, and take the signals over from arq."""
        _show_logs(self._settings)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._server is not None:
            self._server.when_it_ends(loop, self._lose_server)
        redis = open_redis(self._url, timeout_s=self._settings.redis_timeout_s)
        try:
            name = worker_id(self._settings)
            self._telemetry = Telemetry(self._settings, instance=name)
            self._engine = Engine(
                self._settings,
                redis,
                name=name,
                observers=self._telemetry.observers,
                connect=partial(open_redis, self._url, retries=0),
                outage=self._outage,
            )
            identify(queue=self._settings.queue, worker=self._engine.id)
            self._reloader = SettingsReloader(self._engine, load_settings, config_path())
            self._client = AsyncClient(self._url, settings=self._settings)
            await self._telemetry.start(self._engine)
            await self._engine.start()
        except (SchedulerError, RedisError, OSError) as error:
            logger.error("%s", error if isinstance(error, SchedulerError) else translate(error, self._url))
            await self.on_shutdown(context)
            os._exit(2 if isinstance(error, ConfigError) else 1)
        await self._reloader.start()
        _collect_garbage_less_often()
        self._take_signals(asyncio.current_task())
        if _arq_option("burst"):
            await self._engine.run_until_drained()

    def _reload(self) -> None:
        if self._reloader is not None:  # else it is only starting, with the settings as they are
            self._reloader.reload_soon()

    def _lose_server(self) -> None:
        logger.error("the embedded server has ended, and with it this worker process; start it again")
        os._exit(1)

    def _take_signals(self, main: asyncio.Task[Any] | None) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, signal.Signals(number), main)

    def _on_signal(self, number: signal.Signals, main: asyncio.Task[Any] | None) -> None:
        if self._stopping is not None:
            logger.warning("%s again: leaving at once; what runs comes back when its lease ends", number.name)
            self._end_server()
            os._exit(1)
        logger.info("%s: no more claims; once more to leave at once", number.name)
        self._stopping = asyncio.create_task(self._stop(main))

    async def _stop(self, main: asyncio.Task[Any] | None) -> None:
        """Drain, then end arq's main task: its own handler has been seen to skip on_shutdown."""
        self._leaving.set()
        try:
            if self._reloader is not None:
                await self._reloader.stop()
            if self._engine is not None:
                await self._engine.stop()
            if self._telemetry is not None:
                await self._telemetry.stop()
        finally:
            asyncio.get_running_loop().call_later(FAREWELL_S, self._leave)
            if main is not None:
                main.cancel()

    def _leave(self) -> None:
        """arq deletes its health check on the way out, and does not get done while Redis is away."""
        logger.warning("arq has not ended within %g s; leaving without it", FAREWELL_S)
        self._end_server()
        os._exit(0)

    async def on_shutdown(self, context: dict[str, Any]) -> None:
        """Stop what `on_startup` started. Safe to call twice."""
        self._leaving.set()
        if self._reloader is not None:
            await self._reloader.stop()
        if self._engine is not None:
            await self._engine.stop()
            await self._engine.queue.redis.aclose()
        if self._telemetry is not None:
            await self._telemetry.stop()
        if self._client is not None:
            await self._client.aclose()
        self._end_server()

    def _end_server(self) -> None:
        if self._server is not None:
            self._server.stop()

    async def run_prompt(self, context: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """The arq function: enqueue a prompt, wait for its result, return it as JSON values.

        `request` has the fields of `PromptRequest`. The job's id comes from arq's job id and enqueue time, so
        that a second run of the arq job joins the job of the first. Aborting the arq job cancels the prompt.
        """
        began = time.monotonic()
        if self._client is None or self._leaving.is_set():
            raise ArqRetry(defer=1)
        if not isinstance(request, dict):
            raise InvalidRequest("request: give run_prompt one mapping with the fields of PromptRequest")
        fields = {"job_id": _job_id(context), **request}
        try:
            await self._client.connect()
            job = await self._client.enqueue(PromptRequest.parse(**fields))
        except (RedisUnavailable, RedisOutOfMemory):
            raise ArqRetry(defer=1) from None
        try:
            return await self._unless_leaving(lambda: job.result(timeout_s=RUN_PROMPT_WAIT_S))
        except asyncio.CancelledError:
            # arq ends a run in this way also when the process leaves, and when it has taken too long.
            if not self._leaving.is_set() and time.monotonic() - began < RUN_PROMPT_TIMEOUT_S:
                await job.cancel()
            raise

    async def _unless_leaving(self, wait: Callable[[], Any]) -> dict[str, Any]:
        result = asyncio.create_task(wait())
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ArqRetry(defer=1)
            return (await result).model_dump(mode="json")  # type: ignore[no-any-return]
        except ResultTimeout:
            raise ArqRetry(defer=0) from None
        finally:
            leaving.cancel()
            result.cancel()


def _job_id(context: dict[str, Any]) -> str:
    enqueued_at = context["enqueue_time"].isoformat()
    digest = hashlib.blake2b(f"{context['job_id']}\0{enqueued_at}".encode(), digest_size=16).hexdigest()
    return f"arq-{digest}"


def _arq_option(name: str) -> Any:
    """An option of arq's command line; None where arq does not run from there."""
    command = click.get_current_context(silent=True)
    return command.params.get(name) if command else None


def _set_event_loop() -> None:
    """Give arq its event loop: uvloop's where the extra is installed."""
    try:
        import uvloop  # noqa: PLC0415  an extra
    except ImportError:
        asyncio.set_event_loop(asyncio.new_event_loop())
    else:
        asyncio.set_event_loop(uvloop.new_event_loop())


def _collect_garbage_less_often() -> None:
    """Python's collector takes a quarter of the time of a busy worker process with its usual thresholds.

    Jobs come and go by the thousand and leave hardly a cycle behind; what has been imported stays.
    """
    gc.freeze()
    gc.set_threshold(25_000, 20, 20)


def _show_logs(settings: Settings) -> None:
    """Set up logging, unless somebody has. Safe to call twice.

    arq sets up its own logger and no other. Where a user has done that in his way, and has said nothing of
    ours, they speak through it.
    """
    if logging.getLogger().handlers:
        return
    loggers = [logging.getLogger(name) for name in OURS]
    if not _arq_option("custom_log_dict") and not any(log.handlers for log in loggers):
        set_up(settings.log_format, "debug" if _arq_option("verbose") else settings.log_level)
        return
    arq = logging.getLogger("arq")
    for log in loggers:
        if not log.handlers:
            log.handlers = list(arq.handlers)
            log.setLevel(arq.level or logging.INFO)


def _listen_to_arq(settings: Settings) -> None:
    """Set up logging with the first line that arq says: before it calls us, after it has set up its own."""
    log = logging.getLogger("arq.worker")
    for one in [one for one in log.filters if isinstance(one, _ArqLines)]:
        log.removeFilter(one)
    log.addFilter(_ArqLines(settings))


class _ArqLines(logging.Filter):
    """Takes the words of exceptions out of arq's lines, and from info those that come with every job."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings
        self._begun = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is to be written."""
        if not self._begun:
            self._begun = True
            identify(queue=self._settings.queue)
            _show_logs(self._settings)
        log = logging.getLogger(record.name)
        if log.isEnabledFor(logging.DEBUG):
            return True
        _take_words_out(record)
        if not is_ours():
            return True
        chatter = record.levelno == logging.INFO and any(mark in str(record.msg) for mark in ARQ_CHATTER)
        return log.isEnabledFor(record.levelno) and not chatter


def _take_words_out(record: logging.LogRecord) -> None:
    if isinstance(record.args, tuple):
        record.args = tuple(
            getattr(one, "code", type(one).__name__) if isinstance(one, BaseException) else one
            for one in record.args
        )
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        stand_in = wordless(error)
        record.exc_info = (type(stand_in), stand_in, stand_in.__traceback__)
