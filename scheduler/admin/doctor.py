"""Checks an installation: Redis and its settings, every endpoint, the worker processes. Changes nothing."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.batching import within
from scheduler.engine.limits import limits_of
from scheduler.engine.queue_settings import disagreements, limit_disagreements
from scheduler.engine.routes import build_endpoint, build_route, endpoint_name
from scheduler.errors import ConfigError, SchedulerError
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.status import read_status
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.reports import QueueStatus, WorkerInfo
from scheduler.queue.shared import FORMAT
from scheduler.queue.stored_settings import queue_settings
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.errors import newer_data, translated
from scheduler.redis_server.readiness import check_server
from scheduler.redis_server.url import mask
from scheduler.routing import Endpoint, look_for_model
from scheduler.settings import EndpointSettings, RouteSettings, Settings
from scheduler.stages import RagStage

ROUND_TRIPS = 20
SLOW_ROUND_TRIP_MS = 5.0
HEALTH_TIMEOUT_S = 10.0
MEMORY_SHARE_WARNED = 0.8


class Level(StrEnum):
    """How bad a finding is; `fail` means that prompts cannot be served, or can be lost in plain use."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, what it is like, and what to do about it where that is not well.

    `mistake`: it fails because the settings are wrong, and a worker process with them would not start.
    """

    level: Level
    subject: str
    message: str
    fix: str = ""
    mistake: bool = False

    @classmethod
    def failure(cls, subject: str, error: SchedulerError) -> Finding:
        """What an error says of a subject."""
        message = str(error).removeprefix(f"{subject}: ")
        return cls(Level.FAIL, subject, message, mistake=isinstance(error, ConfigError))


async def examine(settings: Settings, redis_url: str) -> AsyncGenerator[Finding, None]:
    """Look at everything; yields each finding once it is known. `redis_url` is where the server listens."""
    redis = open_redis(redis_url, retries=0, timeout_s=settings.redis_timeout_s)
    try:
        queue = None
        try:
            version = await check_server(redis, redis_url)
            queue = PromptQueue(redis, settings.queue)
            yield Finding(Level.OK, "redis", f"{_version(version)} at {mask(redis_url)}")
        except SchedulerError as error:
            yield Finding.failure("redis", error)
        if queue is not None:
            with translated(redis_url):
                async for finding in _server(redis):
                    yield finding
                yield await _channels(redis, queue)
        async for finding in _routes(settings):
            yield finding
        if queue is not None:
            with translated(redis_url):
                for finding in _queue(await read_status(queue), await read_workers(queue), settings):
                    yield finding
                if settings.model_fields_set - {"redis_url", "queue"}:  # without any it is a client's host
                    for finding in _disagreements(settings, await queue.settings(), await queue.limits()):
                        yield finding
                if await queue.format() > FORMAT:
                    yield Finding.failure("stored data", newer_data(redis_url))
    finally:
        await redis.aclose()


def _version(version: tuple[int, ...]) -> str:
    return f"version {'.'.join(map(str, version))}" if version else "a server that hides its version"


async def _server(redis: Redis) -> AsyncGenerator[Finding, None]:
    info = await _ask(redis, "INFO")
    if not isinstance(info, Mapping):
        yield Finding(
            Level.WARN, "redis settings", "INFO is refused", "allow INFO to this user, or ask the host"
        )
    else:
        save = await _ask(redis, "CONFIG GET", "save")
        if info.get("role") == "slave":
            fix = "point redis_url at the primary"
            yield Finding(Level.FAIL, "role", "a replica: it takes no writes", fix)
        yield _persistence(info, save.get("save") if isinstance(save, Mapping) else None)
        yield _eviction(info)
        yield _memory(info)
    yield await _round_trip(redis)


async def _channels(redis: Redis, queue: PromptQueue) -> Finding:
    """Whether this user may publish: the scripts go on without, and readers then learn of events late."""
    if await _ask(redis, "PUBLISH", queue.control_channel, "{}") is not None:
        return Finding(Level.OK, "channels", "events can be published")
    return Finding(
        Level.FAIL,
        "channels",
        "this user may not publish: tokens arrive seconds late",
        f"allow it the queue's channels: ACL SETUSER … &{queue.keys.prefix}*",
    )


async def _ask(redis: Redis, command: str, *args: str) -> Any:
    """The answer, or None where this user may not ask: managed servers forbid CONFIG."""
    try:
        return await redis.execute_command(command, *args)
    except ResponseError:
        return None


def _persistence(info: Mapping[str, Any], save: str | None) -> Finding:
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status", "ok") != "ok":
            return Finding(
                Level.FAIL,
                "persistence",
                "the append-only file cannot be written",
                "see the server's log and disk",
            )
        return Finding(Level.OK, "persistence", "append-only file")
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        message = "the last snapshot failed: by default the server then refuses all writes"
        return Finding(Level.FAIL, "persistence", message, "see the server's log and disk")
    fix = "set appendonly yes"
    if save is None:
        return Finding(Level.WARN, "persistence", "no append-only file; snapshots unknown", fix)
    if save:
        return Finding(
            Level.WARN, "persistence", f"snapshots alone (save {save}): a crash loses what came since", fix
        )
    return Finding(Level.WARN, "persistence", "none: a restart of the server loses every job", fix)


def _eviction(info: Mapping[str, Any]) -> Finding:
    policy, limit = str(info.get("maxmemory_policy", "unknown")), int(info.get("maxmemory", 0))
    if policy == "noeviction":
        return Finding(Level.OK, "eviction", "noeviction")
    fix = "set maxmemory-policy noeviction"
    if limit:
        return Finding(Level.FAIL, "eviction", f"{policy}: at maxmemory the server drops queued jobs", fix)
    return Finding(Level.WARN, "eviction", f"{policy}; harmless only while maxmemory is not set", fix)


def _memory(info: Mapping[str, Any]) -> Finding:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return Finding(
            Level.WARN,
            "memory",
            f"{_mib(used)} used, no limit: a full machine kills the server",
            "set maxmemory; enqueues are then refused in time, and running work still finishes",
        )
    message = f"{_mib(used)} of {_mib(limit)} used"
    if used > MEMORY_SHARE_WARNED * limit:
        return Finding(Level.WARN, "memory", message, "raise maxmemory, or lower max_waiting or result_ttl_s")
    return Finding(Level.OK, "memory", message)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


async def _round_trip(redis: Redis) -> Finding:
    times_ms = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        await redis.ping()
        times_ms.append((time.perf_counter() - began) * 1000)
    median_ms = statistics.median(times_ms)
    message = f"{median_ms:.2f} ms (median of {ROUND_TRIPS}; longest {max(times_ms):.2f} ms)"
    if median_ms > SLOW_ROUND_TRIP_MS:
        return Finding(Level.WARN, "round trip", message, "move the worker processes nearer to Redis")
    return Finding(Level.OK, "round trip", message)


async def _routes(settings: Settings) -> AsyncGenerator[Finding, None]:
    # Each part by itself: a mistake in one must not hide those in the others.
    endpoints: list[Endpoint] = []
    for name, route in settings.routes.items():
        yield await _stages(name, route, settings)
        for at in range(len(route.endpoints)):
            subject = f"endpoint {endpoint_name(name, at)}"
            try:
                endpoints.append(build_endpoint(name, at, settings))
            except SchedulerError as error:
                yield Finding.failure(subject, error)
    for finding in await asyncio.gather(*(_endpoint(endpoint) for endpoint in endpoints)):
        yield finding


async def _stages(name: str, route: RouteSettings, settings: Settings) -> Finding:
    """Whether the stages can be made and documents be read. Stages of one's own are made, not started."""
    subject = f"route {name}"
    unasked = route.model_copy(update={"endpoints": [EndpointSettings(backend="echo")]})
    try:
        made = build_route(name, settings.model_copy(update={"routes": {name: unasked}}), os.environ)
        await _close(*made.endpoints)
        for stage in made.pipeline.stages:
            if isinstance(stage, RagStage):
                await stage.start()
    except SchedulerError as error:
        return Finding.failure(subject, error)
    return Finding(Level.OK, subject, f"stages {', '.join(stage.name for stage in made.pipeline.stages)}")


