"""Which route a request goes to."""

from __future__ import annotations

import math
from typing import Any

import pytest

from scheduler.client.routes import KnownRoutes
from scheduler.errors import InvalidRequest, SchedulerError, UnknownModel
from scheduler.settings import EndpointSettings, RouteSettings, Settings

ROUTE = RouteSettings(endpoints=[EndpointSettings(backend="echo")])


def routes(*configured: str, published: Any = ()) -> KnownRoutes:
    settings = Settings(routes=dict.fromkeys(configured, ROUTE)) if configured else Settings()

    async def read() -> Any:
        return published if isinstance(published, dict) else {name: {"revision": "r"} for name in published}

    return KnownRoutes(settings, read)


@pytest.mark.parametrize(
    ("configured", "published", "found"),
    [
        ([], [], "echo"),
        (["chat"], [], "chat"),
        ([], ["chat"], "chat"),
        (["chat"], ["chat"], "chat"),
    ],
)
async def test_the_only_route_is_the_default(configured: list[str], published: list[str], found: str) -> None:
    assert (await routes(*configured, published=published).find(None)).name == found


@pytest.mark.parametrize(
    ("configured", "published"), [(["chat", "code"], []), ([], ["code", "chat"]), (["chat"], ["code"])]
)
async def test_of_several_routes_one_has_to_be_named(configured: list[str], published: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="there are several routes: chat, code; choose one") as refused:
        await routes(*configured, published=published).find(None)
    assert refused.value.field == "model"
    assert (await routes(*configured, published=published).find("code")).name == "code"


async def test_echo_is_there_only_where_nothing_is_configured() -> None:
    assert (await routes().find("echo")).name == "echo"
    for others in (routes("chat"), routes(published=["chat"])):
        with pytest.raises(UnknownModel, match="no route 'echo'; there are: chat"):
            await others.find("echo")


async def test_what_worker_processes_say_of_a_route_counts() -> None:
    found = await routes("chat", published={"chat": {"revision": "theirs", "uses_metadata": 1}}).find("chat")
    assert (found.revision, found.uses_metadata) == ("theirs", True)
    assert found.max_result_ttl_s == math.inf, "an older worker process does not say"


async def test_the_longest_time_for_results_is_that_of_the_queue() -> None:
    published = {"chat": {"revision": "r", "max_result_ttl_s": 60.0}}
    assert (await routes("chat", published=published).find("chat")).max_result_ttl_s == 60.0
    assert (await routes("chat").find("chat")).max_result_ttl_s == 604_800.0
    assert (await routes("chat").find("chat")).revision == ROUTE.revision


async def test_routes_that_are_no_routes_are_explained() -> None:
    with pytest.raises(SchedulerError, match="the routes in Redis cannot be read"):
        await routes(published={"chat": "nonsense"}).find("chat")


async def test_routes_stay_known_while_redis_has_lost_them(monkeypatch: pytest.MonkeyPatch) -> None:
    published = {"chat": {"revision": "r"}}
    known = routes(published=published)
    await known.find("chat")
    published.clear()
    monkeypatch.setattr("scheduler.client.routes.ROUTES_FRESH_S", -1.0)
    assert (await known.find("chat")).name == "chat"
    published["code"] = {"revision": "r"}
    with pytest.raises(UnknownModel, match="no route 'chat'; there are: code"):
        await known.find("chat")
