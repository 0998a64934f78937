"""Settings: `SCHEDULER_*` environment variables (nested by `__`) over the TOML file `SCHEDULER_CONFIG` names.

Nothing is read at import: call `load_settings()`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from scheduler.errors import ConfigError
from scheduler.mistakes import what_to_give
from scheduler.model import DEFAULT_MODEL, MAX_DURATION_S, NAME, Name
from scheduler.redis_server.sentinel import SCHEMES as SENTINEL_SCHEMES

ENV_PREFIX = "SCHEDULER_"
CONFIG_VARIABLE = "SCHEDULER_CONFIG"
ROUTES_VARIABLE = "SCHEDULER_ROUTES"
TENANTS_VARIABLE = "SCHEDULER_TENANTS"
EMBEDDED = "embedded"

NameOrAll: TypeAlias = Annotated[str, Field(pattern=rf"^({NAME}|\*)$")]

# Kubernetes sets these for a Service that happens to be called "scheduler".
_KUBERNETES = re.compile(r"^SCHEDULER_(SERVICE_(HOST|PORT).*|PORT(_.*)?)$")


DAY_S = 86_400.0
MOST = 1_000_000_000
"""Bounds of durations and of counts a minute: what is beyond them is a slip of the hand."""


class _Strict(BaseModel):
    """Refuses what pydantic would take for a number or a list, and its writer did not mean."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_other_type(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and kind in {int, float, int | None, float | None}:
            raise ValueError("give a number, not true or false")
        return value


class _Section(_Strict):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BatchSettings(_Section):
    """How long and how far inference calls are gathered. `max_size = 1` turns gathering off."""

    max_size: int = Field(default=32, ge=1, le=1024)
    max_wait_ms: float = Field(default=5.0, ge=0, le=60_000)
    max_tokens: int = Field(default=8192, ge=1)


class RagSettings(_Section):
    """Retrieval over a folder of text and Markdown files: `k` passages of about `passage_words` words."""

    documents: Path
    k: int = Field(default=4, ge=1, le=100)
    passage_words: int = Field(default=200, ge=20, le=5000)


class Example(_Section):
    """One worked example for few-shot prompting."""

    user: str
    assistant: str


class AssembleSettings(_Section):
    """How the prompt is put together.

    `template` is a Jinja2 template that sees `prompt`, `passages`, `metadata` and `examples`; `system` is the
    system prompt; `budget_tokens` bounds the whole prompt and trims passages first.
    """

    template: str | None = None
    system: str | None = None
    examples: list[Example] = Field(default_factory=list)
    budget_tokens: int | None = Field(default=None, ge=16)


class PostSettings(_Section):
    """What happens to the answer: white space trimmed at both ends, personal data redacted."""

    trim: bool = False
    redact: list[Literal["email", "phone", "card"]] = Field(default_factory=list)


class BreakerSettings(_Section):
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


class RateSettings(_Section):
    """How much may go in a minute, over all worker processes. None: as much as there is."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=MOST)
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MOST)

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


class FromVariable(_Section):
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


STAGES = ("rag", "assemble", "inference", "post", "stream")


class RouteSettings(_Section):
    """A model name that users ask for, and how it is served.

    `fallbacks` name routes whose endpoints answer, in that order, while none of its own can.
    `stages` is the order of the stages; a stage of your own stands in it as `"package.module:Name"`.
    """

    endpoints: list[EndpointSettings] = Field(min_length=1)
    fallbacks: list[Name] = Field(default_factory=list)
    batch: BatchSettings = BatchSettings()
    rag: RagSettings | None = None
    assemble: AssembleSettings = AssembleSettings()
    post: PostSettings = PostSettings()
    stages: list[str] = Field(default_factory=lambda: list(STAGES))
    max_waiting: int | None = Field(default=None, ge=1)
    max_attempts: int | None = Field(default=None, ge=1)
    max_waits: int | None = Field(default=None, ge=0)

    @field_validator("stages")
    @classmethod
    def _known_stages(cls, stages: list[str]) -> list[str]:
        for stage in stages:
            if stage not in STAGES and ":" not in stage:
                raise ValueError(
                    f"unknown stage {stage!r}; there are {', '.join(STAGES)}, "
                    "and your own as 'package.module:Name'"
                )
        built_in = [stage for stage in stages if stage in STAGES]
        if built_in != [stage for stage in STAGES if stage in built_in]:
            raise ValueError(f"the built-in stages keep their order: {', '.join(STAGES)}")
        if "inference" not in stages or "stream" not in stages:
            raise ValueError("inference and stream cannot be left out")
        return stages

    @property
    def uses_metadata(self) -> bool:
        """Whether a request's metadata can change the answer."""
        return "metadata" in (self.assemble.template or "") or any(":" in stage for stage in self.stages)

    @property
    def revision(self) -> str:
        """A hash of the settings that change the answer: `dedup_key="auto"` tells old ones from new by it."""
        what = self.model_dump_json(
            include={
                "rag": True,
                "assemble": True,
                "post": True,
                "stages": True,
                "endpoints": {"__all__": {"backend", "model", "options"}},
            }
        )
        return hashlib.blake2b(what.encode(), digest_size=8).hexdigest()


