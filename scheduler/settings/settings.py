"""Everything that can be set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from scheduler.model import DEFAULT_MODEL, MAX_DURATION_S, NAME, Name
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
    """Everything that can be set. Durations are in seconds."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        nested_model_default_partial_update=True,
    )

    redis_url: SecretStr = SecretStr("redis://localhost:6379")
    data_dir: Path | None = None
    queue: str = Field(default="default", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    worker_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._:@-]{1,128}$")
    log_format: Literal["auto", "json", "human"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    lease_s: float = Field(default=10.0, ge=0.5, le=3600)
    max_running: int = Field(default=256, ge=1, le=100_000)
    max_running_bytes: int = Field(default=128 << 20, ge=1, le=MOST)
    drain_s: float = Field(default=30.0, ge=0)
    redis_wait_s: float = Field(default=10.0, ge=0)
    redis_timeout_s: float = Field(default=10.0, ge=0.1, le=3600)
    traces: bool = False
    traces_per_s: float = Field(default=50.0, gt=0, le=MOST)

    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    metrics_host: str = Field(default="127.0.0.1", min_length=1)

    max_waiting: int = Field(default=100_000, ge=1)
    when_full: Literal["reject", "shed", "block"] = "reject"
    block_timeout_s: float = Field(default=30.0, ge=0)
    aging_s: float = Field(default=30.0, ge=0)
    dedup_ttl_s: float = Field(default=3600.0, ge=1)
    result_ttl_s: float = Field(default=3600.0, ge=1, le=MAX_DURATION_S)
    max_result_ttl_s: float = Field(default=7 * 86_400.0, ge=1, le=MAX_DURATION_S)
    dead_ttl_s: float = Field(default=7 * 86_400.0, ge=1)
    max_dead: int = Field(default=10_000, ge=1)
    max_finished: int = Field(default=1_000_000, ge=1)
    spare_bytes: int = Field(default=250_000, ge=0)
    max_attempts: int = Field(default=3, ge=1, le=1000)
    max_waits: int = Field(default=1000, ge=0, le=MOST)
    retry_base_s: float = Field(default=0.5, ge=0)
    retry_cap_s: float = Field(default=30.0, ge=0)

    routes: dict[Name, RouteSettings] = Field(default_factory=_echo_routes, min_length=1)
    tenants: dict[NameOrAll, RateSettings] = Field(default_factory=dict)

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
                where = f"routes.{name}.fallbacks.{at}"
                if fallback == name:
                    raise ValueError(f"{where}: a route is no fallback of itself")
                if fallback not in self.routes:
                    raise ValueError(
                        f"{where}: there is no route {fallback!r}; there are {', '.join(sorted(self.routes))}"
                    )
                if fallback in route.fallbacks[:at]:
                    raise ValueError(f"{where}: {fallback!r} is named twice")
        return self

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
        """Only what the caller passes: `load_settings` puts file and environment together."""
        return (init_settings,)
