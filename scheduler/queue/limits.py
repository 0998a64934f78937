"""Rate limits of tenants and endpoints, as the scripts read them (`lua/lib/limit.lua`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

EVERY_TENANT = "*"
"""The name for each tenant that is not named."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Limits per minute; None: no limit."""

    requests: int | None = None
    """Requests begun in a minute."""
    tokens: int | None = None
    """Tokens of prompts and answers in a minute."""

    @property
    def unlimited(self) -> bool:
        """Whether it limits nothing."""
        return self.requests is None and self.tokens is None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a queue."""

    tenants: Mapping[str, RateLimit] = field(default_factory=dict)
    """By tenant; `EVERY_TENANT` does not apply to a tenant with limits of its own."""
    endpoints: Mapping[str, RateLimit] = field(default_factory=dict)
    """By endpoint."""

    def fields(self) -> dict[str, str]:
        """The fields of the stored hash."""
        return dict(self._fields())

    def _fields(self) -> Iterator[tuple[str, str]]:
        for kind, some in (("t", self.tenants), ("e", self.endpoints)):
            for name, limit in some.items():
                yield f"{kind}:{name}", f"{limit.requests or 0} {limit.tokens or 0}"


def parse_limit(stored: bytes | None) -> RateLimit | None:
    """Read a stored limit; None if there is none, or it is damaged."""
    parts = (stored or b"").split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    requests, tokens = (int(part) or None for part in parts)
    return RateLimit(requests, tokens)
