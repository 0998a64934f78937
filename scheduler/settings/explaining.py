"""Invalid settings in the words of this package: which setting, what is wrong, what to give."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pydantic import ValidationError

from scheduler.mistakes import what_to_give
from scheduler.settings.endpoint import BreakerSettings, EndpointSettings
from scheduler.settings.route import AssembleSettings, BatchSettings, PostSettings, RagSettings, RouteSettings
from scheduler.settings.settings import ENV_PREFIX, Settings


def explain(error: ValidationError, path: str | None) -> str:
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
