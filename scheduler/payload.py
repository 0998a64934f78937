"""The payload of a job: the part of a request that the worker process needs, stored as one JSON object.

The client writes it (`payload_of`, `encode`), the worker process reads it (`decode`), and administrators may
change it before a job runs again. Everything else about a job is in its record. Pure: no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict, cast

import orjson

from scheduler.errors import BadRecord, InvalidRequest, UnknownKind
from scheduler.model import (
    MAX_REQUEST_BYTES,
    EmbeddingRequest,
    JobRequest,
    Kind,
    PromptRequest,
    RerankRequest,
)


class Payload(TypedDict, total=False):
    """The fields of a payload. A field that has its default is left out."""

    kind: str
    """A `Kind`. It is left out for `generate`."""
    prompt: str | list[int]
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
    input: list[str] | list[list[int]]
    dimensions: int
    query: str
    documents: list[str]
    top_n: int
    return_documents: bool
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


def payload_of(request: JobRequest) -> Payload:
    """The payload of a request.

    Raises:
        InvalidRequest: the request cannot be written as JSON.
    """
    fields = REQUEST_FIELDS & request.model_fields_set
    if fields == _PLAIN:  # most requests, and pydantic is slow
        return {"prompt": cast("Any", request).prompt}
    try:
        payload = cast("Payload", request.model_dump(include=set(fields), exclude_defaults=True))
        return payload if request.kind is Kind.GENERATE else {"kind": request.kind.value, **payload}
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
    is_whole = _IS_WHOLE[kind_of(payload)] if "kind" in payload else _has_prompt
    if not is_whole(payload):
        raise _bad_record()
    return cast("Payload", payload)


def kind_of(payload: Mapping[str, Any]) -> Kind:
    """The kind of work that a payload asks for.

    Raises:
        UnknownKind: this version does not do it.
    """
    kind = payload.get("kind")
    if kind is None:
        return Kind.GENERATE
    if not isinstance(kind, str) or kind not in _REQUESTS:
        raise UnknownKind(
            f"the job asks for {str(kind)[:40]!r} work, which this version does not do; "
            "update the worker processes, then requeue the job"
        )
    return Kind(kind)


def request_type(payload: Mapping[str, Any]) -> type[JobRequest]:
    """The class of the request that a payload was made from.

    Raises:
        UnknownKind: this version does not have it.
    """
    return _REQUESTS[kind_of(payload)]


def parse_request(fields: Mapping[str, Any]) -> JobRequest:
    """Make a request from fields of which `kind` says which class it is; left out, it is a prompt.

    Raises:
        InvalidRequest: a field is wrong; the message names it.
    """
    try:
        kind = request_type(fields)
    except UnknownKind:
        raise InvalidRequest(f"kind: give one of {', '.join(_REQUESTS)}", field="kind") from None
    return kind.parse(**{name: value for name, value in fields.items() if name != "kind"})


_REQUESTS: Mapping[str, type[JobRequest]] = {
    Kind.GENERATE: PromptRequest,
    Kind.EMBEDDING: EmbeddingRequest,
    Kind.RERANK: RerankRequest,
}


def _has_prompt(payload: Mapping[str, Any]) -> bool:
    prompt, messages = payload.get("prompt"), payload.get("messages")
    has_one = isinstance(prompt, str | list) != isinstance(messages, list)
    return has_one and isinstance(payload.get("params", {}), dict)


def _has_inputs(payload: Mapping[str, Any]) -> bool:
    inputs = payload.get("input")
    return isinstance(inputs, list) and bool(inputs) and all(isinstance(one, str | list) for one in inputs)


def _has_documents(payload: Mapping[str, Any]) -> bool:
    query, documents = payload.get("query"), payload.get("documents")
    if not isinstance(query, str) or not isinstance(documents, list):
        return False
    return bool(documents) and all(isinstance(one, str) for one in documents)


_IS_WHOLE: Mapping[Kind, Callable[[Mapping[str, Any]], bool]] = {
    Kind.GENERATE: _has_prompt,
    Kind.EMBEDDING: _has_inputs,
    Kind.RERANK: _has_documents,
}


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
