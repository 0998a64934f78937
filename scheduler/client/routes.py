"""Which routes a client may ask for, and which one it gets without asking."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple

from scheduler.errors import InvalidRequest, SchedulerError, UnknownModel
from scheduler.model import DEFAULT_MODEL
from scheduler.settings import Settings

ROUTES_FRESH_S = 5.0
# A model that is not among the routes may have come since they were read: how soon to look again.
ROUTES_RECENT_S = 0.25


class KnownRoute(NamedTuple):
    """A route as a client needs it: its name, its revision, and whether metadata can change its answers.

    `max_result_ttl_s` is the longest that its queue keeps a result.
    """

    name: str
    revision: str
    uses_metadata: bool
    max_result_ttl_s: float = math.inf


class KnownRoutes:
    """The routes of worker processes and those in the client's own settings.

    `read` gets what worker processes have published. The route `echo` that is there without any configuration
    counts only while nobody has published another one.
    """

    def __init__(self, settings: Settings, read: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._settings = settings
        self._read = read
        self._published: dict[str, KnownRoute] = {}
        self._own: dict[str, KnownRoute] = {}
        self._read_at = -math.inf

    async def find(self, model: str | None) -> KnownRoute:
        """The route of a name; without a name the only one.

        Raises:
            UnknownModel: there is none of that name; InvalidRequest: there are several to choose from.
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
            return self._of(_only(names))
        if model not in names:
            raise UnknownModel(
                f"model: no route {model!r}; there are: {', '.join(names)}. "
                "Routes come from the settings and from running workers"
            )
        return self._of(model)

    def _names(self) -> list[str]:
        configured = self._settings.routes if "routes" in self._settings.model_fields_set else ()
        return sorted({*self._published, *configured}) or [DEFAULT_MODEL]

    def _of(self, name: str) -> KnownRoute:
        if name not in self._published:
            own = self._settings.routes[name]
            self._own[name] = KnownRoute(
                name, own.revision, own.uses_metadata, self._settings.max_result_ttl_s
            )
        return self._published.get(name) or self._own[name]

    async def _refresh(self) -> None:
        try:
            self._published = {
                name: KnownRoute(
                    name,
                    str(route.get("revision", "")),
                    bool(route.get("uses_metadata")),
                    float(route.get("max_result_ttl_s", math.inf)),
                )
                for name, route in (await self._read()).items()
            }
        except (ValueError, TypeError, AttributeError):
            raise SchedulerError(
                "the routes in Redis cannot be read; start a worker process, which writes them anew"
            ) from None
        self._read_at = time.monotonic()


def _only(names: Iterable[str]) -> str:
    name, *others = names
    if others:
        raise InvalidRequest(
            f"model: is missing, and there are several routes: {', '.join(names)}; name one of them",
            field="model",
        )
    return name
