"""What one invocation of the command line works with: its settings and its client."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import typer
from redis.exceptions import RedisError

from scheduler.client import AsyncClient
from scheduler.connection import translate
from scheduler.embedded import EmbeddedServer
from scheduler.settings import CONFIG_VARIABLE, EMBEDDED, ENV_PREFIX, Settings, load_settings

T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """The global options; None where one is not given."""

    redis_url: str | None = None
    queue: str | None = None
    config: Path | None = None

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the options over them.

        Raises:
            ConfigError: they are wrong.
        """
        given: dict[str, Any] = {"redis_url": self.redis_url, "queue": self.queue}
        return load_settings(self.config, **{name: value for name, value in given.items() if value})

    @property
    def server_url(self) -> str:
        """Where Redis listens; an embedded server has to be running already.

        Raises:
            ConfigError, RedisUnavailable: there is none to be found.
        """
        if self.settings.redis_url == EMBEDDED:
            return EmbeddedServer.running_url(self.settings.data_dir)
        return self.settings.redis_url

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """A connected client; redis-py's errors come out as those of this package."""
        async with AsyncClient(self.server_url, settings=self.settings) as client:
            try:
                yield client
            except RedisError as error:
                raise translate(error, client.redis_url) from error

    def export(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Put the options into an environment, for code that reads its settings from there."""
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


class _Terminated(Exception):
    pass


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine to its end. Ctrl-C and SIGTERM cancel it, so that it can clean up.

    Raises:
        KeyboardInterrupt: after Ctrl-C.
        typer.Exit: with 143 after SIGTERM, as a shell would say it.
    """
    try:
        return asyncio.run(_terminable(work))
    except _Terminated:
        raise typer.Exit(128 + signal.SIGTERM) from None


async def _terminable(work: Coroutine[Any, Any, T]) -> T:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if task is not None:
            task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await work
    except asyncio.CancelledError:
        if terminated:
            raise _Terminated from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
