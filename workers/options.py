"""Reads `EndpointConfig.options` strictly: a wrong name or value is an error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection

from workers.base import EndpointConfig
from workers.errors import WorkerConfigError


def refuse_unknown_options(config: EndpointConfig, known: Collection[str]) -> None:
    """Check the names of all options.

    Raises:
        WorkerConfigError: the backend does not have one of them.
    """
    for name in config.options:
        if name not in known:
            raise WorkerConfigError(
                f"options.{name}: backend {config.backend!r} has no such option; {_hint(name, known)}"
            )


def number_option(
    config: EndpointConfig, name: str, default: float, *, low: float = 0.0, high: float = math.inf
) -> float:
    """Read a finite number from `low` to `high`.

    Raises:
        WorkerConfigError: it is not a number, or out of range.
    """
    value = config.options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WorkerConfigError(f"options.{name}: is {type(value).__name__}; give a number")
    if not (low <= value <= high and math.isfinite(value)):
        bound = f"of {low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
        raise WorkerConfigError(f"options.{name}: is {value}; give a number {bound}")
    return float(value)


def count_option(config: EndpointConfig, name: str) -> int | None:
    """Read a whole number of 1 or more; None if the option is not set.

    Raises:
        WorkerConfigError: it is something else.
    """
    value = config.options.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise WorkerConfigError(f"options.{name}: is {value!r}; give a whole number of 1 or more")
    return value


def flag_option(config: EndpointConfig, name: str, *, default: bool) -> bool:
    """Read true or false.

    Raises:
        WorkerConfigError: it is something else.
    """
    value = config.options.get(name, default)
    if not isinstance(value, bool):
        raise WorkerConfigError(f"options.{name}: is {value!r}; give true or false")
    return value


def text_option(config: EndpointConfig, name: str) -> str | None:
    """Read text; None if the option is not set.

    Raises:
        WorkerConfigError: it is not text, or empty.
    """
    value = config.options.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise WorkerConfigError(f"options.{name}: give some text, or leave it out")
    return value


def _hint(name: str, known: Collection[str]) -> str:
    if not known:
        return "it takes none"
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
