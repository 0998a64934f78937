"""All settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scheduler.model import DEFAULT_MODEL, MAX_DURATION_S, NAME, Kind, Name
from scheduler.redis_server.sentinel import SCHEMES as SENTINEL_SCHEMES
from scheduler.settings.endpoint import EndpointSettings, RateSettings
from scheduler.settings.route import RouteSettings
from scheduler.settings.section import MOST, Strict

ENV_PREFIX = "SCHEDULER_"
EMBEDDED = "embedded"

NameOrAll: TypeAlias = Annotated[str, Field(pattern=rf"^({NAME}|\*)$")]


def _echo_routes() -> dict[str, RouteSettings]:
    return {DEFAULT_MODEL: RouteSettings(endpoints=[EndpointSettings(backend="echo")])}


class Settings(Strict, BaseSettings):
    """All settings of a worker process and its queue."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        nested_model_default_partial_update=True,
    )

    redis_url: SecretStr = SecretStr("redis://localhost:6379")
    """`redis://`, `rediss://`, `unix://` or `redis+sentinel://`; `embedded` starts a private server."""
    data_dir: Path | None = None
    """Folder of the embedded server; None: it keeps nothing when it ends."""
    queue: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Name of the queue. Queues on one Redis are independent of each other."""
    worker_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._:@-]{1,128}$")
    """Name of this worker process in records and for `arq --check`; None: the host name."""
    log_format: Literal["auto", "json", "human"] = "auto"
    """Format of log lines; `auto` is `human` at a terminal, else `json`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level to log. At `debug` the log may hold parts of prompts."""

    lease_s: float = Field(default=10.0, ge=0.5, le=3600)
    """A claimed job goes to another worker process when its own has been silent for this long."""
    max_running: int = Field(default=256, ge=1, le=100_000)
    """Jobs in flight in one worker process."""
    max_running_bytes: int = Field(default=128 << 20, ge=1, le=MOST)
    """Bytes of the requests of those jobs together, as enqueued; a larger request runs alone."""
    drain_s: float = Field(default=30.0, ge=0)
    """How long a stop waits for running jobs before it gives them back."""
    redis_wait_s: float = Field(default=10.0, ge=0)
    """How long a worker process waits for Redis when it starts."""
    redis_timeout_s: float = Field(default=10.0, ge=0.1, le=3600)
    """The time for a command before Redis counts as unavailable."""
    traces: bool = False
    """Make OpenTelemetry spans, in worker processes and clients."""
    traces_per_s: float = Field(default=50.0, gt=0, le=MOST)
    """The most jobs a second for which one worker process makes spans."""

    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    """The port of the metrics, or the next of 64 that is free; 0: any free port; None: no metrics."""
    metrics_host: str = Field(default="127.0.0.1", min_length=1)
    """The address at which the metrics are served."""

    max_waiting: int = Field(default=100_000, ge=1)
    """Jobs that may wait: waiting, delayed and held."""
    when_full: Literal["reject", "shed", "block"] = "reject"
    """At `max_waiting`: refuse the new job, shed the least urgent one, or block until there is room."""
    block_timeout_s: float = Field(default=30.0, ge=0)
    """How long `block` waits."""
    aging_s: float = Field(default=30.0, ge=0)
    """A waiting job below priority 8 gains one level in this time; 0: strict priorities."""
    dedup_ttl_s: float = Field(default=3600.0, ge=1)
    """How long a finished answer serves duplicates in mode `window`."""
    result_ttl_s: float = Field(default=3600.0, ge=1, le=MAX_DURATION_S)
    """How long a result is kept after the end of its job."""
    max_result_ttl_s: float = Field(default=7 * 86_400.0, ge=1, le=MAX_DURATION_S)
    """The longest `result_ttl_s` that a request may ask for."""
    dead_ttl_s: float = Field(default=7 * 86_400.0, ge=1)
    """How long a failed job is kept."""
    max_dead: int = Field(default=10_000, ge=1)
    """Failed jobs that are kept; beyond it the oldest are dropped."""
    max_finished: int = Field(default=1_000_000, ge=1)
    """Other ended jobs that are kept with their results; beyond it the oldest are dropped."""
    spare_bytes: int = Field(default=250_000, ge=0)
    """Bytes of requests of cancelled, expired and shed jobs that are kept, the latest, for a requeue."""
    max_attempts: int = Field(default=3, ge=1, le=1000)
    """Failures after which a job has failed for good."""
    max_waits: int = Field(default=1000, ge=0, le=MOST)
    """How often a job may wait for its endpoints at no cost; then it fails as `too_many_waits`."""
    retry_base_s: float = Field(default=0.5, ge=0)
    """The wait before the first retry; doubles with each retry, with jitter."""
    retry_cap_s: float = Field(default=30.0, ge=0)
    """The longest wait before a retry."""

    routes: dict[Name, RouteSettings] = Field(default_factory=_echo_routes, min_length=1)
    """The model names that users may ask for."""
    tenants: dict[NameOrAll, RateSettings] = Field(default_factory=dict)
    """Rate limits by tenant; `*` is for each tenant that is not named."""

    @property
    def configured_routes(self) -> Mapping[str, RouteSettings]:
        """The routes without the echo, which is there if none is configured."""
        return self.routes if "routes" in self.model_fields_set else {}

    @model_validator(mode="after")
    def _results_go_in_time(self) -> Settings:
        if self.result_ttl_s > self.max_result_ttl_s:
            raise ValueError(
                f"result_ttl_s: {self.result_ttl_s:g} s is more than max_result_ttl_s allows, "
                f"{self.max_result_ttl_s:g} s: lower the one or raise the other"
            )
        return self

    @model_validator(mode="after")
    def _known_fallbacks(self) -> Settings:
        for name, route in self.routes.items():
            for at, fallback in enumerate(route.fallbacks):
                if wrong := self._wrong_fallback(name, fallback, route.fallbacks[:at]):
                    raise ValueError(f"routes.{name}.fallbacks.{at}: {wrong}")
        return self

    @model_validator(mode="after")
    def _known_helpers(self) -> Settings:
        for name, route in self.routes.items():
            for helper, kind in (("embeddings", Kind.EMBEDDING), ("rerank", Kind.RERANK)):
                named = getattr(route.rag, helper, None)
                fit = sorted(one for one, its in self.routes.items() if its.kind is kind)
                if named is not None and named not in fit:
                    there = ", ".join(fit) or "none yet"
                    raise ValueError(
                        f'routes.{name}.rag.{helper}: give a route with kind = "{kind}"; there are: {there}'
                    )
        return self

    def _wrong_fallback(self, route: str, fallback: str, before: list[Name]) -> str:
        if fallback == route:
            return "a route cannot be its own fallback"
        if fallback not in self.routes:
            return f"there is no route {fallback!r}; give one of {', '.join(sorted(self.routes))}"
        if self.routes[fallback].kind is not self.routes[route].kind:
            return f"{fallback!r} does another kind of work; give a route with the same kind"
        return f"{fallback!r} is named twice" if fallback in before else ""

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _in_any_case(cls, word: Any) -> Any:
        return word.lower() if isinstance(word, str) else word

    @field_validator("redis_url")
    @classmethod
    def _known_scheme(cls, secret: SecretStr) -> SecretStr:
        url = secret.get_secret_value()
        if url != EMBEDDED and not url.startswith(("redis://", "rediss://", "unix://", *SENTINEL_SCHEMES)):
            raise ValueError(
                "give redis://, rediss://, redis+sentinel:// or unix://, or 'embedded' for a private server"
            )
        return secret

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take only the values that the caller passes: `load_settings` merges file and environment."""
        return (init_settings,)
