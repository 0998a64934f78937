"""Checks the routes of the settings: their stages, their documents, and each endpoint."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

from scheduler.admin.doctor.finding import Finding, Level
from scheduler.batching import within
from scheduler.engine.routes import build_endpoint, build_route, endpoint_name
from scheduler.errors import SchedulerError
from scheduler.redis_server.url import mask
from scheduler.routing import Endpoint, look_for_model
from scheduler.settings import EndpointSettings, RouteSettings, Settings
from scheduler.stages import RagStage
from workers.base import Advisor, Health

HEALTH_TIMEOUT_S = 10.0
ADVICE_TIMEOUT_S = 10.0


async def check_routes(settings: Settings) -> AsyncGenerator[Finding, None]:
    """Check every route."""
    # Each part is checked alone: a mistake in one must not hide those in others.
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
    """Whether the stages can be built and the documents be read. Custom stages are built, but not started."""
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
        advice = await _advice(endpoint) if health.ready else ()
    except TimeoutError:
        message = f"{where}: no answer within {HEALTH_TIMEOUT_S:g} s"
        return Finding(Level.FAIL, subject, message, "is the engine overloaded?")
    except Exception as error:
        # A third-party model worker may break the port's rules; the other checks go on all the same.
        message = f"{where}: its health check raised {type(error).__name__}: {error}"
        return Finding(Level.FAIL, subject, message, "see the package of this back end")
    finally:
        await _close(endpoint)
    if not health.ready:
        return _not_ready(subject, where, health)
    health = replace(health, warnings=(*health.warnings, *advice))
    return _serves(subject, where, health, endpoint.settings.model)


async def _advice(endpoint: Endpoint) -> tuple[str, ...]:
    """None from an engine that is too busy to be tried: it is healthy."""
    if isinstance(endpoint.worker, Advisor):
        with suppress(TimeoutError):
            return await within(ADVICE_TIMEOUT_S, endpoint.worker.advice())
    return ()


def _not_ready(subject: str, where: str, health: Health) -> Finding:
    if health.models:
        return Finding(Level.FAIL, subject, f"{where}: {health.detail}")
    fix = "start the engine, or correct base_url and api_key_env"
    return Finding(Level.FAIL, subject, f"{where}: {health.detail or 'not ready'}", fix)


def _serves(subject: str, where: str, health: Health, model: str | None) -> Finding:
    serves = f"{where} serves {', '.join(health.models) or 'unknown models'}"
    if model and health.models and model not in health.models:
        fix = "set the endpoint's model to one of these"
        return Finding(Level.WARN, subject, "; ".join((f"{serves}, not {model}", *health.warnings)), fix)
    if health.warnings:
        return Finding(Level.WARN, subject, f"{serves}; {'; '.join(health.warnings)}")
    return Finding(Level.OK, subject, serves)
