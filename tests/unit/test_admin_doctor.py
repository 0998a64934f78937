"""What the doctor makes of what it finds."""

from __future__ import annotations

import asyncio
import http.server
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from scheduler.admin import Finding, Level, examine
from scheduler.queue import PromptQueue
from scheduler.settings import AssembleSettings, EndpointSettings, RagSettings, RouteSettings, Settings
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


def route(backend: str, **fields: Any) -> Settings:
    endpoint = EndpointSettings(backend=backend, **fields)
    return Settings(routes={"chat": RouteSettings(endpoints=[endpoint])})


async def test_a_sound_server_is_well(redis: Redis, valkey_url: str) -> None:
    found = await findings(valkey_url)
    well = {"redis", "eviction", "memory", "round trip", "channels", "bound", "route echo", "endpoint echo.0"}
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
    assert "only snapshots" in (await findings(valkey_url))["persistence"].message
    await redis.config_set("appendonly", "yes")
    assert (await findings(valkey_url))["persistence"].level is OK


async def test_without_redis_the_endpoints_are_looked_at_all_the_same() -> None:
    found = await findings("redis://:secret@127.0.0.1:1")
    assert found["redis"].level is FAIL
    assert "secret" not in found["redis"].message
    assert found["endpoint echo.0"].level is OK
    assert set(found) == {"redis", "route echo", "endpoint echo.0"}


async def test_an_endpoint_that_is_down_fails(valkey_url: str) -> None:
    found = await findings(valkey_url, route("llama_cpp", base_url="http://127.0.0.1:1"))
    finding = found["endpoint chat.0"]
    assert finding.level is FAIL
    assert "http://127.0.0.1:1" in finding.message
    assert finding.fix


async def test_an_endpoint_that_cannot_be_made_fails_alone(valkey_url: str) -> None:
    keyless = EndpointSettings(backend="echo", api_key_env="NO_SUCH_KEY")
    unknown, good = EndpointSettings(backend="eco"), EndpointSettings(backend="echo")
    found = await findings(
        valkey_url, Settings(routes={"chat": RouteSettings(endpoints=[keyless, unknown, good])})
    )
    assert found["endpoint chat.0"].level is FAIL
    assert found["endpoint chat.0"].message == "api_key_env names NO_SUCH_KEY, which is not set"
    assert found["endpoint chat.1"].level is FAIL
    assert "did you mean 'echo'" in found["endpoint chat.1"].message
    assert found["endpoint chat.2"].level is OK


async def test_stages_that_cannot_work_fail_beside_the_endpoints(valkey_url: str, tmp_path: Path) -> None:
    endpoints = [EndpointSettings(backend="echo")]
    (tmp_path / "facts.md").write_text("The sky is blue.")
    found = await findings(
        valkey_url,
        Settings(
            routes={
                "lost": RouteSettings(endpoints=endpoints, rag=RagSettings(documents=tmp_path / "no")),
                "typo": RouteSettings(endpoints=endpoints, assemble=AssembleSettings(template="{{ prompt")),
                "good": RouteSettings(endpoints=endpoints, rag=RagSettings(documents=tmp_path)),
            }
        ),
    )
    assert found["route lost"].level is FAIL
    assert "routes.lost.rag.documents: there is no folder" in found["route lost"].message
    assert found["route typo"].level is FAIL
    assert "routes.typo.assemble.template" in found["route typo"].message
    assert found["route good"] == Finding(OK, "route good", "stages rag, assemble, inference, post, stream")
    assert {found[f"endpoint {name}.0"].level for name in ("lost", "typo", "good")} == {OK}


@pytest.mark.parametrize(
    ("module", "route"),
    [
        ("scheduler.stages.bm25", {"rag": {"documents": "."}}),
        ("scheduler.stages.templates", {"assemble": {"template": "{{ prompt }}"}}),
    ],
)
async def test_an_extra_that_a_stage_needs_is_named(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, module: str, route: dict[str, object]
) -> None:
    package = "bm25s" if "bm25" in module else "jinja2"
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    fields = {"endpoints": [{"backend": "echo"}], **route}
    found = await findings(valkey_url, Settings(routes={"chat": RouteSettings.model_validate(fields)}))
    assert found["route chat"].level is FAIL
    assert "pip install 'prompt-scheduler[" in found["route chat"].message


