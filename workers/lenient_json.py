"""JSON as engines write it, where that is not quite JSON.

For what a strict parser has refused: `NaN` and `Infinity`, half a surrogate pair, bytes that are no UTF-8,
raw control characters in strings.
"""

from __future__ import annotations

import json
from typing import Any


def loads(data: bytes) -> Any:
    """The value; bytes that are no UTF-8 become U+FFFD, half a character stays half a one.

    Raises:
        ValueError: it is no JSON even so.
    """
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), strict=False)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
