"""Counts of tokens, as far as an engine can be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_TOKENS = 100_000_000
"""More than any context holds: a count beyond it is the engine's mistake."""


def token_count(counts: Any, name: str) -> int | None:
    """The count called `name`; None where there is none that can be right.

    A whole number from 0 to `MAX_TOKENS` can. `counts` may be anything: engines send null, lists and text.
    """
    value = counts.get(name) if isinstance(counts, Mapping) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    return value if 0 <= value <= MAX_TOKENS else None
