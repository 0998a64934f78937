"""The kinds of work."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The work that a request asks for, and that a route does."""

    GENERATE = "generate"
    """Text from a prompt or a chat."""
    EMBEDDING = "embedding"
    """Vectors of texts."""
    RERANK = "rerank"
    """Documents by their relevance to a query."""
