"""Settings of one endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from scheduler.model import Name
from scheduler.settings.section import DAY_S, MOST, Section


class BreakerSettings(Section):
    """When an endpoint is left alone, and for how long.

    It is checked after `failures` failed calls in a row, or when of at least `min_calls` calls in the last
    `window_s` seconds the part `failure_rate` failed; it opens when it fails the check. It stays open for
    `open_s`, twice as long each time that the next check fails, up to `max_open_s`.
    """

    failures: int = Field(default=5, ge=1)
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    min_calls: int = Field(default=20, ge=1)
    window_s: float = Field(default=30.0, gt=0, le=DAY_S)
    open_s: float = Field(default=2.0, gt=0, le=DAY_S)
    max_open_s: float = Field(default=60.0, gt=0, le=DAY_S)


class RateSettings(Section):
    """How much may go in a minute, over all worker processes. None: as much as there is."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=MOST)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MOST)

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


class FromVariable(Section):
    """A value that stands in an environment variable, and not in the file: `{ env = "NAME" }`."""

    env: str = Field(min_length=1)


class EndpointSettings(RateSettings):
    """One base URL that serves a route.

    `headers` and `query` go with every request: text, or `{ env = "NAME" }` for a secret.
    `max_in_flight` counts prompts over all worker processes; without it the back end is asked, or found out.
    `reserved` of those places are left free for priorities 8 and 9.
    `options` belong to that kind of model worker alone.
    """

    backend: Name
    base_url: str = ""
    model: str | None = Field(default=None, min_length=1)
    api_key_env: str | None = Field(default=None, min_length=1)
    headers: dict[str, SecretStr | FromVariable] = Field(default_factory=dict)
    query: dict[str, SecretStr | FromVariable] = Field(default_factory=dict)
    weight: float = Field(default=1.0, gt=0, le=1e6)
    max_in_flight: int | None = Field(default=None, ge=1, le=100_000)
    reserved: int = Field(default=0, ge=0, le=100_000)
    timeout_s: float = Field(default=120.0, gt=0, le=DAY_S)
    first_token_timeout_s: float = Field(default=30.0, gt=0, le=DAY_S)
    idle_timeout_s: float = Field(default=60.0, gt=0, le=DAY_S)
    total_timeout_s: float | None = Field(default=None, gt=0, le=DAY_S)
    max_output_bytes: int = Field(default=1 << 20, ge=1, le=1 << 30)
    breaker: BreakerSettings = BreakerSettings()
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("headers", "query", mode="before")
    @classmethod
    def _text_or_variable(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: _text_or_variable(name, value) for name, value in values.items()}

    @field_validator("reserved")
    @classmethod
    def _leaves_places(cls, reserved: int, info: ValidationInfo) -> int:
        most = info.data.get("max_in_flight")
        if most is not None and reserved >= most:
            raise ValueError(
                f"leaves no place for priorities below 8: give less than max_in_flight, which is {most}"
            )
        return reserved


def _text_or_variable(name: str, value: Any) -> SecretStr | FromVariable:
    if isinstance(value, SecretStr | FromVariable):
        return value
    if isinstance(value, str):
        return SecretStr(value)
    if (
        isinstance(value, Mapping)
        and value.keys() == {"env"}
        and isinstance(value["env"], str)
        and value["env"]
    ):
        return FromVariable(env=value["env"])
    raise ValueError(f'{name} is neither text nor {{ env = "NAME" }}, which takes it from a variable')
