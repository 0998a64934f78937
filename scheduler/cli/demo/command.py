"""Starts the demo's processes, shows them at work, and checks the results."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.live import Live

from scheduler.cli.children import Child, child
from scheduler.cli.demo import view
from scheduler.cli.demo.engines import DemoEngine, EngineKind, open_engine
from scheduler.cli.demo.listener import Listener
from scheduler.cli.demo.plan import FEWEST, MOST, PROMPTS
from scheduler.cli.demo.verdict import Check, judge
from scheduler.cli.output import console
from scheduler.cli.session import redis_errors, run
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.workers import read_workers
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.embedded import EmbeddedServer

DELAY_S = 0.025
LIMIT_S = 300.0
REDRAW_S = 0.2
PLAIN_LINE_S = 1.0


@dataclass(frozen=True, slots=True)
class Show:
    """The options of the demo."""

    engine: EngineKind = EngineKind.ECHO
    prompts: int = PROMPTS
    delay_s: float = DELAY_S
    """Seconds per word of the echo."""
    plain: bool = False
    """Whether to print lines instead of a live table."""


def demo(
    *,
    engine: Annotated[EngineKind, typer.Option(help="Engine that answers.")] = EngineKind.ECHO,
    prompts: Annotated[
        int, typer.Option(min=FEWEST, max=MOST, help="Number of prompts, including duplicates.")
    ] = PROMPTS,
    delay: Annotated[float, typer.Option(min=0, max=1, help="Seconds per word of the echo.")] = DELAY_S,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain",
            help="Print a line per second, not a live table; the default without a terminal.",
        ),
    ] = False,
) -> None:
    """Show it at work: 200 prompts, a server, a worker.

    Some prompts are sent twice. Exits with 0 if every prompt was answered, urgent ones first, and duplicates
    ran once. --engine llama fetches llama.cpp's server and a small model once, 130 MB. To use your own, name
    the server in LLAMA_SERVER and the model in LLAMA_MODEL. With --engine vllm, VLLM_PYTHON names the Python
    of an environment that has vLLM.
    """
    if not run(perform(Show(engine, prompts, delay, plain), console())):
        raise typer.Exit(1)


async def perform(show: Show, shown: Console) -> bool:
    """Run the demo. Returns whether all checks passed."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prompt-scheduler-demo-")))
        opening = open_engine(show.engine, folder, prompts=show.prompts, delay_s=show.delay_s)
        engine = await stack.enter_async_context(opening)
        server = EmbeddedServer()
        stack.callback(server.stop)
        await asyncio.to_thread(server.start)
        with redis_errors(server.url):
            checks = await _Stage(show, shown, engine, server.url, folder).play()
    shown.print(view.verdict(checks, shown.width))
    return all(check.passed for check in checks)


class _Stage:
    """Runs worker process and client process against a server and an engine."""

    def __init__(self, show: Show, shown: Console, engine: DemoEngine, url: str, folder: Path) -> None:
        self._show = show
        self._shown = shown
        self._live = shown.is_terminal and not show.plain
        self._engine = engine
        self._url = url
        self._folder = folder
        self._redis = open_redis(url)
        self._queue = PromptQueue(self._redis)
        self._listener = Listener()
        self._began_at = time.monotonic()

    async def play(self) -> list[Check]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._redis.aclose)
            listener = _begin(self._listener.listen(self._redis, self._queue), stack)
            worker = await stack.enter_async_context(self._worker())
            await self._until_it_serves(worker)
            self._shown.print(f"Redis at {self._url}; one worker process, one client process")
            self._shown.print()
            client = await stack.enter_async_context(self._client())
            self._began_at = time.monotonic()
            async with AsyncExitStack() as watched:
                watching = _begin(self._watch(), watched)
                await _until_answered(client, (worker, *self._engine.children), (listener, watching))
            last = await self._snapshot()
        self._shown.print(view.draw(last) if self._live else view.summary(last))
        return self._judge(last)

    def _worker(self) -> AbstractAsyncContextManager[Child]:
        route = self._engine.route.model_dump(mode="json", exclude_unset=True)
        environ = {
            "SCHEDULER_ROUTES": orjson.dumps({self._engine.model: route}).decode(),
            "SCHEDULER_REDIS_URL": self._url,
            "SCHEDULER_DRAIN_S": "0.5",
            "SCHEDULER_LOG_FORMAT": "human",
        }
        serve = (sys.executable, "-m", "arq", "scheduler.WorkerSettings")
        return child("worker process", *serve, folder=self._folder, environ=environ)

    def _client(self) -> AbstractAsyncContextManager[Child]:
        params = orjson.dumps(self._engine.params).decode()
        send = (sys.executable, "-m", "scheduler.cli.demo.client", self._url, self._engine.model, params)
        return child("client process", *send, str(self._show.prompts), self._report, folder=self._folder)

    @property
    def _report(self) -> Path:
        return self._folder / "report.json"

    async def _until_it_serves(self, worker: Child) -> None:
        ended = asyncio.create_task(worker.wait())
        try:
            while not await read_workers(self._queue):
                if ended.done():
                    raise await worker.failed()
                await asyncio.sleep(0.05)
        finally:
            ended.cancel()

    async def _watch(self) -> None:
        """Show snapshot after snapshot: drawn in place, or a line per second."""
        if not self._live:
            while True:
                await asyncio.sleep(PLAIN_LINE_S)
                self._shown.print(view.summary(await self._snapshot()))
        with Live(console=self._shown, auto_refresh=False, transient=True) as live:
            while True:
                live.update(view.draw(await self._snapshot()), refresh=True)
                await asyncio.sleep(REDRAW_S)

    async def _snapshot(self) -> view.Snapshot:
        return await view.take_snapshot(
            self._queue, self._listener, prompts=self._show.prompts, began_at=self._began_at
        )

    def _judge(self, last: view.Snapshot) -> list[Check]:
        answers = orjson.loads(self._report.read_bytes())
        return judge(answers, last.done, echoes=self._engine.model == "echo", elapsed_s=last.elapsed_s)


def _begin(service: Coroutine[Any, Any, None], stack: AsyncExitStack) -> asyncio.Task[None]:
    task = asyncio.create_task(service)
    stack.push_async_callback(_end, task)
    return task


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _until_answered(
    client: Child, others: Sequence[Child], services: Sequence[asyncio.Task[None]]
) -> None:
    """Wait until the client has all answers.

    Raises:
        SchedulerError: another process has ended, or the time limit has passed.
        redis.exceptions.RedisError: the server is gone.
    """
    wanted = asyncio.create_task(client.wait())
    unwanted = [asyncio.create_task(other.failed()) for other in others]
    try:
        done, _ = await asyncio.wait(
            {wanted, *unwanted, *services}, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for task in (wanted, *unwanted):
            task.cancel()
    if not done:
        raise client.complaint(f"not finished after {LIMIT_S:g} s; the client says:")
    for task in unwanted:
        if task in done:
            raise task.result()
    for service in services:
        if service in done:
            service.result()
    if wanted.result():
        raise await client.failed()
