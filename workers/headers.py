"""The API key, and the headers that an endpoint's settings add to every request."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

import httpx

from workers.base import EndpointConfig
from workers.errors import WorkerConfigError

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_ADAPTERS_OWN = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_CREDENTIALS = frozenset({"api-key", "authorization", "x-api-key"})
_REQUEST_IDS = frozenset({b"x-request-id", b"request-id", b"apim-request-id"})
_MAX_HEADER_BYTES = 200
_MAX_RATE_LIMITS = 32
# Shorter values are words such as "true": redacting them would garble messages and hide nothing.
_SECRET_CHARS = 6


def own_headers(config: EndpointConfig) -> dict[str, str]:
    """The headers of the endpoint's settings, checked.

    Raises:
        WorkerConfigError: one of them cannot be sent.
    """
    for name, value in config.headers.items():
        if not _NAME.fullmatch(name):
            raise WorkerConfigError(
                f"headers: {name[:64]!r} is no name of a header; give letters, digits and -"
            )
        if name.lower() in _ADAPTERS_OWN:
            raise WorkerConfigError(f"headers.{name}: is set by the adapter; leave it out")
        if not value.isascii() or not value.isprintable():
            raise WorkerConfigError(
                f"headers.{name}: has characters that no header has, a line end perhaps; check its value"
            )
    return dict(config.headers)


def bearer(config: EndpointConfig) -> dict[str, str]:
    """The `Authorization` header with the API key; empty without a key.

    Raises:
        WorkerConfigError: the key cannot be sent in a header.
    """
    return {"Authorization": f"Bearer {check_key(config.api_key)}"} if config.api_key else {}


def check_key(key: str) -> str:
    """The API key, checked.

    Raises:
        WorkerConfigError: it cannot be sent in a header.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise WorkerConfigError(
            "api_key: has characters that no API key has, a line end perhaps; check api_key_env"
        )
    return key


def has_credentials(config: EndpointConfig) -> bool:
    """Whether a header of the endpoint's settings stands for the API key."""
    return any(name.lower() in _CREDENTIALS for name in config.headers)


def head_of(headers: httpx.Headers) -> dict[str, Any]:
    """What the head of a response says about the answer: `request_id` and `rate_limits`, if it has them.

    `rate_limits` has the headers by their own names, in lower case.
    """
    said: dict[str, Any] = {}
    for raw_name, raw_value in headers.raw:
        name = raw_name.lower()
        if name in _REQUEST_IDS:
            said["request_id"] = _header_text(raw_value)
        elif b"ratelimit" in name:
            limits = said.setdefault("rate_limits", {})
            if len(limits) < _MAX_RATE_LIMITS:
                limits[_header_text(name)] = _header_text(raw_value)
    return said


def _header_text(value: bytes) -> str:
    return value[:_MAX_HEADER_BYTES].decode("latin-1")


def secrets_of(config: EndpointConfig) -> tuple[str, ...]:
    """The values to redact in messages: headers, query parameters and the key, plain and URL-escaped."""
    values = [*config.headers.values(), *config.query.values()]
    parts = {part for value in values for part in (value, *value.split())}  # "Bearer …"
    long = {part for part in parts if len(part) >= _SECRET_CHARS}
    secrets = long | {quote(part, safe="") for part in long} | ({config.api_key} if config.api_key else set())
    return tuple(sorted(secrets, key=len, reverse=True))
