"""`prompt-scheduler dev`: server, engine and a live log in one process."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.logging import RichHandler

from scheduler.cli.events import event_text
from scheduler.cli.output import console
from scheduler.cli.session import run, session
from scheduler.connection import check_server, mask, open_redis
from scheduler.embedded import EmbeddedServer
from scheduler.engine import Engine
from scheduler.errors import SchedulerError
from scheduler.events import Delta, decode_event
from scheduler.queue import PromptQueue
from scheduler.settings import EMBEDDED, Settings

DRAIN_S = 2.0
USUAL_PORT = 6379  # where clients look that have not been told otherwise


def dev(
    ctx: typer.Context,
    *,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the jobs' events.")] = False,
) -> None:
    """Run all in one process: a worker, and a private server.

    The server listens on port 6379 if that is free. Where a Redis is configured that is used
    instead. Ctrl-C ends all of it.
    """
    at = session(ctx)
    if "redis_url" in at.settings.model_fields_set and at.settings.redis_url != EMBEDDED:
        run(_serve(at.settings, at.settings.redis_url, quiet=quiet))
        return
    with EmbeddedServer(at.settings.data_dir, port=USUAL_PORT) as server:
        run(_serve(at.settings, server.url, private=True, quiet=quiet))


async def _serve(settings: Settings, url: str, *, private: bool = False, quiet: bool) -> None:
    shown = console(stderr=True)
    _log_to(shown)
    redis = open_redis(url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.aclose)
        await check_server(redis, url)
        engine = Engine(settings, redis)
        await engine.start()
        stack.push_async_callback(engine.stop, drain_s=DRAIN_S)
        _say_how_to_use(shown, settings, url, private=private)
        if quiet:
            await asyncio.Event().wait()
        await _show_events(redis, engine.queue, shown)


def _log_to(shown: Console) -> None:
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if shown.is_terminal:
        handler = RichHandler(console=shown, show_path=False)
    for name in ("scheduler", "workers"):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(logging.INFO)


def _say_how_to_use(shown: Console, settings: Settings, url: str, *, private: bool) -> None:
    model = next(iter(settings.routes))
    queue = "" if settings.queue == "default" else f" --queue {settings.queue}"
    # A configured Redis is found by the other terminal as well, and its URL may hold a password.
    found = not private or url.endswith(f":{USUAL_PORT}")
    where = "" if found else f" --redis-url {url}"
    asks = f"prompt-scheduler{where}{queue} enqueue 'Why is the sky blue?' --model {model} --stream"
    shown.print(f"\nRedis at {mask(url)}\nTry, in another terminal:\n\n    {asks}\n")
    shown.print("Ctrl-C ends all of it.\n")


async def _show_events(redis: Redis, queue: PromptQueue, shown: Console) -> None:
    """A line for each event of each job, without the pieces of the answers. Runs until it is cancelled."""
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
