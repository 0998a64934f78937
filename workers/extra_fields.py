"""Fields of an answer that have no name in the ports, and how their pieces are put together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import orjson

# Text that comes in pieces. Other text is a name or an id, and a repetition is the same again.
_STREAMED = frozenset(
    {
        "arguments",
        "content",
        "data",
        "input",
        "reasoning",
        "refusal",
        "summary",
        "text",
        "thinking",
        "transcript",
    }
)
_MAX_DEPTH = 16


def unnamed(fields: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The fields that are not among those `named` and say something."""
    return {name: value for name, value in fields.items() if value and name not in named}


def gather(fields: dict[str, Any], said: Mapping[str, Any]) -> None:
    """Add the next piece of some fields to those so far; nothing of `said` is changed, then or later.

    Lists grow, objects by field, streamed text is appended. Objects in lists that carry the same `index` are
    one object. Everything else is replaced.
    """
    for name, value in said.items():
        fields[name] = _gathered(fields.get(name), value, name, _MAX_DEPTH)


def _gathered(known: Any, said: Any, name: str, depth: int) -> Any:
    if said is None or not depth:
        return known if said is None else said
    if isinstance(said, Mapping):
        known = known if isinstance(known, dict) else {}
        for key, value in said.items():
            known[key] = _gathered(known.get(key), value, key, depth - 1)
        return known
    if isinstance(said, list):
        known = known if isinstance(known, list) else []
        for item in said:
            _gather_item(known, item, depth - 1)
        return known
    if name in _STREAMED and isinstance(known, str) and isinstance(said, str):
        return known + said
    return said


def _gather_item(known: list[Any], item: Any, depth: int) -> None:
    index = _index(item)
    at = None if index is None else next((at for at, one in enumerate(known) if _index(one) == index), None)
    if at is not None:
        known[at] = _gathered(known[at], item, "", depth)
    else:
        known.append(_gathered(None, item, "", depth) if index is not None else item)


def _index(item: Any) -> int | None:
    index = item.get("index") if isinstance(item, Mapping) else None
    return index if isinstance(index, int) else None


def size_of(extra: Mapping[str, Any]) -> int:
    """About how many bytes it has as JSON."""
    try:
        return len(orjson.dumps(extra, default=str))
    except (TypeError, ValueError, RecursionError):
        return len(str(extra).encode(errors="replace"))
