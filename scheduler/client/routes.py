"""The routes that a client may name, and the one it gets without a name."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from scheduler.errors import InvalidRequest, SchedulerError, UnknownModel
from scheduler.model import DEFAULT_MODEL, Kind
from scheduler.settings import Settings

ROUTES_FRESH_S = 5.0
"""How long the routes that were read serve for known names."""
ROUTES_RECENT_S = 0.25
"""The same for unknown names, which may have been published since."""


_KINDS = frozenset(Kind)  # a newer version may have more


class KnownRoute(NamedTuple):
    """The facts about a route that a client needs."""

    name: str
    revision: str
    """Changes with the settings that change answers."""
    uses_metadata: bool
    """Whether metadata can change its answers."""
    max_result_ttl_s: float = math.inf
    """The longest that its queue keeps a result."""
    kind: Kind = Kind.GENERATE
    """The work that it does."""
    lacks: frozenset[str] = frozenset()
    """Parameters that none of its endpoints takes."""


class KnownRoutes:
    """The routes of worker processes, and those in the client's own settings.

    `read` gets the routes that worker processes have published. The route `echo`, which exists without any
    configuration, counts only until another one is published.
    """

    def __init__(self, settings: Settings, read: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._settings = settings
        self._read = read
        self._published: dict[str, KnownRoute] = {}
        self._own: dict[str, KnownRoute] = {}
        self._read_at = -math.inf

    async def find(self, model: str | None, kind: Kind = Kind.GENERATE) -> KnownRoute:
        """The route of a name, or the only route of a kind if `model` is None.

        Raises:
            UnknownModel: there is no route of that name.
            InvalidRequest: no name is given, and there are several routes of this kind, or none.
        """
        known = model in self._published or model in self._settings.routes
        age_s = time.monotonic() - self._read_at
        if age_s > (ROUTES_FRESH_S if known or model is None else ROUTES_RECENT_S):
            await self._refresh()
        if model in self._published:
            return self._published[model]
        if model in self._own:
            return self._own[model]
        names = self._names()
        if model is None:
            return self._of(_only([name for name in names if self._of(name).kind is kind], kind))
        if model not in names:
            alike = [name for name in names if self._of(name).kind is kind]
            raise UnknownModel(
                f"model: no route {model!r}; there are: {', '.join(alike or names)}. "
                "Routes come from the settings and from running workers"
            )
        return self._of(model)

    def _names(self) -> list[str]:
        return sorted({*self._published, *self._settings.configured_routes}) or [DEFAULT_MODEL]

    def _of(self, name: str) -> KnownRoute:
        if name not in self._published:
            own = self._settings.routes[name]
            self._own[name] = KnownRoute(
                name, own.revision, own.uses_metadata, self._settings.max_result_ttl_s, own.kind
            )
        return self._published.get(name) or self._own[name]

    async def _refresh(self) -> None:
        try:
            published = {
                name: KnownRoute(
                    name,
                    str(route.get("revision", "")),
                    bool(route.get("uses_metadata")),
                    float(route.get("max_result_ttl_s", math.inf)),
                    Kind(route.get("kind", Kind.GENERATE)),
                    frozenset(route.get("lacks", ())),
                )
                for name, route in (await self._read()).items()
                if route.get("kind", Kind.GENERATE) in _KINDS
            }
        except (ValueError, TypeError, AttributeError):
            raise SchedulerError(
                "the routes in Redis cannot be read; start a worker process, which publishes them again"
            ) from None
        # No routes where there were some: Redis has lost its data, and a worker process publishes them again.
        self._published = published or self._published
        self._read_at = time.monotonic()


def _only(names: Sequence[str], kind: Kind) -> str:
    if not names:
        raise InvalidRequest(
            f'model: no route does this kind of work; add one with kind = "{kind}" to the settings',
            field="model",
        )
    name, *others = names
    if others:
        raise InvalidRequest(
            f"model: is missing, and there are several routes: {', '.join(names)}; choose one",
            field="model",
        )
    return name
