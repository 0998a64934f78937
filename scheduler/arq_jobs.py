"""How jobs of arq are stored: as JSON, errors included. For arq's `job_serializer` and `job_deserializer`.

An error is an object with its `code` and `message`, and what else it says (`reason`, `job_id`, `field`, …).
`decode` makes the error of it again, so that `await job.result()` raises it. Without `decode`, as where only
orjson reads it, arq raises `arq.jobs.SerializationError`, whose first argument is that object.
"""

from __future__ import annotations

from typing import Any

import orjson

from scheduler.errors import error_fields, error_from


def encode(value: Any) -> bytes:
    """What arq stores of a job or a result."""
    return orjson.dumps(value, default=_error)


def decode(data: bytes) -> dict[str, Any]:
    """What arq has stored. arq logs the `repr` of arguments: prompts stay out of it."""
    job: dict[str, Any] = orjson.loads(data)
    if isinstance(job.get("a"), list):
        job["a"] = [_Unsaid(one) if isinstance(one, dict) else one for one in job["a"]]
    if isinstance(job.get("k"), dict):
        job["k"] = {name: _Unsaid(one) if isinstance(one, dict) else one for name, one in job["k"].items()}
    result = job.get("r")
    if job.get("s") is False and isinstance(result, dict):
        job["r"] = error_from(result)
    return job


class _Unsaid(dict[str, Any]):
    """A request as arq shows it in its log: not at all."""

    def __repr__(self) -> str:
        return "…"


def _error(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseException):
        return error_fields(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
