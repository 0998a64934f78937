"""Bodies that a server compresses although the request says not to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

# Accepted although not requested. Other values ("none", "utf-8") are taken to mean no compression.
_READABLE = frozenset({"gzip", "deflate"})
_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "x-gzip"})


def unreadable_encoding(response: httpx.Response) -> str | None:
    """The body's encoding if it cannot be decoded here, else None."""
    return next(iter(_encodings(response) & _UNREADABLE), None)


def decoded(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it arrives, decompressed."""
    if _encodings(response) & _READABLE:
        return response.aiter_bytes()
    # A direct connection's own body, without httpx's layers.
    body = response.extensions.get("body")
    return response.aiter_raw() if body is None else aiter(body)


def _encodings(response: httpx.Response) -> set[str]:
    header = response.headers.get("content-encoding")
    return {name.strip().lower() for name in header.split(",")} if header else set()
