"""`prompt-scheduler dev`: server, engine and a live log in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from redis.asyncio import Redis
from redis.exceptions import RedisError
from rich.console import Console

from scheduler.cli.events import event_text
from scheduler.cli.local_model import LocalModelName, ModelServer, open_local_model
from scheduler.cli.output import console
from scheduler.cli.session import Session, redis_errors, session
from scheduler.engine import Engine, SettingsReloader, worker_id
from scheduler.errors import ConfigError, SchedulerError
from scheduler.events import Delta, decode_event
from scheduler.logs import set_up
from scheduler.model import DEFAULT_MODEL
from scheduler.queue import PromptQueue
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.readiness import wait_for_server
from scheduler.redis_server.url import mask
from scheduler.settings import EMBEDDED, EndpointSettings, RouteSettings, Settings, config_path
from scheduler.telemetry.host import Telemetry

logger = logging.getLogger(__name__)

DRAIN_S = 5.0
"""The default of drain_s here: somebody is waiting at the terminal."""
LISTEN_AGAIN_S = 1.0
ECHO_DELAY_S = 0.05
"""Seconds per word of the echo."""
USUAL_PORT = 6379
"""The port of the default redis_url."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def dev(
    ctx: typer.Context,
    *,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, help="Port of the private server. Default: 6379, or any if that is in use."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the private server's data. Default: none; the data is lost at the end.",
            metavar="FOLDER",
        ),
    ] = None,
    model: Annotated[
        LocalModelName | None,
        typer.Option(
            help="Real model to serve on this machine, as the default route. Fetches it once, 130 MB. "
            "Default: an echo, unless routes are configured."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show events.")] = False,
) -> None:
    """Run a private server and a worker in one process.

    If a Redis is configured, it is used instead of a private server. Ctrl-C lets running jobs finish; a
    second Ctrl-C stops everything at once.
    """
    at = session(ctx)
    _check_name_is_free(at.settings, model)
    settings = at.settings
    if "redis_url" in settings.model_fields_set and settings.redis_url.get_secret_value() != EMBEDDED:
        if port is not None or data_dir is not None:
            raise ConfigError(
                "--port and --data-dir are for the private server, but redis_url is set: leave one out"
            )
        _run_until_signalled(_serve(at, settings.redis_url.get_secret_value(), model=model, quiet=quiet))
        return
    with EmbeddedServer(data_dir or settings.data_dir, port=port or USUAL_PORT) as server:
        if port is not None and _port(server.url) != port:
            raise ConfigError(
                f"--port {port}: is not available; the server got {_port(server.url)}: "
                "leave out the option, or stop the program that uses the port"
            )
        _run_until_signalled(_serve(at, server.url, private=True, model=model, quiet=quiet))


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _run_until_signalled(work: Coroutine[Any, Any, None]) -> None:
    """Run until a signal comes, the normal way to end; it cleans up and returns."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_until_signalled(work))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # noqa: PLC0415  an extra
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    received: list[int] = []

    def end(number: int) -> None:
        if received:
            # The kernel closes the connection to the private server, which then ends.
            os._exit(128 + number)
        received.append(number)
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, end, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise


def _check_name_is_free(settings: Settings, model: LocalModelName | None) -> None:
    if model is not None and model.value in settings.configured_routes:
        raise ConfigError(
            f"--model {model}: would hide routes.{model}, which is configured; "
            "rename that route, or leave out the option"
        )


def _load(at: Session, local: ModelServer | None) -> Settings:
    """The settings, with a local model's route first.

    If there is no route, the echo is slow enough for its answers to stream.
    """
    settings = at.load()
    configured = settings.configured_routes
    routes = {local.model.name: local.route(), **configured} if local else configured
    return settings.model_copy(update={"routes": routes or {DEFAULT_MODEL: _echo()}})


def _echo() -> RouteSettings:
    options = {"first_delay_s": ECHO_DELAY_S, "delay_s": ECHO_DELAY_S}
    return RouteSettings(endpoints=[EndpointSettings(backend="echo", options=options)])


async def _serve(
    at: Session, url: str, *, private: bool = False, model: LocalModelName | None, quiet: bool
) -> None:
    shown = console(stderr=True)
    run = partial(_run_engine, at, url, shown, private=private, quiet=quiet)
    if model is None:
        await run(None)
        return
    async with open_local_model(model, shown) as local:
        await _while_served(local, run(local))


async def _while_served(local: ModelServer, work: Coroutine[Any, Any, None]) -> None:
    """Do the work; if the model server ends before, stop it and raise the server's error."""
    ended, working = asyncio.create_task(local.failed()), asyncio.create_task(work)
    try:
        await asyncio.wait({ended, working}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.cancel()
        working.cancel()
        await asyncio.gather(ended, working, return_exceptions=True)
    if not ended.cancelled():
        raise ended.result()
    working.result()


async def _run_engine(
    at: Session, url: str, shown: Console, local: ModelServer | None, *, private: bool, quiet: bool
) -> None:
    settings = _load(at, local)
    # Its other output is for people as well.
    set_up("human" if settings.log_format == "auto" else settings.log_format, settings.log_level)
    redis = open_redis(url, timeout_s=settings.redis_timeout_s)
    async with AsyncExitStack() as stack:
        stack.enter_context(redis_errors(url))
        stack.push_async_callback(redis.aclose)
        await wait_for_server(url, 0, tell=logger.warning)
        name = worker_id(settings)
        telemetry = Telemetry(settings, instance=name)
        stack.push_async_callback(telemetry.stop)
        connect = partial(open_redis, url, retries=0)
        engine = Engine(settings, redis, name=name, observers=telemetry.observers, connect=connect)
        await telemetry.start(engine)
        await engine.start()
        if private:
            # Routes of an earlier run in this data_dir: with them, no model would be the default.
            await engine.published.withdraw({DEFAULT_MODEL, *LocalModelName} - settings.routes.keys())
        drain_s = settings.drain_s if "drain_s" in settings.model_fields_set else DRAIN_S
        stack.push_async_callback(engine.stop, drain_s=drain_s)
        reloader = SettingsReloader(engine, partial(_load, at, local), at.config or config_path())
        await reloader.start()
        stack.push_async_callback(reloader.stop)
        _say_how_to_use(shown, settings, engine.queue, url, private=private)
        if quiet:
            await asyncio.Event().wait()
        await _show_events(redis, engine.queue, shown, patient=not private)


def _say_how_to_use(
    shown: Console, settings: Settings, queue: PromptQueue, url: str, *, private: bool
) -> None:
    model = next(iter(settings.routes))
    # The other terminal finds a configured Redis by itself, and the URL may contain a password.
    where = f" --redis-url {url}" if private else ""
    name = "" if settings.queue == "default" else f" --queue {settings.queue}"
    usual = not private or _port(url) == USUAL_PORT
    lines = [
        "",
        f"Redis at {mask(url)}",
        *([] if usual else [f"This is not the default port, {USUAL_PORT}: clients need the URL."]),
        "Try, in other terminals:",
        "",
        f"    prompt-scheduler{where}{name} enqueue 'Why is the sky blue?' --model {model} --stream",
        f"    redis-cli -u {mask(url)} PSUBSCRIBE '{queue.channel('*')}'",
        "",
        "Ctrl-C lets running jobs finish, then stops everything. Press it twice to stop at once.",
        "",
    ]
    for line in lines:
        shown.print(line, soft_wrap=True)  # commands must be copyable


async def _show_events(redis: Redis, queue: PromptQueue, shown: Console, *, patient: bool) -> None:
    """Show one line per event of every job, without deltas. Runs until it is cancelled.

    `patient`: wait while Redis is away, as the engine does.
    """
    while True:
        try:
            await _listen(redis, queue, shown)
        except RedisError:
            if not patient:
                raise
            await asyncio.sleep(LISTEN_AGAIN_S)


async def _listen(redis: Redis, queue: PromptQueue, shown: Console) -> None:
    async with redis.pubsub() as pubsub:
        await pubsub.psubscribe(queue.channel("*"))
        async for message in pubsub.listen():
            if message["type"] != "pmessage":
                continue
            try:
                event = decode_event(message["data"])
            except SchedulerError:
                continue
            if not isinstance(event, Delta):
                shown.print(f"{event.job_id} ", event_text(event), sep="")
