"""Stores arq's jobs, results and errors as JSON: for its `job_serializer` and `job_deserializer`.

An error is an object with its `code`, its `message` and its attributes (`reason`, `job_id`, `field`, …).
`decode` makes the error again, so that `await job.result()` raises it. If you deserialize with orjson alone,
arq raises `arq.jobs.SerializationError` with that object as its first argument.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from scheduler.errors import error_fields, error_from

_TYPES = {"f": str, "a": list, "k": dict, "t": int | None, "et": int}
"""The function, its positional and named arguments, the try, and the time of the enqueue in ms."""


def encode(value: Any) -> bytes:
    """Encode a job or a result."""
    return orjson.dumps(value, default=_error)


def decode(data: bytes) -> dict[str, Any]:
    """Decode a job or a result. The `repr` of requests, which arq logs, hides their content.

    Raises:
        ValueError: the data is not a job or a result of arq.
    """
    job: dict[str, Any] = _checked(orjson.loads(data))
    if isinstance(job.get("a"), list):
        job["a"] = [_Unsaid(one) if isinstance(one, dict) else one for one in job["a"]]
    if isinstance(job.get("k"), dict):
        job["k"] = {name: _Unsaid(one) if isinstance(one, dict) else one for name, one in job["k"].items()}
    result = job.get("r")
    if job.get("s") is False and isinstance(result, dict):
        # arq stores this for an aborted job, and its Job.abort waits for it.
        aborted = result.get("code") == asyncio.CancelledError.__name__
        job["r"] = asyncio.CancelledError() if aborted else error_from(result)
    return job


def _checked(job: Any) -> dict[str, Any]:
    if not isinstance(job, dict):
        raise ValueError("not a JSON object; did arq write it with this serializer?")
    for name, type_ in _TYPES.items():
        if name in job and not isinstance(job[name], type_):
            raise ValueError(f"{name}: has a wrong type")
    return job


class _Unsaid(dict[str, Any]):
    """A request that arq does not show in its log."""

    def __repr__(self) -> str:
        return "…"


def _error(value: Any) -> dict[str, Any]:
    if isinstance(value, BaseException):
        return error_fields(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
