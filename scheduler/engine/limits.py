"""The rate limits of the settings, in the form of the queue."""

from __future__ import annotations

from collections.abc import Container

from scheduler.engine.routes import Route, endpoint_name
from scheduler.queue.limits import Limits, RateLimit
from scheduler.queue.records import Offer
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


def offers_of(route: Route, *, without: Container[str] = ()) -> list[Offer]:
    """The endpoints that take the route's jobs now; `without` names some that are not to.

    Empty where none of them is limited: then no job needs a permit.
    """
    endpoints = route.in_use
    if not any(endpoint.rate_limited for endpoint in endpoints):
        return []
    return [
        Offer(
            endpoint.name,
            endpoint.room,
            reserved=endpoint.room - endpoint.may_start,
            outstanding=round(endpoint.burden),
            weight=endpoint.weight,
        )
        for endpoint in endpoints
        if endpoint.room > 0 and endpoint.name not in without
    ]


def _rate(rate: RateSettings) -> RateLimit:
    return RateLimit(rate.requests_per_minute, rate.tokens_per_minute)
