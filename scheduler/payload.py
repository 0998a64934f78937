"""The payload of a job: the part of a request that the worker process needs, stored as one JSON object.

The client writes it (`payload_of`, `encode`), the worker process reads it (`decode`), and administrators may
change it before a job runs again. Everything else about a job is in its record. Pure: no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, TypedDict, cast

import orjson

from scheduler.errors import BadRecord, InvalidRequest, UnknownKind
from scheduler.model import MAX_REQUEST_BYTES, PromptRequest


class Kind(StrEnum):
    """The kind of work that a payload asks for."""

    GENERATE = "generate"


class Payload(TypedDict, total=False):
    """The fields of a payload. A field that has its default is left out."""

    kind: str
    """A `Kind`. It is left out for `generate`."""
    prompt: str
    messages: list[dict[str, Any]]
    params: dict[str, Any]
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    response_format: dict[str, Any]
    extra_body: dict[str, Any]
    metadata: dict[str, Any]
    session: str
    stream: bool
    max_waits: int
    traceparent: str
    """The caller's span, as W3C's Trace Context writes it; only with traces."""
    tracestate: str
    """The vendors' part of the trace context; only with traces."""


TRACE_FIELDS = frozenset({"traceparent", "tracestate"})
"""The fields that carry the caller's trace. They are not part of the request."""

REQUEST_FIELDS = frozenset(Payload.__annotations__) - TRACE_FIELDS - {"kind"}
"""The fields that come from the request, by the names they have there."""

FREE_FORM_FIELDS = ("messages", "tools", "tool_choice", "response_format", "extra_body", "metadata")
"""The fields in which a user may put any JSON."""

NOT_CONTENT_FIELDS = frozenset({"metadata", "session", "stream", "max_waits"})
"""The fields that do not change the answer. Metadata does, on a route whose template uses it."""

_PLAIN = frozenset({"prompt"})


def payload_of(request: PromptRequest) -> Payload:
    """The payload of a request.

    Raises:
        InvalidRequest: the request cannot be written as JSON.
    """
    fields = REQUEST_FIELDS & request.model_fields_set
    if fields == _PLAIN:  # most requests, and pydantic is slow
        return {"prompt": cast("str", request.prompt)}
    try:
        return cast("Payload", request.model_dump(include=set(fields), exclude_defaults=True))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the request cannot be written as JSON: {error}") from None


def encode(payload: Payload, *, trace: bytes = b"") -> bytes:
    """The JSON of a payload. `trace` is a JSON object with the trace fields, or empty.

    Raises:
        InvalidRequest: JSON cannot express a value, or the request is too big.
    """
    data = _json(payload)
    for name in FREE_FORM_FIELDS:
        if (value := payload.get(name)) is not None and (path := _not_finite(value, name)):
            # orjson would write null, and JSON has no word for it.
            raise InvalidRequest(f"{path}: is not a finite number; give a finite one, or text", field=name)
    if len(data) > MAX_REQUEST_BYTES:
        raise InvalidRequest(
            f"the request has {len(data):,} bytes as JSON; at most {MAX_REQUEST_BYTES:,} are allowed"
        )
    return data[:-1] + b"," + trace[1:] if trace else data


def decode(data: bytes) -> Payload:
    """Read a payload that is about to run. Fields that this version does not know are kept and ignored.

    Raises:
        BadRecord: this is not a payload.
        UnknownKind: it asks for a kind of work that this version does not do.
    """
    try:
        payload = orjson.loads(data)
    except orjson.JSONDecodeError:
        payload = None
    if not isinstance(payload, dict):
        raise _bad_record()
    check_kind(payload)
    prompt, messages = payload.get("prompt"), payload.get("messages")
    has_one = isinstance(prompt, str) != isinstance(messages, list)
    if not has_one or not isinstance(payload.get("params", {}), dict):
        raise _bad_record()
    return cast("Payload", payload)


def check_kind(payload: Mapping[str, Any]) -> None:
    """Refuse a kind of work that this version does not do.

    Raises:
        UnknownKind: the payload asks for one.
    """
    kind = payload.get("kind")
    if kind is not None and kind != Kind.GENERATE:
        raise UnknownKind(
            f"the job asks for {str(kind)[:40]!r} work, which this version does not do; "
            "update the worker processes, then requeue the job"
        )


def peek(data: bytes | None) -> dict[str, Any] | None:
    """The fields of a payload as they are stored, for people to read; None if it is gone or damaged."""
    try:
        fields = orjson.loads(data or b"null")
    except orjson.JSONDecodeError:
        return None
    return fields if isinstance(fields, dict) else None


def _bad_record() -> BadRecord:
    return BadRecord("the stored request was not written by a client; enqueue it again")


def _json(payload: Payload) -> bytes:
    try:
        return orjson.dumps(payload)
    except TypeError as error:
        name = _unwritable(payload)
        raise InvalidRequest(f"{name}: cannot be written as JSON: {error}", field=name) from None


def _unwritable(payload: Payload) -> str | None:
    for name, value in payload.items():
        try:
            orjson.dumps(value)
        except TypeError:
            return name
    return None


def _not_finite(value: Any, path: str) -> str | None:
    """The path to a NaN or an infinity in nested values, such as `extra_body.bias.0`."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return None
    return next((found for key, one in items if (found := _not_finite(one, f"{path}.{key}"))), None)
