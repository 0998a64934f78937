"""Reads settings: `SCHEDULER_*` environment variables over the TOML file that `SCHEDULER_CONFIG` names."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from scheduler.errors import ConfigError
from scheduler.settings.explaining import explain, suggest
from scheduler.settings.settings import ENV_PREFIX, Settings

CONFIG_VARIABLE = "SCHEDULER_CONFIG"
ROUTES_VARIABLE = "SCHEDULER_ROUTES"
TENANTS_VARIABLE = "SCHEDULER_TENANTS"

# Kubernetes sets these for a Service with the name "scheduler".
_KUBERNETES = re.compile(r"^SCHEDULER_(SERVICE_(HOST|PORT).*|PORT(_.*)?)$")


def load_settings(
    config: str | Path | None = None, /, *, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Read the settings: `overrides` win over the environment, the environment over the TOML file.

    `config` is the path of the file; by default it is in the variable `SCHEDULER_CONFIG`.

    Raises:
        ConfigError: a setting is wrong or unknown, or the file cannot be read; the message names it.
    """
    environ = os.environ if environ is None else environ
    path = Path(config) if config else config_path(environ)
    _refuse_unknown_variables(environ)
    layers = [overrides, _from_environment(environ), _from_file(path) if path else {}]
    try:
        return Settings(**_merge(layers))
    except ValidationError as error:
        raise ConfigError(explain(error, str(path) if path else None)) from None


def config_path(environ: Mapping[str, str] | None = None) -> Path | None:
    """The TOML file that `load_settings` reads by default; None if `SCHEDULER_CONFIG` names none."""
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
        # Compose files write an unset variable as an empty one: ${NAME:-}
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
    """The first variable that should hold JSON and does not."""
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
        names = {other.removeprefix(ENV_PREFIX) for other in known}
        hint = suggest(name.removeprefix(ENV_PREFIX), names, prefix=ENV_PREFIX)
        raise ConfigError(f"{variable}: no such setting{hint}")


def _merge(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge mappings, the first layer winning; replace lists and scalars as a whole."""
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
