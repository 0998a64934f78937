"""Token counts that can be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_TOKENS = 100_000_000
"""More than any context holds: a larger count is the engine's mistake."""


def token_count(counts: Any, name: str) -> int | None:
    """The count called `name` if it is a whole number from 0 to `MAX_TOKENS`, else None.

    `counts` may be anything: engines send null, lists and text.
    """
    value = counts.get(name) if isinstance(counts, Mapping) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= MAX_TOKENS else None
