"""Reads the error objects of many servers, and decides which error they mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeAlias

import orjson

from workers import lenient_json
from workers.errors import (
    ContextOverflow,
    EngineError,
    ModelNotFound,
    RequestRejected,
    WorkerAuthError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)
from workers.sse import SseDecoder

MAX_WORDS = 500

_KINDS = ("code", "type", "error_type", "status", "error_code", "status_code")
_WORDS = (
    "message",
    "detail",
    "msg",
    "error_msg",
    "status_msg",
    "error_message",
    "error_description",
    "description",
    "title",
)
_STATUSES = ("code", "status", "status_code", "statusCode", "http_status", "http_status_code", "error_code")
_NO_KIND = frozenset({"", "about:blank", "error", "none", "null"})
_MAX_DEPTH = 4
_MAX_SAID_CHARS = 200

# Names of errors, by their letters alone. OpenAI, Anthropic, gRPC and vLLM each have their own.
_STATUS_OF_KIND = {
    **dict.fromkeys(("badrequest", "invalidargument", "invalidrequest", "failedprecondition"), 400),
    **dict.fromkeys(("contextlengthexceeded", "contentpolicyviolation", "exceedcontextsize"), 400),
    **dict.fromkeys(("authentication", "invalidapikey", "unauthenticated", "unauthorized"), 401),
    **dict.fromkeys(("forbidden", "permission", "permissiondenied"), 403),
    **dict.fromkeys(("modelnotfound", "notfound"), 404),
    **dict.fromkeys(("unprocessableentity", "validation"), 422),
    **dict.fromkeys(("ratelimit", "ratelimitexceeded", "resourceexhausted", "toomanyrequests"), 429),
    "insufficientquota": 429,
    **dict.fromkeys(("overloaded", "serviceunavailable", "unavailable"), 503),
    **dict.fromkeys(("deadlineexceeded", "gatewaytimeout", "timeout"), 504),
}
_UNKNOWN_STATUS = 500

# A gateway cannot reach its server; 520 and above are Cloudflare's.
_AWAY = frozenset({502, *range(520, 531)})
_MODEL_KINDS = frozenset({"model_not_found", "invalid_model", "DeploymentNotFound"})
_CONTEXT_KINDS = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_CONTEXT_WORDS = ("maximum context length", "maximum model length")  # vLLM gives it no name
_ACCOUNT_KINDS = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_BUSY_KINDS = frozenset({"rate_limit_exceeded", "rate_limit_error", "overloaded_error"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the server sent, as a response or inside a stream."""

    status: int
    """The HTTP status, of the response or as the error itself gives it."""
    kind: str = ""
    """The server's own name for the error; empty if it gave none."""
    words: str = ""
    """The server's message; empty if it gave none."""
    retry_after_s: float | None = None
    """The wait in seconds that the server asks for."""
    method: str = "POST"
    """The method of the request."""
    said: EngineError = field(default=EngineError(), compare=False)
    """Its type, code and field at fault, as the server gave them."""


Translator: TypeAlias = Callable[[Refusal], type[WorkerError]]


