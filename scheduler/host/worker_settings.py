"""The class that `arq scheduler.WorkerSettings` runs."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import arq.worker
from arq import func
from arq.connections import RedisSettings

from scheduler import arq_jobs
from scheduler.engine import Outage
from scheduler.errors import ConfigError, SchedulerError
from scheduler.host import run_prompt
from scheduler.host.arq_check import check_settings
from scheduler.host.arq_logs import listen_to_arq
from scheduler.host.arq_options import arq_option
from scheduler.host.arq_pool import PatientArqRedis
from scheduler.host.arq_worker import EnduringWorker
from scheduler.host.process import WorkerProcess
from scheduler.printable import one_line
from scheduler.queue.keys import Keys
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.pool import connection_pool
from scheduler.redis_server.readiness import wait_for_server
from scheduler.settings import EMBEDDED, Settings, load_settings


def worker_settings() -> type:
    """Make the class that `arq scheduler.WorkerSettings` runs: reads the settings and looks for Redis.

    Called when arq asks for `scheduler.WorkerSettings`. With `--check` it starts nothing and does not wait.
    A user's mistake ends the process with one line: exit code 2 for wrong settings, 1 without Redis.
    """
    try:
        settings = load_settings()
        return _check_class(settings) if arq_option("check") else _worker_class(settings)
    except SchedulerError as error:
        _say(str(error))
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None


def _say(words: str) -> None:
    print(f"prompt-scheduler: {one_line(words)}", file=sys.stderr)  # noqa: T201  logging is not set up yet


def _check_class(settings: Settings) -> type:
    url = settings.redis_url.get_secret_value()
    if url == EMBEDDED:
        url = EmbeddedServer.running_url(settings.data_dir)
    process = WorkerProcess(settings, url, None, Outage())
    return _make_class(settings, process, redis_settings=check_settings(url), redis_pool=None)


def _worker_class(settings: Settings) -> type:
    server = None
    url = settings.redis_url.get_secret_value()
    if url == EMBEDDED:
        server = EmbeddedServer(settings.data_dir)
        server.start()
        url = server.url
    # arq's command line makes this class, and has no option for another.
    arq.worker.Worker = EnduringWorker  # type: ignore[misc]  # mypy takes the name for a type
    asyncio.run(wait_for_server(url, settings.redis_wait_s, tell=_say))
    _set_event_loop()
    outage = Outage()
    process = WorkerProcess(settings, url, server, outage)
    pool = PatientArqRedis(
        connection_pool(url, retries=3),
        outage=outage,
        timeout_s=settings.redis_timeout_s,
        default_queue_name=Keys(settings.queue).fixed("arq"),
        job_serializer=arq_jobs.encode,
        job_deserializer=arq_jobs.decode,
    )
    return _make_class(settings, process, redis_settings=RedisSettings(), redis_pool=pool)


def _make_class(settings: Settings, process: WorkerProcess, **connection: Any) -> type:
    keys = Keys(settings.queue)
    listen_to_arq(settings)
    attributes: dict[str, Any] = {
        **connection,
        "functions": [_run_prompt(settings, process)],
        "queue_name": keys.fixed("arq"),
        "health_check_key": keys.of("health", f"{socket.gethostname()}:{settings.worker_name or ''}"),
        "health_check_interval": 10,
        "poll_delay": 0.1 if arq_option("burst") else 2.0,
        "max_jobs": run_prompt.MAX_RUNNING,
        "allow_abort_jobs": True,
        "job_timeout": run_prompt.TIMEOUT_S,
        "max_tries": run_prompt.TRIES,
        "job_serializer": arq_jobs.encode,
        "job_deserializer": arq_jobs.decode,
        "log_results": False,
        "on_startup": process.on_startup,
        "on_shutdown": process.on_shutdown,
    }
    return type("WorkerSettings", (), attributes)


def _run_prompt(settings: Settings, process: WorkerProcess) -> Any:
    return func(
        process.prompts.run_prompt,  # type: ignore[arg-type]  # arq's protocol wants *args and **kwargs
        name="run_prompt",
        timeout=run_prompt.TIMEOUT_S,
        max_tries=run_prompt.TRIES,
        keep_result=settings.result_ttl_s,
    )


def _set_event_loop() -> None:
    """Give arq its event loop: uvloop's if the extra is installed."""
    try:
        import uvloop  # noqa: PLC0415  an extra
    except ImportError:
        asyncio.set_event_loop(asyncio.new_event_loop())
    else:
        asyncio.set_event_loop(uvloop.new_event_loop())
