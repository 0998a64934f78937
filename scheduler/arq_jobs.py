"""How jobs of arq are stored: as JSON, errors included. For arq's `job_serializer` and `job_deserializer`.

An error is an object with its `code` and `message`, and what else it says (`reason`, `job_id`, `field`, …).
`decode` makes the error of it again, so that `await job.result()` raises it. Without `decode`, as where only
orjson reads it, arq raises `arq.jobs.SerializationError`, whose first argument is that object.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from scheduler.errors import error_fields, error_from

_TYPES = {"f": str, "a": list, "k": dict, "t": int | None, "et": int}
"""Of a job or a result: the function, its arguments by place and by name, the try, when enqueued, ms."""


def encode(value: Any) -> bytes:
    """What arq stores of a job or a result."""
    return orjson.dumps(value, default=_error)


def decode(data: bytes) -> dict[str, Any]:
    """What arq has stored. arq logs the `repr` of arguments: prompts stay out of it.

    Raises:
        ValueError: it cannot be arq's.
    """
    job: dict[str, Any] = _checked(orjson.loads(data))
    if isinstance(job.get("a"), list):
        job["a"] = [_Unsaid(one) if isinstance(one, dict) else one for one in job["a"]]
    if isinstance(job.get("k"), dict):
        job["k"] = {name: _Unsaid(one) if isinstance(one, dict) else one for name, one in job["k"].items()}
    result = job.get("r")
    if job.get("s") is False and isinstance(result, dict):
        # What arq stores of an aborted job, and what its Job.abort waits for.
        aborted = result.get("code") == asyncio.CancelledError.__name__
        job["r"] = asyncio.CancelledError() if aborted else error_from(result)
    return job


def _checked(job: Any) -> dict[str, Any]:
    if not isinstance(job, dict):
        raise ValueError("it is no JSON object; is it arq's, with this serializer?")
    for name, type_ in _TYPES.items():
        if name in job and not isinstance(job[name], type_):
            raise ValueError(f"{name}: it has a wrong type")
    return job


class _Unsaid(dict[str, Any]):
    """A request as arq shows it in its log: not at all."""

    def __repr__(self) -> str:
        return "…"


def _error(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseException):
        return error_fields(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