def _echo_routes() -> dict[str, RouteSettings]:
    return {DEFAULT_MODEL: RouteSettings(endpoints=[EndpointSettings(backend="echo")])}


class Settings(_Strict, BaseSettings):
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


def load_settings(
    config: str | Path | None = None, /, *, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Read the settings: `overrides`, over the environment, over the TOML file, over the defaults.

    `config` names the file; without it the variable `SCHEDULER_CONFIG` does.

    Raises:
        ConfigError: naming the setting, where it came from and what to do.
    """
    environ = os.environ if environ is None else environ
    path = Path(config) if config else config_path(environ)
    _refuse_unknown_variables(environ)
    layers = [overrides, _from_environment(environ), _from_file(path) if path else {}]
    try:
        return Settings(**_merge(layers))
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path) if path else None)) from None


def config_path(environ: Mapping[str, str] | None = None) -> Path | None:
    """The TOML file that `load_settings` reads without being told of another; None without one."""
    path = (os.environ if environ is None else environ).get(CONFIG_VARIABLE)
    return Path(path) if path else None


def _from_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; see {CONFIG_VARIABLE}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


class _Environment(EnvSettingsSource):
    def _load_env_vars(self) -> Mapping[str, str | None]:
        # an empty variable is one that is not set, as compose files write it: ${NAME:-}
        return {name.lower(): value for name, value in self._environ.items() if value}

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(Settings)


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = _Environment(environ)()
    except SettingsError:
        raise ConfigError(
            f"{_no_json(environ)}: is not valid JSON; "
            "give JSON, or a variable for each value, with __ between the names"
        ) from None
    if "redis_url" not in values and environ.get("REDIS_URL"):
        values["redis_url"] = environ["REDIS_URL"]
    return values


def _no_json(environ: Mapping[str, str]) -> str:
    """The first variable that is to hold JSON and does not."""
    for variable, value in sorted(environ.items()):
        name = variable.upper()
        whole = name in {ROUTES_VARIABLE, TENANTS_VARIABLE}
        part = name.startswith((ROUTES_VARIABLE, TENANTS_VARIABLE)) and value.lstrip()[:1] in ("[", "{")
        if whole or part:
            try:
                json.loads(value)
            except ValueError:
                return variable
    return ROUTES_VARIABLE


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | {CONFIG_VARIABLE}
    for variable in environ:
        name = variable.upper()
        if not name.startswith(ENV_PREFIX) or _KUBERNETES.match(name) or name in known:
            continue
        if name.startswith((f"{ROUTES_VARIABLE}__", f"{TENANTS_VARIABLE}__")):
            continue
        names = [other.removeprefix(ENV_PREFIX) for other in known]
        near = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), names, n=1)
        hint = f"; did you mean {ENV_PREFIX}{near[0]}?" if near else "; see docs/settings.md"
        raise ConfigError(f"{variable}: no such setting{hint}")


def _merge(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge mappings, the first layer winning; lists and scalars are replaced whole."""
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        _update(merged, layer)
    return merged


def _update(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _update(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _explain(error: ValidationError, path: str | None) -> str:
    return "; ".join(_explanations(error, path))


def _explanations(error: ValidationError, path: str | None) -> Iterator[str]:
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        message = what_to_give(detail)
        if detail["type"] == "extra_forbidden":
            message = f"no such setting{_suggest(str(detail['loc'][-1]))}"
        elif detail["type"] == "string_pattern_mismatch" and name in _SIGNS:
            message = f"give {_SIGNS[name]}"
        elif detail["type"] == "list_type" and detail["loc"][-1] == "endpoints":
            message = f"are a list: begin each with [[{name}]]"
        elif "[key]" in detail["loc"] or detail["type"] == "string_pattern_mismatch":
            message = (
                "is no name: give letters, digits and ._:/@+- (at most 128), and first a letter or digit"
            )
        where = f" (from {path} or a {ENV_PREFIX}* variable)" if path else ""
        yield f"{name}: {message}{where}" if name else f"{message}{where}"


_SIGNS = {
    "queue": "a letter or a digit, then at most 63 letters, digits and . _ -",
    "worker_name": "1 to 128 letters, digits and . _ : @ -",
}


def _suggest(name: str) -> str:
    models = (
        Settings,
        RouteSettings,
        EndpointSettings,
        BatchSettings,
        BreakerSettings,
        RagSettings,
        AssembleSettings,
        PostSettings,
    )
    known = sorted({field for model in models for field in model.model_fields})
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else "; see docs/settings.md"


__all__ = [
    "EMBEDDED",
    "STAGES",
    "AssembleSettings",
    "BatchSettings",
    "BreakerSettings",
    "EndpointSettings",
    "Example",
    "FromVariable",
    "PostSettings",
    "RagSettings",
    "RateSettings",
    "RouteSettings",
    "Settings",
    "config_path",
    "load_settings",
]
