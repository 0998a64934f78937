"""What a server says when it refuses: many forms of an error object, read in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from workers import lenient_json

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
)
_STATUSES = ("code", "status", "status_code", "statusCode", "http_status", "error_code")
_NO_KIND = frozenset({"", "error", "none", "null"})
_MAX_DEPTH = 4

# What is no status itself, by its letters alone; OpenAI, Anthropic, gRPC and vLLM have names of their own.
_STATUS_OF_KIND = {
    **dict.fromkeys(("badrequest", "invalidargument", "invalidrequest", "failedprecondition"), 400),
    **dict.fromkeys(("authentication", "invalidapikey", "unauthenticated", "unauthorized"), 401),
    **dict.fromkeys(("forbidden", "permission", "permissiondenied"), 403),
    **dict.fromkeys(("modelnotfound", "notfound"), 404),
    **dict.fromkeys(("unprocessableentity", "validation"), 422),
    **dict.fromkeys(("ratelimit", "ratelimitexceeded", "resourceexhausted", "toomanyrequests"), 429),
    **dict.fromkeys(("overloaded", "serviceunavailable", "unavailable"), 503),
    **dict.fromkeys(("deadlineexceeded", "gatewaytimeout", "timeout"), 504),
}
_UNKNOWN_STATUS = 500


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the server sent, as a response or inside a stream.

    `kind` is the server's own name for it, `words` its message, both empty where it gave none. `method` is
    that of the request.
    """

    status: int
    kind: str = ""
    words: str = ""
    retry_after_s: float | None = None
    method: str = "POST"


def json_of(data: bytes) -> Any:
    """The value of some JSON, or of what is nearly JSON.

    Raises:
        ValueError: it is not even that.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return lenient_json.loads(data)


def refusal_in_answer(answer: Any) -> Refusal | None:
    """The refusal under `error` of what came with a good status; None where there is none.

    Some servers send an `error` with every answer, whose fields are empty.
    """
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, Mapping) and not any(error.values()):
        return None
    return refusal_of(answer) if error else None


def refusal_of(answer: Any) -> Refusal:
    """Read a refusal, with the status that it gives itself, or that its kind means; 500 where neither does.

    The forms are `{"error": {"code", "message", "type"}}`, `{"error": "…"}`, the same in a list or in another
    `error`, `{"message": …}`, `{"detail": …}`, and text.
    """
    fields = _fields(answer, _MAX_DEPTH)
    kind = next((name for key in _KINDS if (name := _kind(fields.get(key)))), "")
    words = next((text for key in _WORDS if (text := fields.get(key))), "")
    statuses = (_status(fields.get(key)) for key in _STATUSES)
    status = next((status for status in statuses if status), 0)
    status = status or _STATUS_OF_KIND.get(_letters(kind), _UNKNOWN_STATUS)
    return Refusal(status, kind[:MAX_WORDS], _text(words)[:MAX_WORDS])


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
    """A name; numbers are one where they are no status."""
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
