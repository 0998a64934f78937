"""What the settings say of rates, as the queue wants it."""

from __future__ import annotations

from scheduler.engine.routes import Route, endpoint_name
from scheduler.queue.limits import Limits, RateLimit
from scheduler.routing import Endpoint
from scheduler.settings import RateSettings, Settings


def limits_of(settings: Settings) -> Limits:
    """The limits of tenants and endpoints; who has none is left out."""
    endpoints = {
        endpoint_name(name, at): endpoint
        for name, route in settings.routes.items()
        for at, endpoint in enumerate(route.endpoints)
    }
    return Limits(
        tenants={name: _rate(rate) for name, rate in settings.tenants.items()},
        endpoints={name: _rate(rate) for name, rate in endpoints.items() if rate.is_limited},
    )


def offers_of(route: Route) -> dict[str, int]:
    """The endpoints that take the route's jobs now, the least busy first, and the room at each.

    Empty where none of them is limited: then no job needs a permit.
    """
    endpoints = route.in_use
    if not any(endpoint.rate_limited for endpoint in endpoints):
        return {}
    open_now = [endpoint for endpoint in endpoints if endpoint.room > 0]
    return {endpoint.name: endpoint.room for endpoint in sorted(open_now, key=_busy)}


def _rate(rate: RateSettings) -> RateLimit:
    return RateLimit(rate.requests_per_minute, rate.tokens_per_minute)


def _busy(endpoint: Endpoint) -> float:
    return (endpoint.outstanding + 1) / endpoint.weight
