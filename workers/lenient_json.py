"""JSON that a strict parser refuses, as some engines write it.

It may have `NaN` and `Infinity`, half a surrogate pair, invalid UTF-8, and raw control characters in strings.
"""

from __future__ import annotations

import json
from typing import Any


def loads(data: bytes) -> Any:
    """Parse it; invalid UTF-8 becomes U+FFFD, and half of a surrogate pair is kept.

    Raises:
        ValueError: it is not JSON even so.
    """
    try:
        return json.loads(data.decode("utf-8-sig", "replace"), strict=False)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
