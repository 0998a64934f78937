"""From a request to what the queue stores. Pure: no I/O."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable
from typing import Any

import orjson

from scheduler.client.ids import new_job_id
from scheduler.client.routes import KnownRoute
from scheduler.errors import InvalidRequest
from scheduler.model import MAX_REQUEST_BYTES, PromptRequest
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.records import NewJob

AUTO = "auto"

STORED_FIELDS = frozenset(
    {
        "prompt",
        "messages",
        "params",
        "tools",
        "tool_choice",
        "response_format",
        "extra_body",
        "metadata",
        "session",
        "stream",
        "max_waits",
    }
)
"""What the worker process needs of a request; the rest is in the job's record."""

_PLAIN = frozenset({"prompt"})
# Where a user may put any JSON.
_FREE_FORM = ("messages", "tools", "tool_choice", "response_format", "extra_body", "metadata")
# What changes nothing about the answer.
_NOT_CONTENT = ("metadata", "session", "stream", "max_waits")


TRACE_FIELDS = ("traceparent", "tracestate")
"""What travels beside them where there are traces. It is no part of the content."""


def new_job(request: PromptRequest, route: KnownRoute, *, trace: bytes = b"") -> NewJob:
    """Make the job of a request.

    `trace` has the `TRACE_FIELDS` by which the job's spans find the caller's, as a JSON object.

    Raises:
        InvalidRequest: the request cannot be stored as JSON, is too big, or its `result_ttl_s` too long.
    """
    if request.result_ttl_s is not None and request.result_ttl_s > route.max_result_ttl_s:
        raise InvalidRequest(
            f"result_ttl_s: {request.result_ttl_s:,.0f} s is more than the queue keeps a result, "
            f"{route.max_result_ttl_s:,.0f} s; give less, or raise the setting max_result_ttl_s",
            field="result_ttl_s",
        )
    fields = _fields(request)
    payload = _json(fields)
    key_hash = content = None
    if request.dedup_key is not None:
        content = content_hash(route.name, fields, uses_metadata=route.uses_metadata)
        key_hash = dedup_hash(request.dedup_key)
        if request.dedup_key == AUTO:
            key_hash = content = dedup_hash(f"{AUTO}\0{content}\0{route.revision}")
    if trace:
        payload = _joined(payload, trace)
    return NewJob(
        job_id=request.job_id or new_job_id(),
        lane=route.name,
        priority=request.priority,
        tenant=request.tenant,
        payload=payload,
        dedup_hash=key_hash,
        content_hash=content,
        dedup=request.dedup,
        deadline_ms=_ms(request.deadline_s),
        delay_ms=_ms(request.delay_s),
        max_attempts=request.max_attempts,
        result_ttl_ms=_ms(request.result_ttl_s),
    )


def stored_request(request: PromptRequest, *, trace: bytes = b"") -> bytes:
    """What is stored of a request for the worker process, JSON. `trace` as for `new_job`.

    Raises:
        InvalidRequest: it cannot be stored as JSON, or is too big.
    """
    payload = _json(_fields(request))
    return _joined(payload, trace) if trace else payload


def _joined(payload: bytes, more: bytes) -> bytes:
    """One JSON object of two, neither of them empty."""
    return payload[:-1] + b"," + more[1:]


def content_hash(model: str, fields: dict[str, Any], *, uses_metadata: bool) -> str:
    """A hash of all that changes the answer: 22 characters."""
    left_out = _NOT_CONTENT[1:] if uses_metadata else _NOT_CONTENT
    content = {name: value for name, value in fields.items() if name not in left_out}
    data = orjson.dumps([model, content], option=orjson.OPT_SORT_KEYS)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _fields(request: PromptRequest) -> dict[str, Any]:
    stored = STORED_FIELDS & request.model_fields_set
    if stored == _PLAIN:  # the most of them, and pydantic takes its time
        return {"prompt": request.prompt}
    try:
        return request.model_dump(include=set(stored), exclude_defaults=True)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from None


def _json(fields: dict[str, Any]) -> bytes:
    try:
        payload = orjson.dumps(fields)
    except TypeError as error:
        name = _unwritable(fields)
        raise InvalidRequest(f"{name}: cannot be written as JSON: {error}", field=name) from None
    for name in _FREE_FORM:
        if (value := fields.get(name)) is not None and (path := _not_finite(value, name)):
            # orjson would write null, and JSON has nothing better.
            raise InvalidRequest(f"{path}: is not a finite number; give a finite one, or text", field=name)
    if len(payload) > MAX_REQUEST_BYTES:
        raise InvalidRequest(
            f"the request has {len(payload):,} bytes as JSON; at most {MAX_REQUEST_BYTES:,} are taken"
        )
    return payload


def _unwritable(fields: dict[str, Any]) -> str | None:
    for name, value in fields.items():
        try:
            orjson.dumps(value)
        except TypeError:
            return name
    return None


def _not_finite(value: Any, path: str) -> str | None:
    """Where in nested values there is a NaN or an infinity, as `extra_body.bias.0`."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return None
    return next((found for key, one in items if (found := _not_finite(one, f"{path}.{key}"))), None)


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else max(1, round(seconds * 1000)) if seconds > 0 else 0
