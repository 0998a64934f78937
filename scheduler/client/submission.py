"""Turns a request into the job that the queue stores. Pure: no I/O."""

from __future__ import annotations

import base64
import hashlib

import orjson

from scheduler.client.ids import new_job_id
from scheduler.client.routes import KnownRoute
from scheduler.errors import InvalidRequest
from scheduler.model import JobRequest, Kind, PromptRequest
from scheduler.payload import NOT_CONTENT_FIELDS, Payload, encode, payload_of
from scheduler.queue.dedup import dedup_hash
from scheduler.queue.records import NewJob
from workers.parameters import is_default

AUTO = "auto"

_NOT_CONTENT_WITH_METADATA = NOT_CONTENT_FIELDS - {"metadata"}


def new_job(request: JobRequest, route: KnownRoute, *, trace: bytes = b"") -> NewJob:
    """Make the job of a request. `trace` as for `scheduler.payload.encode`.

    Raises:
        InvalidRequest: the request cannot be stored as JSON, is too big, its `result_ttl_s` is too long, or
            the route does another kind of work.
    """
    if request.kind is not route.kind:
        raise _wrong_kind(request.kind, route)
    _check_result_ttl(request, route)
    if route.lacks and isinstance(request, PromptRequest):
        _check_parameters(request, route)
    payload = payload_of(request)
    data = encode(payload, trace=trace)
    key_hash = content = None
    if request.dedup_key is not None:
        key_hash, content = _hashes(request.dedup_key, payload, route)
    return NewJob(
        job_id=request.job_id or new_job_id(),
        lane=route.name,
        priority=request.priority,
        tenant=request.tenant,
        payload=data,
        dedup_hash=key_hash,
        content_hash=content,
        dedup=request.dedup,
        deadline_ms=_ms(request.deadline_s),
        delay_ms=_ms(request.delay_s),
        max_attempts=request.max_attempts,
        result_ttl_ms=_ms(request.result_ttl_s),
    )


_DOES = {
    Kind.GENERATE: "generates text: give it a PromptRequest",
    Kind.EMBEDDING: "embeds: give it an EmbeddingRequest, or call embed()",
    Kind.RERANK: "reranks: give it a RerankRequest, or call rerank()",
}


def _wrong_kind(kind: Kind, route: KnownRoute) -> InvalidRequest:
    return InvalidRequest(
        f'model: route {route.name!r} {_DOES[route.kind]}; this request needs a route with kind = "{kind}"',
        field="model",
    )


def _check_parameters(request: PromptRequest, route: KnownRoute) -> None:
    for name in sorted(route.lacks & request.params.model_fields_set):
        if not is_default(name, getattr(request.params, name)):
            raise InvalidRequest(
                f"params.{name}: no endpoint of route {route.name!r} has such a parameter; "
                "leave it out, or name another route as model",
                field=f"params.{name}",
            )


def _check_result_ttl(request: JobRequest, route: KnownRoute) -> None:
    if request.result_ttl_s is not None and request.result_ttl_s > route.max_result_ttl_s:
        raise InvalidRequest(
            f"result_ttl_s: {request.result_ttl_s:,.0f} s is longer than the queue keeps results "
            f"({route.max_result_ttl_s:,.0f} s); give less, or raise the setting max_result_ttl_s",
            field="result_ttl_s",
        )


def _hashes(dedup_key: str, payload: Payload, route: KnownRoute) -> tuple[str, str]:
    """The hashes of the dedup key and of the content; with the key `auto` they are the same."""
    content = content_hash(route.name, payload, uses_metadata=route.uses_metadata)
    if dedup_key == AUTO:
        content = dedup_hash(f"{AUTO}\0{content}\0{route.revision}")
        return content, content
    return dedup_hash(dedup_key), content


def content_hash(model: str, payload: Payload, *, uses_metadata: bool) -> str:
    """A hash of everything that changes the answer: 22 characters."""
    left_out = _NOT_CONTENT_WITH_METADATA if uses_metadata else NOT_CONTENT_FIELDS
    content = {name: value for name, value in payload.items() if name not in left_out}
    data = orjson.dumps([model, content], option=orjson.OPT_SORT_KEYS)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _ms(seconds: float | None) -> int | None:
    """Whole milliseconds; a positive duration never becomes 0."""
    if seconds is None:
        return None
    return max(1, round(seconds * 1000)) if seconds > 0 else 0
