"""Bodies that a server compresses although it was asked not to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

# Read without being asked for. What else is said to be an encoding ("none", "utf-8") is taken to be none.
_READABLE = frozenset({"gzip", "deflate"})
_UNREADABLE = frozenset({"br", "zstd", "compress", "x-compress", "x-gzip"})


def unreadable_encoding(response: httpx.Response) -> str | None:
    """The encoding of the body, if it is one that cannot be undone here."""
    return next(iter(_encodings(response) & _UNREADABLE), None)


def decoded(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, decompressed."""
    return response.aiter_bytes() if _encodings(response) & _READABLE else response.aiter_raw()


def _encodings(response: httpx.Response) -> set[str]:
    header = response.headers.get("content-encoding")
    return {name.strip().lower() for name in header.split(",")} if header else set()
