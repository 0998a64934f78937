"""Invalid settings in plain words: which setting, what is wrong, what to give instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from scheduler.mistakes import what_to_give
from scheduler.settings.endpoint import BreakerSettings, EndpointSettings
from scheduler.settings.route import AssembleSettings, BatchSettings, PostSettings, RagSettings, RouteSettings
from scheduler.settings.settings import ENV_PREFIX, Settings

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_CHARACTERS = {
    "queue": "a letter or a digit, then at most 63 letters, digits and . _ -",
    "worker_name": "1 to 128 letters, digits and . _ : @ -",
}
_NAME = "a letter or a digit, then at most 127 letters, digits and . _ : / @ + -"

_MODELS = (
    Settings,
    RouteSettings,
    EndpointSettings,
    BatchSettings,
    BreakerSettings,
    RagSettings,
    AssembleSettings,
    PostSettings,
)


def explain(error: ValidationError, path: str | None) -> str:
    """Turn pydantic's report into one line that names every wrong setting. Never repeats a value.

    `path` is the file that was read, if any.
    """
    return "; ".join(_explanations(error, path))


def _explanations(error: ValidationError, path: str | None) -> Iterator[str]:
    source = f" (from {path} or a {ENV_PREFIX}* variable)" if path else ""
    for detail in error.errors(include_url=False, include_input=False):
        name = ".".join(str(part) for part in detail["loc"] if part != "[key]")
        message = _message(name, detail)
        yield f"{name}: {message}{source}" if name else f"{message}{source}"


def _message(name: str, detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        fields = {field for model in _MODELS for field in model.model_fields}
        return f"no such setting{suggest(str(detail['loc'][-1]), fields)}"
    if detail["type"] == "list_type" and detail["loc"][-1] == "endpoints":
        return f"give a list: begin each endpoint with [[{name}]]"
    if detail["type"] == "string_pattern_mismatch" or "[key]" in detail["loc"]:
        return f"give {_CHARACTERS.get(name, _NAME)}"
    return what_to_give(detail)


def suggest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Which of the known names may have been meant, else the page to read."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else "; see docs/settings.md"
