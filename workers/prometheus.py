"""Reads single gauges out of a server's metrics, without parsing all of them.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

import math
import re

from workers.base import Load
from workers.errors import WorkerError
from workers.http import HttpEndpoint


async def load_of(endpoint: HttpEndpoint, path: str, *, running: str, waiting: str) -> Load | None:
    """The load, by the gauges of these names; None if the server lacks them or cannot be asked."""
    try:
        metrics = await endpoint.get_bytes(path)
    except WorkerError:
        return None
    now_running, now_waiting = gauge(metrics, running), gauge(metrics, waiting)
    if now_running is None or now_waiting is None or not math.isfinite(now_running + now_waiting):
        return None
    return Load(round(now_running), round(now_waiting))


def gauge(metrics: bytes, name: str) -> float | None:
    """The value of a gauge, summed over its label sets; None if it is missing."""
    # Greedy: a label's value may hold a brace, but no line end.
    lines = re.findall(rb"^" + re.escape(name.encode()) + rb"(?:\{.*\})?[ \t]+([0-9.eE+-]+)", metrics, re.M)
    try:
        return sum(map(float, lines)) if lines else None
    except ValueError:
        return None