def json_of(data: bytes) -> Any:
    """Parse JSON, leniently if need be.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return lenient_json.loads(data)


def refusal_in_answer(answer: Any) -> Refusal | None:
    """The refusal under `error` in an answer with a good status, or None.

    Some servers send an `error` with empty fields in every answer.
    """
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, Mapping) and not any(error.values()):
        return None
    return refusal_of(answer) if error else None


def refusal_of(answer: Any) -> Refusal:
    """Read a refusal, with the status that it gives, or else that its kind means, or else 500.

    Its form is one of `{"error": {"code", "message", "type"}}`, `{"error": "…"}`, the same in a list or in
    another `error`, `{"message": …}`, `{"detail": …}`, and text.
    """
    fields = _fields(answer, _MAX_DEPTH)
    kind = next((name for key in _KINDS if (name := _kind(fields.get(key)))), "")
    words = next((text for key in _WORDS if (text := fields.get(key))), "")
    statuses = (_status(fields.get(key)) for key in _STATUSES)
    status = next((status for status in statuses if status), 0)
    status = status or _STATUS_OF_KIND.get(_letters(kind), _UNKNOWN_STATUS)
    said = EngineError(None, *(_said(fields.get(key)) for key in ("type", "param", "code")))
    return Refusal(status, kind[:MAX_WORDS], _text(words)[:MAX_WORDS], said=said)


def _said(value: Any) -> str | None:
    """A name or a number that the error object has."""
    is_said = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    return str(value)[:_MAX_SAID_CHARS] if is_said else None


def _fields(answer: Any, depth: int) -> Mapping[str, Any]:
    """The fields of the innermost error, over those around it."""
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):
        answer = answer[0]
    if isinstance(answer, list):
        answer = ", ".join(part for part in answer if isinstance(part, str))
    if not isinstance(answer, Mapping):
        return {"message": answer}
    inner = answer.get("error") or answer.get("errors") or answer.get("base_resp")
    if not inner or inner is True or not depth:
        return answer
    if isinstance(inner, str) and any(answer.get(key) for key in _WORDS):  # it is the error's name
        return {"type": inner, **answer}
    return {**answer, **_fields(inner, depth - 1)}


def _text(words: Any) -> str:
    try:
        return str(words)
    except RecursionError:
        return ""


def _kind(said: Any) -> str:
    """The name of an error; a number counts as one unless it is a status."""
    if isinstance(said, bool) or not isinstance(said, str | int) or _status(said) or not said:
        return ""
    kind = str(said).strip()
    return "" if kind.lower() in _NO_KIND else kind


def _status(said: Any) -> int | None:
    if isinstance(said, str) and said.isascii() and said.isdigit():
        said = int(said[:9])
    is_status = isinstance(said, int) and not isinstance(said, bool) and 400 <= said < 600
    return said if is_status else None


def _letters(kind: str) -> str:
    return kind.lower().replace("_", "").replace("-", "").replace(" ", "").removesuffix("error")


def error_class(refusal: Refusal) -> type[WorkerError]:
    """The error class of a refusal, for servers without peculiarities.

    Its kind takes precedence over its status, because an error inside a stream often has none. An account out
    of credit counts as a refused key, although OpenAI answers 429: waiting does not help.
    """
    status, kind = refusal.status, refusal.kind
    # A server need not have what is requested by GET.
    if kind in _MODEL_KINDS or (status == 404 and refusal.method == "POST"):
        return ModelNotFound
    if status in {401, 402, 403} or kind in _ACCOUNT_KINDS:
        return WorkerAuthError
    if status in {429, 503, 529} or kind in _BUSY_KINDS:
        return WorkerOverloaded
    if kind in _CONTEXT_KINDS or (status == 400 and any(words in refusal.words for words in _CONTEXT_WORDS)):
        return ContextOverflow
    if status in {408, 504}:
        return WorkerTimeout
    if kind == "invalid_request_error":
        return RequestRejected
    if status == 409 or status in _AWAY:
        return WorkerUnavailable
    if status >= 500:
        return WorkerFailed
    return RequestRejected if status >= 400 else WorkerProtocolError


def read_refusal(status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Refusal:
    """Read an error response. `now` is the time from which a Retry-After date counts."""
    wait_s = retry_after_s(headers, now=now)
    decoder = SseDecoder()  # some servers answer everything with a stream
    for data in (body, *decoder.feed(body + b"\n\n"), decoder.error or b""):
        with suppress(ValueError):
            refusal = refusal_of(json_of(data))
            return Refusal(status, refusal.kind, refusal.words, wait_s, said=refusal.said)
    words = body.decode("utf-8", "replace").strip()
    # The HTML page of a proxy says less than its status.
    return Refusal(status, words="" if words.startswith("<") else words[:MAX_WORDS], retry_after_s=wait_s)


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The wait in seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) asks for."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if value is None or seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
