"""What tenants and endpoints may use in a minute, as the scripts read it (`lua/lib/limit.lua`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

EVERY_TENANT = "*"
"""Stands for each tenant that is not named."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests and tokens a minute; None: as much as there is."""

    requests: int | None = None
    tokens: int | None = None

    @property
    def unlimited(self) -> bool:
        """Whether it limits nothing."""
        return self.requests is None and self.tokens is None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a queue, by tenant and by endpoint. A tenant named here is not one of `EVERY_TENANT`."""

    tenants: Mapping[str, RateLimit] = field(default_factory=dict)
    endpoints: Mapping[str, RateLimit] = field(default_factory=dict)

    def fields(self) -> dict[str, str]:
        """As they are stored."""
        return dict(self._fields())

    def _fields(self) -> Iterator[tuple[str, str]]:
        for kind, some in (("t", self.tenants), ("e", self.endpoints)):
            for name, limit in some.items():
                yield f"{kind}:{name}", f"{limit.requests or 0} {limit.tokens or 0}"


def parse_limit(stored: bytes | None) -> RateLimit | None:
    """Read a stored limit; None where there is none, or it is not as the queue writes it."""
    parts = (stored or b"").split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        return None
    requests, tokens = (int(part) or None for part in parts)
    return RateLimit(requests, tokens)
