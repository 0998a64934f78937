"""Runs all checks."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from redis.asyncio import Redis

from scheduler.admin.doctor.finding import Finding, Level
from scheduler.admin.doctor.queue import check_queue, check_settings
from scheduler.admin.doctor.routes import check_routes
from scheduler.admin.doctor.server import check_channels, check_redis
from scheduler.errors import SchedulerError
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.status import read_status
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.shared import FORMAT
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.errors import newer_data, translated
from scheduler.redis_server.readiness import check_server
from scheduler.redis_server.url import mask
from scheduler.settings import Settings


async def examine(settings: Settings, redis_url: str) -> AsyncGenerator[Finding, None]:
    """Check everything; yields each finding as it is made. `redis_url` is the server's URL."""
    redis = open_redis(redis_url, retries=0, timeout_s=settings.redis_timeout_s)
    try:
        answers = await _reach(redis, redis_url)
        yield answers
        queue = PromptQueue(redis, settings.queue) if answers.level is Level.OK else None
        if queue is not None:
            with translated(redis_url):
                async for finding in check_redis(redis):
                    yield finding
                yield await check_channels(redis, queue)
        async for finding in check_routes(settings):
            yield finding
        if queue is not None:
            with translated(redis_url):
                async for finding in _examine_queue(queue, settings, redis_url):
                    yield finding
    finally:
        await redis.aclose()


async def _reach(redis: Redis, redis_url: str) -> Finding:
    try:
        version = await check_server(redis, redis_url)
    except SchedulerError as error:
        return Finding.failure("redis", error)
    return Finding(Level.OK, "redis", f"{_version(version)} at {mask(redis_url)}")


def _version(version: tuple[int, ...]) -> str:
    return f"version {'.'.join(map(str, version))}" if version else "a server that hides its version"


async def _examine_queue(
    queue: PromptQueue, settings: Settings, redis_url: str
) -> AsyncGenerator[Finding, None]:
    for finding in check_queue(await read_status(queue), await read_workers(queue), settings):
        yield finding
    # Without settings of its own this is a client's machine.
    if settings.model_fields_set - {"redis_url", "queue"}:
        for finding in check_settings(settings, await queue.settings(), await queue.limits()):
            yield finding
    if await queue.format() > FORMAT:
        yield Finding.failure("stored data", newer_data(redis_url))
