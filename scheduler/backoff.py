"""The waits between tries of something that is expected to work again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

FIRST_S = 0.05
LONGEST_S = 1.0


def backoff(
    *, first_s: float = FIRST_S, longest_s: float = LONGEST_S, chance: Callable[[], float] = random.random
) -> Iterator[float]:
    """Yield seconds to wait: doubling from `first_s` to `longest_s`, each cut by up to a half at random.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter").
    """
    wait_s = first_s
    while True:
        yield wait_s * (0.5 + chance() / 2)
        wait_s = min(longest_s, wait_s * 2)
