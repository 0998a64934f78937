from __future__ import annotations

from scheduler.engine.routes import Route, build_routes
from scheduler.settings import load_settings
from tests.unit.scripted_endpoint import half_open, opened


def routes_of(**fallbacks: list[str]) -> dict[str, Route]:
    """Routes with an endpoint each that holds 4 prompts, and what they fall back on."""
    echo = {"backend": "echo", "max_in_flight": 4}
    settings = load_settings(
        environ={},
        routes={name: {"endpoints": [echo], "fallbacks": routes} for name, routes in fallbacks.items()},
    )
    routes = build_routes(settings, {})
    for route in routes.values():
        route.endpoints[0].divide(1, 0)
    return routes


def test_route_may_claim_what_its_own_endpoints_have_room_for() -> None:
    routes = routes_of(chat=["small"], small=[])
    chat = routes["chat"]
    assert chat.free == 4
    chat.endpoints[0].window.acquire(3)
    assert chat.free == 1
    chat.running = 1
    assert chat.free == 0, "one is on its way"
    chat.running = 0
    chat.endpoints[0].window.acquire(1)
    assert chat.free == 0, "a full endpoint is no reason to fall back"


def test_route_may_claim_what_a_fallback_has_room_for_while_its_own_are_down() -> None:
    routes = routes_of(chat=["small", "last"], small=[], last=[])
    opened(routes["chat"].endpoints[0])
    routes["small"].endpoints[0].window.acquire(1)
    assert routes["chat"].free == 3
    opened(routes["small"].endpoints[0])
    assert routes["chat"].free == 4
    opened(routes["last"].endpoints[0])
    assert routes["chat"].free == 0


def test_route_goes_on_with_its_fallback_while_its_own_endpoint_is_being_probed() -> None:
    routes = routes_of(chat=["small"], small=[])
    own = half_open(routes["chat"].endpoints[0])
    assert routes["chat"].free == 1
    own.breaker.admit()
    assert routes["chat"].free == 4
