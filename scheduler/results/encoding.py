"""Encodes events as JSON, fast: without pydantic, and with one orjson call per string from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from workers.errors import EngineError


class EventEncoder:
    """Makes the events of one attempt. Their common parts are encoded once."""

    __slots__ = ("_head", "_tail")

    def __init__(self, job_id: str, token: int, attempt: int) -> None:
        self._head = b'{"id":"%d-' % token
        self._tail = b'","job_id":%s,"attempt":%d' % (orjson.dumps(job_id), attempt)

    def started(self, seq: int, worker: str) -> bytes:
        """A `Started` event."""
        return b'%s%d","type":"started%s,"worker":%s}' % (self._head, seq, self._tail, orjson.dumps(worker))

    def delta(
        self,
        seq: int,
        text: str,
        reasoning: str,
        tool_calls: Sequence[Mapping[str, Any]],
        *,
        index: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> bytes:
        """A `Delta` event. Empty fields are left out; `extra` has the `logprobs` too."""
        parts = [b'%s%d","type":"delta%s' % (self._head, seq, self._tail)]
        if text:
            parts.append(b',"text":' + encode(text))
        if reasoning:
            parts.append(b',"reasoning":' + encode(reasoning))
        if tool_calls:
            parts.append(b',"tool_calls":' + encode(list(tool_calls)))
        if index:
            parts.append(b',"index":%d' % index)
        if extra:
            more = dict(extra)
            if logprobs := more.pop("logprobs", None):
                parts.append(b',"logprobs":' + encode(logprobs))
            if more:
                parts.append(b',"extra":' + encode(more))
        parts.append(b"}")
        return b"".join(parts)

    def retrying(self, seq: int, error: bytes, delay_ms: int) -> bytes:
        """A `Retrying` event; `error` is the JSON of a `JobError`."""
        return b'%s%d","type":"retrying%s,"error":%s,"delay_s":%s}' % (
            self._head,
            seq,
            self._tail,
            error,
            orjson.dumps(delay_ms / 1000),
        )

    def done(self, seq: int) -> bytes:
        """A `Done` event up to its result. The JSON of a `JobResult` and a brace complete it."""
        return b'%s%d","type":"done%s,"result":' % (self._head, seq, self._tail)

    def failed(self, seq: int) -> bytes:
        """A `Failed` event up to its error. The JSON of a `JobError` and a brace complete it."""
        return b'%s%d","type":"failed%s,"error":' % (self._head, seq, self._tail)

    def expired(self, seq: int) -> bytes:
        """An `Expired` event without its last brace."""
        return b'%s%d","type":"expired%s,"reason":"deadline"' % (self._head, seq, self._tail)


def encode(value: Any) -> bytes:
    """The JSON of a value from a model worker.

    Whatever JSON cannot express is replaced: lone surrogates, numbers beyond 64 bits, keys that are not text.

    Raises:
        ValueError, RecursionError: the value contains itself, or is nested too deep.
    """
    try:
        return orjson.dumps(value)
    except TypeError:
        return orjson.dumps(_storable(value))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Mapping):
        return {_storable(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_storable(item) for item in value]
    return _storable(str(value))


def _number(value: float) -> float | None:
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        return value
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def encode_error(code: Any, message: str, engine_error: EngineError | None = None) -> bytes:
    """The JSON of a `JobError`. Invalid UTF-8 in an engine's message is replaced."""
    fields: dict[str, Any] = {"code": code if isinstance(code, str) else "unknown", "message": str(message)}
    if engine_error is not None:
        said = {
            "status": engine_error.status,
            "type": engine_error.type,
            "param": engine_error.param,
            "engine_code": engine_error.code,
        }
        fields |= {name: value for name, value in said.items() if value is not None}
    return encode(fields)