async def _close(*endpoints: Endpoint) -> None:
    for endpoint in endpoints:
        await endpoint.aclose()


async def _endpoint(endpoint: Endpoint) -> Finding:
    subject = f"endpoint {endpoint.name}"
    where = " at ".join(filter(None, (endpoint.settings.backend, mask(endpoint.settings.base_url))))
    try:
        health = await within(HEALTH_TIMEOUT_S, endpoint.worker.health())
        health = await look_for_model(endpoint, health)
    except TimeoutError:
        return Finding(
            Level.FAIL,
            subject,
            f"{where}: no answer within {HEALTH_TIMEOUT_S:g} s",
            "is the engine overloaded?",
        )
    except Exception as error:
        # A worker of somebody else's may break the rules of the port; the rest is looked at all the same.
        message = f"{where}: asking it failed with {type(error).__name__}: {error}"
        return Finding(Level.FAIL, subject, message, "see the package of this back end")
    finally:
        await _close(endpoint)
    if not health.ready and health.models:
        return Finding(Level.FAIL, subject, f"{where}: {health.detail}")
    if not health.ready:
        fix = "start the engine, or correct base_url and api_key_env"
        return Finding(Level.FAIL, subject, f"{where}: {health.detail or 'not ready'}", fix)
    models = ", ".join(health.models) or "unknown models"
    if endpoint.settings.model and health.models and endpoint.settings.model not in health.models:
        return Finding(
            Level.WARN,
            subject,
            f"{where} serves {models}, not {endpoint.settings.model}",
            "set the endpoint's model to one of these",
        )
    if health.warnings:
        return Finding(Level.WARN, subject, f"{where} serves {models}; {'; '.join(health.warnings)}")
    return Finding(Level.OK, subject, f"{where} serves {models}")


