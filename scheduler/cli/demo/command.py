"""Puts the demo's processes together, shows them at work, and judges what came out."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Annotated

import orjson
import typer
from redis.asyncio import Redis
from rich.console import Console
from rich.live import Live

from scheduler.cli.demo import verdict, view
from scheduler.cli.demo.children import Child, child
from scheduler.cli.demo.engines import DemoEngine, EngineKind, open_engine
from scheduler.cli.output import console
from scheduler.cli.session import redis_errors, run
from scheduler.connection import open_redis
from scheduler.embedded import EmbeddedServer
from scheduler.errors import SchedulerError
from scheduler.events import decode_event
from scheduler.queue import PromptQueue
from scheduler.queue.inspection import QueueInspector

LIMIT_S = 300.0
REDRAW_S = 0.2
PLAIN_LINE_S = 1.0


def demo(
    *,
    engine: Annotated[EngineKind, typer.Option(help="What answers.")] = EngineKind.ECHO,
    delay: Annotated[
        float, typer.Option(min=0, max=1, help="Echo: seconds a word; longer makes the demo longer.")
    ] = 0.04,
) -> None:
    """Show it all at work: 200 prompts, a server, a worker.

    Some prompts are sent twice. Exits with 0 if every prompt was answered, urgent ones first, and duplicates
    ran once. With --engine llama the variable LLAMA_SERVER names a llama-server, LLAMA_MODEL a model for it.
    """
    if not run(_demo(engine, delay)):
        raise typer.Exit(1)


async def _demo(kind: EngineKind, delay_s: float) -> bool:
    shown = console()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prompt-scheduler-demo-")))
        engine = await stack.enter_async_context(open_engine(kind, folder, delay_s=delay_s))
        server = EmbeddedServer()
        stack.callback(server.stop)
        await asyncio.to_thread(server.start)
        with redis_errors(server.url):
            checks = await _run(shown, engine, server.url, folder)
    for check in checks:
        shown.print(f"[green]ok  [/]  {check.claim}" if check.kept else f"[bold red]FAIL[/]  {check.claim}")
    return all(check.kept for check in checks)


async def _run(shown: Console, engine: DemoEngine, url: str, folder: Path) -> list[verdict.Check]:
    config, report = folder / "worker.toml", folder / "report.json"
    config.write_text(engine.toml, encoding="utf-8")
    environ = {"SCHEDULER_CONFIG": str(config), "SCHEDULER_REDIS_URL": url, "SCHEDULER_DRAIN_S": "0.5"}
    serve = (sys.executable, "-m", "arq", "scheduler.WorkerSettings")
    params = orjson.dumps(engine.params).decode()
    send = (sys.executable, "-m", "scheduler.cli.demo.client", url, engine.model, params, report)
    redis = open_redis(url)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.aclose)
        queue = PromptQueue(redis)
        inspector, rate = QueueInspector(queue), view.TokenRate()
        hearing = asyncio.create_task(_hear(redis, queue, rate))
        stack.push_async_callback(_end, hearing)
        worker = await stack.enter_async_context(
            child("worker process", *serve, folder=folder, environ=environ)
        )
        await _until_it_serves(inspector, worker)
        shown.print(f"Redis at {url}; a worker process and a client process beside this one\n")
        client = await stack.enter_async_context(
            child("client process", *send, folder=folder, environ=environ)
        )
        began_at = time.monotonic()
        showing = asyncio.create_task(_show(shown, inspector, rate, began_at))
        try:
            await _until_answered(client, (worker, *engine.children))
        finally:
            await _end(showing)
        last = await view.look(inspector, rate, began_at)
    shown.print(view.draw(last) if shown.is_terminal else view.summary(last))
    answers = orjson.loads(report.read_bytes())
    return verdict.judge(answers, last.done, echoes=engine.model == "echo", elapsed_s=last.elapsed_s)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _until_it_serves(inspector: QueueInspector, worker: Child) -> None:
    ended = asyncio.create_task(worker.wait())
    try:
        while not await inspector.workers():
            if ended.done():
                raise await worker.failed()
            await asyncio.sleep(0.05)
    finally:
        ended.cancel()


async def _until_answered(client: Child, others: Sequence[Child]) -> None:
    """Until the client has all its answers.

    Raises:
        SchedulerError: a process has ended that should not have, or it all takes too long.
    """
    wanted = asyncio.create_task(client.wait())
    unwanted = [asyncio.create_task(other.failed()) for other in others]
    try:
        done, _ = await asyncio.wait(
            {wanted, *unwanted}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for task in (wanted, *unwanted):
            task.cancel()
    if not done:
        raise SchedulerError(f"no end after {LIMIT_S:g} s; the client says:\n{client.last_words()}")
    for task in unwanted:
        if task in done:
            raise task.result()
    if wanted.result():
        raise await client.failed()


async def _hear(redis: Redis, queue: PromptQueue, rate: view.TokenRate) -> None:
    """Listen to the events of every job. Runs until it is cancelled."""
    async with redis.pubsub() as pubsub:
        await pubsub.psubscribe(queue.channel("*"))
        async for message in pubsub.listen():
            if message["type"] == "pmessage":
                rate.hear(decode_event(message["data"]))


async def _show(shown: Console, inspector: QueueInspector, rate: view.TokenRate, began_at: float) -> None:
    """Show how things stand, again and again: drawn in place on a terminal, else a line a second."""
    if not shown.is_terminal:
        while True:
            await asyncio.sleep(PLAIN_LINE_S)
            shown.print(view.summary(await view.look(inspector, rate, began_at)))
    with Live(console=shown, auto_refresh=False, transient=True) as live:
        while True:
            live.update(view.draw(await view.look(inspector, rate, began_at)), refresh=True)
            await asyncio.sleep(REDRAW_S)
