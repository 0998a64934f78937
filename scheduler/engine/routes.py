"""The running routes of a process: endpoints and pipelines made from the settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter

import orjson
from pydantic import SecretStr

from scheduler.batching import BatchPolicy, EmbeddingCaller, RerankCaller, within
from scheduler.batching.kinds import BatchWorker
from scheduler.engine.retrieval import link_retrieval
from scheduler.engine.slots import Slots
from scheduler.errors import ConfigError
from scheduler.logs import traced
from scheduler.model import Kind
from scheduler.observations import NOBODY, Observers
from scheduler.routing import Endpoint, EndpointMonitor
from scheduler.settings import EndpointSettings, FromVariable, RouteSettings, Settings
from scheduler.stages.inference import InferenceStage
from scheduler.stages.kinds import EmbeddingStage, RerankStage
from scheduler.stages.pipeline import Pipeline, build_pipeline
from scheduler.stages.stream import StreamStage
from workers.base import EndpointConfig, GenerationWorker
from workers.registry import EMBEDDING, RERANK, make_worker

logger = logging.getLogger(__name__)

LET_GO_S = 5.0
"""How long a model worker may take to close, in seconds."""


@dataclass(slots=True, kw_only=True, eq=False)
class Route:
    """One route in this process. `running` counts its jobs from claim to end.

    `fallbacks` are the routes whose endpoints answer while none of this route's own can.
    """

    name: str
    settings: RouteSettings
    endpoints: tuple[Endpoint, ...]
    inference: InferenceStage
    pipeline: Pipeline
    fallbacks: tuple[Route, ...] = ()
    running: int = 0
    _monitors: list[EndpointMonitor] = field(default_factory=list)

    def slots(self, *, without: Container[str] = ()) -> Slots:
        """How many more jobs may be claimed: the room of its endpoints, less the jobs on their way there.

        `without` names endpoints to leave out.
        """
        on_its_way = self.running - self.pipeline.gates[self.inference.name].running
        usable = [endpoint for endpoint in self.in_use if endpoint.name not in without]
        free = max(0, sum(endpoint.room for endpoint in usable) - on_its_way)
        for_all = max(0, sum(endpoint.may_start for endpoint in usable) - on_its_way)
        return Slots(free, free - for_all)

    @property
    def free(self) -> int:
        """How many more jobs of any priority may be claimed."""
        return self.slots().free

    @property
    def busy(self) -> bool:
        """Whether it has jobs or its endpoints have prompts, including those of routes falling back on it."""
        return self.running > 0 or any(endpoint.outstanding for endpoint in self.endpoints)

    @property
    def in_use(self) -> tuple[Endpoint, ...]:
        """The endpoints that take its jobs now: its own, or those of the first usable fallback, or none."""
        for route in (self, *self.fallbacks):
            if any(endpoint.admits for endpoint in route.endpoints):
                return route.endpoints
        return ()

    def fall_back_on(self, routes: Mapping[str, Route]) -> None:
        """Link the routes that the settings name as fallbacks and for retrieval."""
        self.fallbacks = tuple(routes[name] for name in self.settings.fallbacks)
        self.inference.fallbacks = tuple(route.endpoints for route in self.fallbacks)
        link_retrieval(self, routes)

    async def start(self, on_change: Callable[[Endpoint], None], observers: Observers = NOBODY) -> None:
        """Start the stages and monitor the back ends; `on_change` is called with each endpoint that changes.

        Raises:
            ConfigError: a stage cannot start.
        """
        await self.pipeline.start()
        for endpoint in self.endpoints:
            endpoint.on_change = partial(on_change, endpoint)
            endpoint.observe_with(observers)
            monitor = EndpointMonitor(endpoint)
            self._monitors.append(monitor)
            await monitor.start()

    async def asked(self) -> None:
        """Wait until each of its back ends has been checked for the first time."""
        for monitor in self._monitors:
            await monitor.asked.wait()

    async def stop(self) -> None:
        """Stop the stages, abort running calls, close the connections. Safe to call twice."""
        while self._monitors:
            await self._monitors.pop().stop()
        await self.pipeline.stop()
        for endpoint in self.endpoints:
            try:
                await within(LET_GO_S, endpoint.aclose())
            except Exception as error:
                cause = traced(error, logger)
                logger.error("endpoint %s did not close cleanly", endpoint.name, exc_info=cause)


def build_routes(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, Route]:
    """Make every route of the settings. Opens no connection.

    Raises:
        ConfigError: a back end, an API key, a template or a stage is wrong.
    """
    environ = os.environ if environ is None else environ
    routes = {name: build_route(name, settings, environ) for name in settings.routes}
    for route in routes.values():
        route.fall_back_on(routes)
    return routes


def rebuild_routes(
    settings: Settings, old: Mapping[str, Route], environ: Mapping[str, str] | None = None
) -> dict[str, Route]:
    """Make the routes of changed settings, keeping those that have not changed.

    Raises:
        ConfigError: as `build_routes`.
    """
    environ = os.environ if environ is None else environ
    return {
        name: old[name]
        if name in old and old[name].settings == route
        else build_route(name, settings, environ)
        for name, route in settings.routes.items()
    }


def build_route(name: str, settings: Settings, environ: Mapping[str, str]) -> Route:
    """Make one route, without its fallbacks. Opens no connection.

    Raises:
        ConfigError: as `build_routes`.
    """
    route = settings.routes[name]
    endpoints = tuple(build_endpoint(name, at, settings, environ) for at in range(len(route.endpoints)))
    inference = _INFERENCE[route.kind](endpoints)
    pipeline = build_pipeline(name, route, inference=inference, stream=StreamStage())
    return Route(name=name, settings=route, endpoints=endpoints, inference=inference, pipeline=pipeline)


def build_endpoint(
    route_name: str, at: int, settings: Settings, environ: Mapping[str, str] | None = None
) -> Endpoint:
    """Make endpoint number `at`, from 0, of a route, with its model worker. Opens no connection.

    Raises:
        ConfigError: the back end or the API key is wrong.
    """
    route = settings.routes[route_name]
    endpoint = route.endpoints[at]
    name = endpoint_name(route_name, at)
    config = _config(name, endpoint, os.environ if environ is None else environ)
    try:
        worker = _make_worker(route.kind, config)
    except ValueError as error:
        raise ConfigError(f"endpoint {name}: {error}") from None
    # The echo engine runs in this process, so it can hold as many jobs as the process.
    own = endpoint.backend == "echo" and endpoint.max_in_flight is None
    return Endpoint(
        name=name,
        model=endpoint.model or route_name,
        settings=endpoint,
        worker=worker,
        batch=BatchPolicy(
            max_size=route.batch.max_size,
            max_wait_ms=route.batch.max_wait_ms,
            max_tokens=route.batch.max_tokens,
        ),
        max_in_flight=settings.max_running if own else endpoint.max_in_flight,
        shared=not own,
        identity=_identity(route, endpoint),
    )


_INFERENCE: Mapping[Kind, type[InferenceStage]] = {
    Kind.GENERATE: InferenceStage,
    Kind.EMBEDDING: EmbeddingStage,
    Kind.RERANK: RerankStage,
}


def _make_worker(kind: Kind, config: EndpointConfig) -> BatchWorker:
    match kind:
        case Kind.EMBEDDING:
            return EmbeddingCaller(EMBEDDING.make(config))
        case Kind.RERANK:
            return RerankCaller(RERANK.make(config))
        case _:
            return make_worker(config)


def _identity(route: RouteSettings, endpoint: EndpointSettings) -> str:
    """Its settings, and its number among equal ones: so it keeps its identity when others come or go."""
    known_by = attrgetter("backend", "base_url", "model")
    alike = [other for other in route.endpoints if known_by(other) == known_by(endpoint)]
    number = next(at for at, other in enumerate(alike) if other is endpoint)
    return " ".join(map(str, (*known_by(endpoint), number)))


def endpoint_name(route_name: str, at: int) -> str:
    """The name of an endpoint, the same everywhere."""
    return f"{route_name}.{at}"


def _config(name: str, endpoint: EndpointSettings, environ: Mapping[str, str]) -> EndpointConfig:
    def variable(setting: str, variable: str) -> str:
        if value := environ.get(variable):
            return value
        raise ConfigError(f"endpoint {name}: {setting} names {variable}, which is not set")

    def values(setting: str, given: Mapping[str, SecretStr | FromVariable]) -> dict[str, str]:
        return {
            key: variable(f"{setting}.{key}", value.env)
            if isinstance(value, FromVariable)
            else value.get_secret_value()
            for key, value in given.items()
        }

    return EndpointConfig(
        backend=endpoint.backend,
        base_url=endpoint.base_url,
        model=endpoint.model,
        api_key=endpoint.api_key_env and variable("api_key_env", endpoint.api_key_env),
        timeout_s=endpoint.timeout_s,
        first_token_timeout_s=endpoint.first_token_timeout_s,
        idle_timeout_s=endpoint.idle_timeout_s,
        total_timeout_s=endpoint.total_timeout_s,
        headers=values("headers", endpoint.headers),
        query=values("query", endpoint.query),
        options=endpoint.options,
        environ=environ,
    )


def describe_routes(routes: Mapping[str, Route], *, max_result_ttl_s: float) -> dict[str, bytes]:
    """What clients and administrators need to know about each route, as JSON. Holds no URL and no key."""
    return {
        name: orjson.dumps(
            {
                "kind": route.settings.kind,
                "revision": route.settings.revision,
                "uses_metadata": route.settings.uses_metadata,
                "max_result_ttl_s": max_result_ttl_s,
                "backends": [endpoint.settings.backend for endpoint in route.endpoints],
                "lacks": sorted(lacked_parameters(route)),
            }
        )
        for name, route in routes.items()
    }


def lacked_parameters(route: Route) -> frozenset[str]:
    """Parameters that no endpoint of the route or of its fallbacks accepts."""
    endpoints = (*route.endpoints, *(one for other in route.fallbacks for one in other.endpoints))
    lacks = [one.worker.capabilities.lacks for one in endpoints if isinstance(one.worker, GenerationWorker)]
    return frozenset.intersection(*lacks) if lacks else frozenset()
