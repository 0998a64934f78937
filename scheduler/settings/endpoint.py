"""Settings of one endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)

from scheduler.model import Name
from scheduler.settings.section import DAY_S, MOST, Section


class BreakerSettings(Section):
    """When to stop sending prompts to an endpoint, and for how long.

    After too many failures the worker process checks the endpoint with a prompt of its own. If the check
    fails too, the breaker opens until a later check succeeds.
    """

    failures: int = Field(default=5, ge=1)
    """Check the endpoint after this many failed calls in a row."""
    failure_rate: float = Field(default=0.5, gt=0, le=1)
    """Check it too when this share of the calls within `window_s` has failed, above 0 and at most 1."""
    min_calls: int = Field(default=20, ge=1)
    """`failure_rate` applies from this many calls within `window_s`."""
    window_s: float = Field(default=30.0, gt=0, le=DAY_S)
    """How far back `failure_rate` looks."""
    open_s: float = Field(default=2.0, gt=0, le=DAY_S)
    """How long the breaker stays open before the next check; doubles with each check that fails."""
    max_open_s: float = Field(default=60.0, gt=0, le=DAY_S)
    """The longest time between two checks."""


class RateSettings(Section):
    """Rate limits per minute, over all worker processes. None: no limit."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=MOST)
    """Requests begun in any 60 seconds."""
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MOST)
    """Tokens of prompts and answers."""

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


class FromVariable(Section):
    """A value from an environment variable instead of the file: `{ env = "NAME" }`."""

    env: str = Field(min_length=1)
    """The name of the variable."""


class EndpointSettings(RateSettings):
    """One base URL that serves a route."""

    backend: Name
    """The kind of model worker: `echo`, `llama_cpp`, `vllm`, `openai`, `anthropic`, or a package's own."""
    base_url: str = ""
    """Such as `http://127.0.0.1:8000`; `echo` needs none."""
    model: str | None = Field(default=None, min_length=1)
    """The model's name on that server; None: the route's name."""
    api_key_env: str | None = Field(default=None, min_length=1)
    """The environment variable that holds the API key."""
    headers: dict[str, SecretStr | FromVariable] = Field(default_factory=dict)
    """Headers of every request: text, or `{ env = "NAME" }` for a secret."""
    query: dict[str, SecretStr | FromVariable] = Field(default_factory=dict)
    """Query parameters of every request, written like `headers`."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """The endpoint's share of the route's work, relative to the other endpoints."""
    max_in_flight: int | None = Field(default=None, ge=1, le=100_000)
    """Prompts in flight at once, over all worker processes; None: ask the server, or find out."""
    reserved: Annotated[int, Field(ge=0, le=100_000)] | Literal["auto"] = 0
    """Slots of `max_in_flight` that are reserved for priorities 8 and 9; `auto`: as many as they need."""
    timeout_s: float = Field(default=120.0, gt=0, le=DAY_S)
    """The longest wait for anything: a whole answer that is not streamed, the first token, the next token."""
    first_token_timeout_s: float = Field(default=30.0, gt=0, le=DAY_S)
    """The wait for the first token of a streamed answer."""
    idle_timeout_s: float = Field(default=60.0, gt=0, le=DAY_S)
    """The wait for each token after the first."""
    total_timeout_s: float | None = Field(default=None, gt=0, le=DAY_S)
    """The time for a whole call; None: no limit while tokens arrive."""
    max_output_bytes: int = Field(default=1 << 20, ge=1, le=1 << 30)
    """The size of an answer with its reasoning and tool calls. A longer one fails as `answer_too_long`."""
    breaker: BreakerSettings = BreakerSettings()
    """When to stop sending prompts to the endpoint."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of this kind of model worker."""

    @field_validator("headers", "query", mode="before")
    @classmethod
    def _text_or_variable(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {name: _text_or_variable(name, value) for name, value in values.items()}

    @field_validator("reserved", mode="wrap")
    @classmethod
    def _leaves_places(
        cls, value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> int | Literal["auto"]:
        try:
            reserved: int | Literal["auto"] = validate(value)
        except ValidationError:
            raise ValueError('give a whole number from 0 to 100,000, or "auto"') from None
        most = info.data.get("max_in_flight")
        if most is not None and reserved != "auto" and reserved >= most:
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
