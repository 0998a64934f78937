"""One invocation of the command line: its settings, its client, its signals."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, MutableMapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import typer
from redis.exceptions import RedisError

from scheduler.client import AsyncClient
from scheduler.redis_server.embedded import EmbeddedServer
from scheduler.redis_server.errors import translate
from scheduler.settings import CONFIG_VARIABLE, EMBEDDED, ENV_PREFIX, Settings, load_settings

T = TypeVar("T")
ENDING = (signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Session:
    """The global options; None for those that are not given."""

    redis_url: str | None = None
    queue: str | None = None
    config: Path | None = None

    @cached_property
    def settings(self) -> Settings:
        """The settings, overridden by the options. They are read once, on first use.

        Raises:
            ConfigError: they are wrong.
        """
        return self.load()

    def load(self) -> Settings:
        """Read the settings again.

        Raises:
            ConfigError: they are wrong.
        """
        options: dict[str, Any] = {"redis_url": self.redis_url, "queue": self.queue}
        given = {name: value for name, value in options.items() if value is not None}
        return load_settings(self.config, **given)

    @property
    def server_url(self) -> str:
        """The URL of Redis. An embedded server must be running already.

        Raises:
            ConfigError, RedisUnavailable: there is no such server.
        """
        url = self.settings.redis_url.get_secret_value()
        if url == EMBEDDED:
            return EmbeddedServer.running_url(self.settings.data_dir)
        return url

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """A connected client. Raises redis-py's errors as this package's."""
        async with AsyncClient(self.server_url, settings=self.settings) as client:
            with redis_errors(client.redis_url):
                yield client

    def export(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Put the options into an environment, for code that reads its settings there."""
        for name, value in (
            (f"{ENV_PREFIX}REDIS_URL", self.redis_url),
            (f"{ENV_PREFIX}QUEUE", self.queue),
            (CONFIG_VARIABLE, self.config),
        ):
            if value is not None:
                environ[name] = str(value)


def session(ctx: typer.Context) -> Session:
    """The session of a command's context."""
    found = ctx.find_object(Session)
    return found if isinstance(found, Session) else Session()


@contextmanager
def redis_errors(url: str) -> Iterator[None]:
    """Raise redis-py's errors as this package's; leave errors of files and pipes alone."""
    try:
        yield
    except RedisError as error:
        raise translate(error, url) from error


class _Ended(Exception):
    """A signal has asked the command to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end. Ctrl-C, SIGTERM and SIGHUP cancel it, so that it can clean up.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        typer.Exit: after another signal, with the exit code that shells use for it.
    """
    try:
        return asyncio.run(_until_signalled(work))
    except _Ended as ended:
        raise typer.Exit(128 + ended.number) from None


async def _until_signalled(work: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        if task is not None:
            task.cancel()

    def interrupt(number: int, _: object) -> None:
        """Cancel between two turns of the loop: within one, `asyncio.timeout(0)` would swallow it."""
        if received:
            raise KeyboardInterrupt
        received.append(number)
        loop.call_soon_threadsafe(end, number)

    for number in ENDING:
        loop.add_signal_handler(number, end, number)
    interrupt_before = signal.signal(signal.SIGINT, interrupt)
    try:
        return await work
    except asyncio.CancelledError:
        if not received:
            raise
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise _Ended(received[0]) from None
    finally:
        signal.signal(signal.SIGINT, interrupt_before)
        for number in ENDING:
            loop.remove_signal_handler(number)