async def test_a_worker_that_breaks_the_rules_of_the_port_fails_alone(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def health(self: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("workers.echo.EchoWorker.health", health)
    found = await findings(valkey_url)
    assert found["endpoint echo.0"].level is FAIL
    assert "ZeroDivisionError: oh" in found["endpoint echo.0"].message
    assert "bound" in found


async def test_an_engine_that_is_too_busy_to_be_tried_is_well(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def advice(self: object) -> tuple[str, ...]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr("workers.echo.EchoWorker.advice", advice, raising=False)
    monkeypatch.setattr("scheduler.admin.doctor.routes.ADVICE_TIMEOUT_S", 0.01)
    assert (await findings(valkey_url))["endpoint echo.0"].level is OK


async def test_a_replica_fails(redis: Redis, valkey_url: str) -> None:
    await redis.replicaof("127.0.0.1", "1")
    try:
        found = await findings(valkey_url)
    finally:
        await redis.replicaof("NO", "ONE")
    assert found["role"].level is FAIL
    assert "primary" in found["role"].fix


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


async def test_advice_is_given_beside_a_wrong_model(
    valkey_url: str, engine_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def advice(self: object) -> tuple[str, ...]:
        return ("start it otherwise",)

    monkeypatch.setattr("workers.llama_cpp.LlamaCppWorker.advice", advice)
    found = await findings(valkey_url, route("llama_cpp", base_url=engine_url, model="large"))
    assert found["endpoint chat.0"].message.endswith("serves small, not large; start it otherwise")


async def test_a_model_that_is_certainly_not_served_fails(valkey_url: str, engine_url: str) -> None:
    endpoint = {"base_url": engine_url, "options": {"priority": False}}
    found = await findings(valkey_url, route("vllm", model="small", **endpoint))
    assert found["endpoint chat.0"].level is OK
    found = await findings(valkey_url, route("vllm", model="large", **endpoint))
    assert found["endpoint chat.0"].level is FAIL
    assert "does not serve the model large, but small" in found["endpoint chat.0"].message


async def test_waiting_work_that_nobody_will_do_is_noticed(redis: Redis, valkey_url: str) -> None:
    queue = PromptQueue(redis)
    await queue.enqueue([new_job("a", lane="orphan"), new_job("b", lane="stopped")])
    await queue.pause("stopped")
    await queue.renew("w1", [], lease_ms=60_000, about=b'{"routes": {"stopped": {}}, "running": 3}')
    await redis.hset(queue.keys.fixed("garbage"), "x", "broken")  # type: ignore[misc]  # redis-py has one type for sync and async
    await redis.zadd(queue.keys.fixed("dead"), {"y": 1})
    found = await findings(valkey_url)
    assert found["workers"].message == "1 live, 3 jobs running"
    assert "no live worker process serves it" in found["lane orphan"].message
    assert found["lane stopped"].fix == "prompt-scheduler admin queue resume stopped"
    assert found["garbage"].level is WARN
    assert found["dead"].message == "failed jobs kept: 1"
    assert found["serving echo"].level is WARN, "a route of these settings"
    assert "serving stopped" not in found


async def test_settings_that_are_not_those_that_hold_are_noticed(redis: Redis, valkey_url: str) -> None:
    queue = PromptQueue(redis)
    assert "queue settings" not in await findings(valkey_url)
    await queue.configure(conf={"max_waiting": 7, "dead_ttl_ms": 5000}, routes={"chat": b"{}"})
    assert "queue settings" not in await findings(valkey_url), "a host without settings has nothing to say"
    found = (await findings(valkey_url, route("echo")))["queue settings"]
    assert found.level is WARN
    assert "max_waiting is 7, and 100000 here; dead_ttl_s is 5, and 604800 here" in found.message


async def test_data_of_a_newer_version_is_noticed(redis: Redis, valkey_url: str) -> None:
    await redis.hset(PromptQueue(redis).keys.fixed("meta"), "format", "9")  # type: ignore[misc]  # redis-py has one type for sync and async
    found = (await findings(valkey_url))["stored data"]
    assert found.level is FAIL
    assert "upgrade" in found.message + found.fix


async def test_a_full_queue_is_noticed(redis: Redis, valkey_url: str) -> None:
    queue = PromptQueue(redis)
    await queue.configure(conf={"max_waiting": 1}, routes={"chat": b"{}"})
    await queue.enqueue([new_job("a")])
    assert (await findings(valkey_url))["bound"].level is WARN
