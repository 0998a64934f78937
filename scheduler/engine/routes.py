"""The routes of a process at work: endpoints, windows and pipelines made from the settings."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from scheduler.batching import Batcher, BatchPolicy, Endpoint, Window
from scheduler.errors import ConfigError
from scheduler.settings import EndpointSettings, RouteSettings, Settings
from scheduler.stages.inference import InferenceStage
from scheduler.stages.pipeline import Pipeline, build_pipeline
from scheduler.stages.stream import StreamStage
from workers.base import EndpointConfig
from workers.errors import WorkerError
from workers.registry import make_worker

logger = logging.getLogger(__name__)

# Until an endpoint has said how much it holds. An echo in this process holds what the process holds.
UNASKED_WINDOW = 8
PROBE_UNTIL_KNOWN_S = 2.0
PROBE_S = 30.0


@dataclass(slots=True, kw_only=True)
class Route:
    """One route in this process. `running` counts its jobs from claim to end."""

    name: str
    settings: RouteSettings
    endpoints: tuple[Endpoint, ...]
    pipeline: Pipeline
    running: int = 0

    @property
    def free(self) -> int:
        """How many more jobs its endpoints may hold."""
        return max(0, sum(endpoint.window.limit for endpoint in self.endpoints) - self.running)


def build_routes(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, Route]:
    """Make every route of the settings. Opens no connection.

    Raises:
        ConfigError: a back end, an API key, a template or a stage is wrong.
    """
    environ = os.environ if environ is None else environ
    return {name: _build_route(name, route, settings, environ) for name, route in settings.routes.items()}


def _build_route(name: str, route: RouteSettings, settings: Settings, environ: Mapping[str, str]) -> Route:
    policy = batch_policy(route)
    endpoints = tuple(
        build_endpoint(f"{name}.{at}", endpoint, policy, settings, environ)
        for at, endpoint in enumerate(route.endpoints)
    )
    pipeline = build_pipeline(name, route, inference=InferenceStage(endpoints), stream=StreamStage())
    return Route(name=name, settings=route, endpoints=endpoints, pipeline=pipeline)


def batch_policy(route: RouteSettings) -> BatchPolicy:
    """How the endpoints of a route batch."""
    return BatchPolicy(
        max_size=route.batch.max_size, max_wait_ms=route.batch.max_wait_ms, max_tokens=route.batch.max_tokens
    )


def build_endpoint(
    name: str,
    endpoint: EndpointSettings,
    policy: BatchPolicy,
    settings: Settings,
    environ: Mapping[str, str] | None = None,
) -> Endpoint:
    """Make one endpoint with its model worker. Opens no connection.

    Raises:
        ConfigError: the back end or the API key is wrong.
    """
    environ = os.environ if environ is None else environ
    api_key = None
    if endpoint.api_key_env is not None:
        api_key = environ.get(endpoint.api_key_env)
        if not api_key:
            raise ConfigError(f"endpoint {name}: api_key_env names {endpoint.api_key_env}, which is not set")
    config = EndpointConfig(
        backend=endpoint.backend,
        base_url=endpoint.base_url,
        model=endpoint.model,
        api_key=api_key,
        timeout_s=endpoint.timeout_s,
        first_token_timeout_s=endpoint.first_token_timeout_s,
        options=endpoint.options,
        environ=environ,
    )
    try:
        worker = make_worker(config)
    except ValueError as error:
        raise ConfigError(f"endpoint {name}: {error}") from None
    limit = endpoint.max_in_flight or (settings.max_running if endpoint.backend == "echo" else UNASKED_WINDOW)
    window = Window(limit)
    return Endpoint(
        name=name,
        settings=endpoint,
        worker=worker,
        window=window,
        batcher=Batcher(worker, policy, window),
        weight=endpoint.weight,
    )


def describe_routes(routes: Mapping[str, Route]) -> dict[str, bytes]:
    """What clients and administrators need to know of each route, as JSON. No URL with a secret, no key."""
    return {
        name: orjson.dumps(
            {
                "revision": route.settings.revision,
                "uses_metadata": route.settings.uses_metadata,
                "backends": [endpoint.settings.backend for endpoint in route.endpoints],
            }
        )
        for name, route in routes.items()
    }


async def learn_capacity(endpoint: Endpoint, on_change: Callable[[], None]) -> None:
    """Keep an endpoint's window at what its back end says it holds. Runs until it is cancelled."""
    known = False
    while True:
        try:
            capacity = await endpoint.worker.capacity()
        except WorkerError as error:
            logger.debug("endpoint %s: capacity unknown: %s", endpoint.name, error)
            capacity = None
        if capacity and capacity != endpoint.window.limit:
            logger.info("endpoint %s holds %d prompts at once", endpoint.name, capacity)
            endpoint.window.limit = capacity
            on_change()
        known = known or bool(capacity)
        await asyncio.sleep(PROBE_S if known else PROBE_UNTIL_KNOWN_S)
