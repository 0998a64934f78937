"""What one call of a script may carry, and how its arguments are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from scheduler.queue.scripts import Argument

CALL_BYTES = 1 << 20
"""Requests or events that one script call may carry, bytes: Lua takes some ms to copy more."""

STAGED_BYTES = 256 << 10
"""A larger request or result, bytes, goes to Redis ahead of its script: a plain SET copies it once."""

STAGED_MS = 60_000

T = TypeVar("T")


def by_bytes(items: Sequence[T], size_of: Callable[[T], int]) -> list[Sequence[T]]:
    """Items in parts that fit a call each; a large item is a part of its own."""
    parts: list[Sequence[T]] = []
    began = size = 0
    for at, item in enumerate(items):
        item_size = size_of(item)
        if size + item_size > CALL_BYTES and at > began:
            parts.append(items[began:at])
            began, size = at, 0
        size += item_size
    if items:
        parts.append(items[began:])
    return parts


def optional(value: Argument | None) -> Argument:
    """An argument of a script; `''` says that it is not set."""
    return "" if value is None else value
