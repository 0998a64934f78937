from __future__ import annotations

import orjson
import pytest

from scheduler.engine.routes import Route, build_routes, describe_routes
from scheduler.errors import ConfigError
from scheduler.settings import load_settings
from tests.unit.scripted_endpoint import half_open, opened
from workers import EndpointConfig
from workers.echo import EchoWorker


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


def test_headers_and_query_reach_the_model_worker_and_no_description(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[EndpointConfig] = []

    def make(config: EndpointConfig) -> EchoWorker:
        configs.append(config)
        return EchoWorker(EndpointConfig("echo"))

    monkeypatch.setattr("scheduler.engine.routes.make_worker", make)
    endpoint = {"backend": "echo", "headers": {"X-Key": {"env": "KEY"}}, "query": {"v": "literal-1"}}
    settings = load_settings(environ={}, routes={"chat": {"endpoints": [endpoint]}})
    routes = build_routes(settings, {"KEY": "s3cret"})
    assert (configs[0].headers, configs[0].query) == ({"X-Key": "s3cret"}, {"v": "literal-1"})
    described = str(describe_routes(routes, max_result_ttl_s=60)) + repr(routes)
    assert "s3cret" not in described
    assert "literal-1" not in described


def test_description_names_the_parameters_that_no_endpoint_takes_nor_any_it_falls_back_to() -> None:
    url = {"base_url": "http://127.0.0.1:9"}
    vllm, claude = {"backend": "vllm", **url}, {"backend": "anthropic", "headers": {"x-api-key": "k"}, **url}
    settings = load_settings(
        environ={},
        routes={
            "claude": {"endpoints": [claude]},
            "both": {"endpoints": [claude, vllm]},
            "falls_back": {"endpoints": [claude], "fallbacks": ["both"]},
            "embeds": {"kind": "embedding", "endpoints": [vllm]},
        },
    )
    described = describe_routes(build_routes(settings, {}), max_result_ttl_s=60)
    lacks = {name: set(orjson.loads(route)["lacks"]) for name, route in described.items()}
    assert {"n", "logprobs", "store"} <= lacks["claude"]
    assert lacks["both"] == lacks["falls_back"]
    assert "n" not in lacks["both"]
    assert "store" in lacks["both"]
    assert lacks["embeds"] == set()


def test_variable_of_a_header_that_is_not_set_is_named() -> None:
    endpoint = {"backend": "openai", "headers": {"X-Key": {"env": "KEY"}}}
    settings = load_settings(environ={}, routes={"chat": {"endpoints": [endpoint]}})
    with pytest.raises(ConfigError, match=r"endpoint chat.0: headers.X-Key names KEY, which is not set"):
        build_routes(settings, {})


@pytest.mark.parametrize(
    ("base_url", "environ", "said"),
    [
        ("http://engine/v1", {"ALL_PROXY": "socks4://h:1"}, "ALL_PROXY: "),
        (
            "https://engine/v1",
            {"SSL_CERT_FILE": "/nonexistent/ca.pem"},
            "SSL_CERT_FILE: /nonexistent/ca.pem ",
        ),
    ],
)
def test_variable_of_the_network_that_cannot_be_used_is_named(
    base_url: str, environ: dict[str, str], said: str
) -> None:
    endpoint = {"backend": "openai", "base_url": base_url}
    settings = load_settings(environ={}, routes={"chat": {"endpoints": [endpoint]}})
    with pytest.raises(ConfigError, match=f"endpoint chat.0: {said}"):
        build_routes(settings, environ)


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


def test_route_goes_on_with_its_fallback_while_its_own_endpoint_is_being_checked() -> None:
    routes = routes_of(chat=["small"], small=[])
    half_open(routes["chat"].endpoints[0])
    assert routes["chat"].free == 4
