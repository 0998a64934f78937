"""An invalid request in one line: which field, and what to give instead."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scheduler.errors import InvalidRequest
from scheduler.mistakes import alternatives, what_to_give

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


def invalid_request(
    error: ValidationError, *, fields: Sequence[str] = (), parameters: Sequence[str] = ()
) -> InvalidRequest:
    """Turn pydantic's report into one line that names the first field at fault. Never repeats the input.

    `fields` of a request and `parameters` of its `params` are there to be suggested for an unknown name.
    """
    details = error.errors(include_url=False, include_input=False)
    first = _furthest(details)
    path = _path(first)
    message = alternatives([what_to_give(detail) for detail in details if _path(detail) == path])
    if not path and ": " in message:
        path, message = message.split(": ", 1)
    if first["type"] == "extra_forbidden":
        message = f"no such field; {_suggest(path, fields, parameters)}"
    elif first["type"] == "string_pattern_mismatch":
        signs = ". _ : -" if path == "job_id" else ". _ : / @ + -"
        message = f"begin with a letter or a digit; then come at most 127 letters, digits and {signs}"
    return InvalidRequest(f"{path}: {message}" if path else message, field=path or None)


def _furthest(details: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first mistake; in a union, that of the member which matched the furthest."""
    first = details[0]
    for detail in details:
        if _path(detail).startswith(f"{_path(first)}.") and first["loc"][0] == detail["loc"][0]:
            first = detail
    return first


def _path(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"] if not _is_union_tag(part))


def _is_union_tag(part: int | str) -> bool:
    # pydantic adds the tried member of a union to the path: ("temperature", "int")
    return isinstance(part, str) and (
        part in {"bool", "constrained-int", "float", "int", "str"} or "[" in part
    )


MOST_NAMES = 15
"""A message lists no more of them."""

# Fields of OpenAI's that are older names of others, or that the scheduler sets.
_INSTEAD = {
    "function_call": "give tool_choice",
    "functions": "give tools",
    "stream_options": "token counts are in every result",
}


def _suggest(path: str, fields: Sequence[str], parameters: Sequence[str]) -> str:
    parent, _, name = path.rpartition(".")
    if name in _INSTEAD:
        return _INSTEAD[name]
    if not parent and name in parameters:
        return f"params has it: params={{'{name}': …}}"
    known = parameters if parent == "params" else fields
    near = difflib.get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    shown = known if len(known) <= MOST_NAMES else [*known[:MOST_NAMES], "…"]
    return f"there are {', '.join(shown)}"