def _disagreements(
    settings: Settings, published: Mapping[str, str], limits: Mapping[str, str]
) -> Iterator[Finding]:
    if not published:
        return
    differ = "; ".join(
        [
            *disagreements(queue_settings(settings), published),
            *limit_disagreements(limits_of(settings).fields(), limits),
        ]
    )
    if differ:
        message = f"worker processes have published others, which hold for all: {differ}"
        fix = "give all processes the same settings; those of the one that started last hold"
        yield Finding(Level.WARN, "queue settings", message, fix)


def _queue(status: QueueStatus, workers: list[WorkerInfo], settings: Settings) -> Iterator[Finding]:
    start = "start one: prompt-scheduler worker"
    if not workers:
        yield Finding(Level.WARN, "workers", f"no worker process serves queue {status.queue!r}", start)
    else:
        running = sum(worker.running for worker in workers)
        yield Finding(Level.OK, "workers", f"{len(workers)} live, {running} jobs running")
    served = {route for worker in workers for route in worker.routes}
    for lane in status.lanes:
        subject = f"lane {lane.name}"
        if lane.waiting and lane.paused:
            fix = f"prompt-scheduler admin queue resume {lane.name}"
            yield Finding(Level.WARN, subject, f"{lane.waiting:,} jobs wait and it is paused", fix)
        elif lane.waiting and lane.name not in served:
            fix = f"start one that has [routes.{lane.name}]"
            yield Finding(
                Level.WARN, subject, f"{lane.waiting:,} jobs wait and no live worker serves it", fix
            )
    for route in settings.routes if workers else ():
        if route not in served:
            fix = "start one with these settings: prompt-scheduler worker"
            yield Finding(Level.WARN, f"serving {route}", "no live worker serves this route", fix)
    unclaimed = status.waiting + status.delayed + status.held
    bound = f"{unclaimed:,} of at most {status.max_waiting:,} jobs wait"
    if unclaimed >= status.max_waiting:
        yield Finding(Level.WARN, "bound", bound, "add worker processes, or raise max_waiting")
    else:
        yield Finding(Level.OK, "bound", bound)
    if status.dead:
        fix = "prompt-scheduler admin dead list"
        yield Finding(Level.WARN, "dead", f"failed jobs that are kept: {status.dead:,}", fix)
    if status.garbage:
        yield Finding(
            Level.WARN,
            "garbage",
            f"{status.garbage:,} jobs were put aside because their records were damaged",
            "find out what else writes to this Redis; the server's hash `garbage` of the queue names them",
        )
