"""pydantic's reports in plain words: what to give instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_BY_TYPE = {
    "missing": "is missing",
    "string_unicode": "give valid UTF-8",
    "finite_number": "give a finite number",
    "greater_than": "give more than {gt}",
    "greater_than_equal": "give {ge} or more",
    "less_than": "give less than {lt}",
    "less_than_equal": "give {le} or less",
    "literal_error": "give {expected}",
    "enum": "give {expected}",
    "string_too_short": "give at least {min_length} characters",
    "string_too_long": "give at most {max_length} characters",
    "too_short": "give at least {min_length}",
    "too_long": "give at most {max_length}",
}
_BY_KIND = {
    "string": "give text",
    "int": "give a whole number",
    "float": "give a number",
    "bool": "give true or false",
    "list": "give a list",
    "dict": "give a mapping of names to values",
    "model": "give a mapping of names to values",
    "path": "give a path",
}


def what_to_give(detail: ErrorDetails) -> str:
    """Say what to give for a field, without its name and without its value."""
    kind = detail["type"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind in _BY_TYPE:
        return _singular(_BY_TYPE[kind].format_map({name: _number(one) for name, one in context.items()}))
    family, _, trouble = kind.partition("_")
    if family in _BY_KIND and trouble in ("type", "parsing", "from_float", "parsing_size", "attributes_type"):
        return _BY_KIND[family]
    return detail["msg"].removeprefix("Value error, ")


def alternatives(said: list[str]) -> str:
    """Join what to give for each type of a union into one sentence."""
    different = list(dict.fromkeys(said))
    rest = [one.removeprefix("give ") for one in different[1:] if one.startswith("give ")]
    return " or ".join([different[0], *rest])


def _number(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value


def _singular(sentence: str) -> str:
    return sentence.replace("at least 1 characters", "at least one character").replace(
        "at least 1", "at least one"
    )
