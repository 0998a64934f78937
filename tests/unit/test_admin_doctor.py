"""What the doctor makes of what it finds."""

from __future__ import annotations

import http.server
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis

from scheduler.admin import Finding, Level, examine
from scheduler.queue import PromptQueue
from scheduler.settings import EndpointSettings, RouteSettings, Settings
from tests.contracts.queue_driver import new_job

OK, WARN, FAIL = Level.OK, Level.WARN, Level.FAIL


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """A server with the settings that are wanted; as it was, afterwards."""
    async with Redis.from_url(valkey_url) as client:
        names = ("appendonly", "save", "maxmemory", "maxmemory-policy")
        before = {name: (await client.config_get(name))[name] for name in names}
        await client.config_set("maxmemory", "1gb")
        await client.config_set("maxmemory-policy", "noeviction")
        yield client
        for name, value in before.items():
            await client.config_set(name, value)


async def findings(url: str, settings: Settings | None = None) -> dict[str, Finding]:
    found = [finding async for finding in examine(settings or Settings(), url)]
    return {finding.subject: finding for finding in found}


def route(backend: str, **fields: str) -> Settings:
    endpoint = EndpointSettings(backend=backend, **fields)  # type: ignore[arg-type]
    return Settings(routes={"chat": RouteSettings(endpoints=[endpoint])})


async def test_a_sound_server_is_well(redis: Redis, valkey_url: str) -> None:
    found = await findings(valkey_url)
    well = {"redis", "eviction", "memory", "round trip", "channels", "endpoint echo.0", "bound"}
    assert {subject for subject, finding in found.items() if finding.level is OK} == well
    assert found["persistence"].level is WARN
    assert found["persistence"].fix == "set appendonly yes"
    assert found["workers"].level is WARN
    assert "prompt-scheduler worker" in found["workers"].fix


async def test_a_user_who_may_not_publish_is_noticed(redis: Redis, valkey_url: str) -> None:
    await redis.acl_setuser("mute", enabled=True, passwords=["+word"], categories=["+@all"], keys=["*"])
    try:
        found = await findings(valkey_url.replace("redis://", "redis://mute:word@"))
    finally:
        await redis.acl_deluser("mute")
    assert found["channels"].level is FAIL
    assert "ps:{default}:*" in found["channels"].fix


async def test_eviction_at_a_limit_loses_jobs(redis: Redis, valkey_url: str) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    assert (await findings(valkey_url))["eviction"].level is FAIL
    await redis.config_set("maxmemory", "0")
    found = await findings(valkey_url)
    assert found["eviction"].level is WARN
    assert found["memory"].level is WARN


async def test_a_server_near_its_limit_is_noticed(redis: Redis, valkey_url: str) -> None:
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", str(int(used * 1.1)))
    assert (await findings(valkey_url))["memory"].level is WARN


async def test_snapshots_and_an_append_only_file_are_told_apart(redis: Redis, valkey_url: str) -> None:
    await redis.config_set("save", "900 1")
    assert "snapshots alone" in (await findings(valkey_url))["persistence"].message
    await redis.config_set("appendonly", "yes")
    assert (await findings(valkey_url))["persistence"].level is OK


async def test_without_redis_the_endpoints_are_looked_at_all_the_same() -> None:
    found = await findings("redis://:secret@127.0.0.1:1")
    assert found["redis"].level is FAIL
    assert "secret" not in found["redis"].message
    assert found["endpoint echo.0"].level is OK
    assert set(found) == {"redis", "endpoint echo.0"}


async def test_an_endpoint_that_is_down_fails(valkey_url: str) -> None:
    found = await findings(valkey_url, route("llama_cpp", base_url="http://127.0.0.1:1"))
    finding = found["endpoint chat.0"]
    assert finding.level is FAIL
    assert "http://127.0.0.1:1" in finding.message
    assert finding.fix


async def test_a_route_that_cannot_be_made_fails_alone(valkey_url: str) -> None:
    good, bad = EndpointSettings(backend="echo"), EndpointSettings(backend="eco", api_key_env="NO_SUCH_KEY")
    settings = Settings(
        routes={"bad": RouteSettings(endpoints=[bad]), "good": RouteSettings(endpoints=[good])}
    )
    found = await findings(valkey_url, settings)
    assert found["route bad"].level is FAIL
    assert "NO_SUCH_KEY" in found["route bad"].message
    assert found["endpoint good.0"].level is OK


class _OtherModel(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = {"/health": b'{"status":"ok"}', "/v1/models": b'{"data":[{"id":"small"}]}'}
        answer = body.get(self.path, b'{"total_slots":4}')
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_request(self, *said: object) -> None:
        """Nothing."""


@pytest.fixture
def engine_url() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _OtherModel) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_a_model_that_is_not_served_is_noticed(valkey_url: str, engine_url: str) -> None:
    found = await findings(valkey_url, route("llama_cpp", base_url=engine_url, model="small"))
    assert found["endpoint chat.0"].level is OK
    found = await findings(valkey_url, route("llama_cpp", base_url=engine_url, model="large"))
    assert found["endpoint chat.0"].level is WARN
    assert "serves small, not large" in found["endpoint chat.0"].message


async def test_waiting_work_that_nobody_will_do_is_noticed(redis: Redis, valkey_url: str) -> None:
    queue = PromptQueue(redis)
    await queue.enqueue([new_job("a", lane="orphan"), new_job("b", lane="stopped")])
    await queue.pause("stopped")
    await queue.renew("w1", [], lease_ms=60_000, about=b'{"routes": {"stopped": {}}, "running": 3}')
    await redis.hset(queue.keys.fixed("garbage"), "x", "broken")
    found = await findings(valkey_url)
    assert found["workers"].message == "1 live, 3 jobs running"
    assert "no live worker serves it" in found["lane orphan"].message
    assert found["lane stopped"].fix == "prompt-scheduler admin queue resume stopped"
    assert found["garbage"].level is WARN


async def test_a_full_queue_is_noticed(redis: Redis, valkey_url: str) -> None:
    queue = PromptQueue(redis)
    await queue.configure(conf={"max_waiting": 1}, routes={"chat": b"{}"})
    await queue.enqueue([new_job("a")])
    assert (await findings(valkey_url))["bound"].level is WARN
