"""A whole scheduler in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from scheduler.client import AsyncClient, Client
from scheduler.engine import Engine
from scheduler.errors import ConfigError
from scheduler.settings import Settings, load_settings


@asynccontextmanager
async def local_scheduler(settings: Settings | None = None) -> AsyncIterator[AsyncClient]:
    """An async client; an engine in this process runs its prompts. By default there is one route, `echo`.

    The environment is not read. Nothing is left behind.

    Raises:
        ConfigError: fakeredis is not installed, or the settings are wrong.
    """
    settings = settings or load_settings(environ={})
    redis = _fake_redis()
    engine = Engine(settings, redis, script_flags=False)
    try:
        await engine.start()
        async with AsyncClient(settings=settings, redis=redis) as client:
            yield client
    finally:
        await engine.stop(drain_s=0)
        await redis.aclose()


@contextmanager
def local_client(settings: Settings | None = None) -> Iterator[Client]:
    """The same for tests without async: client and engine run on an event loop in their own thread."""
    with Client.hosting(local_scheduler(settings)) as client:
        yield client


def _fake_redis() -> Any:
    try:
        import lupa  # noqa: F401, PLC0415  fakeredis runs scripts with it
        from fakeredis import FakeAsyncRedis  # noqa: PLC0415  an extra
    except ImportError:
        raise ConfigError(
            "scheduler.testing needs fakeredis with Lua: pip install 'prompt-scheduler[testing]'"
        ) from None
    return FakeAsyncRedis()
