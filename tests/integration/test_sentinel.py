"""Redis behind Sentinel: the primary is found, and found again after a failover."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scheduler import AsyncClient, ConfigError, load_settings
from scheduler.engine import Engine
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.sentinel import SentinelUrl
from scheduler.redis_server.url import mask
from tests.acceptance.conftest import StartWorker, start_worker  # noqa: F401  a fixture
from tests.integration.engine_room import install_puppet, puppet_of, settings_of, until
from tests.integration.sentinel_servers import sentinel_servers
from tests.patience import SOON_S

PRIMARY = {
    "ip": "127.0.0.1",
    "port": 1,
    "is_master": True,
    "is_sdown": False,
    "is_odown": False,
    "num-other-sentinels": 2,
}


def test_url_says_which_sentinels_and_which_service() -> None:
    url = "rediss+sentinel://us%40er:pa%2Fss@a.example,b:26380,[::1]:1/my%20name/3"
    url += "?sentinel_username=watch&sentinel_password=dog"
    assert SentinelUrl.parse(url) == SentinelUrl(
        sentinels=(("a.example", 26379), ("b", 26380), ("::1", 1)),
        service="my name",
        db=3,
        username="us@er",
        password="pa/ss",
        tls=True,
        sentinel_username="watch",
        sentinel_password="dog",
    )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis+sentinel://a:26379", "names no service"),
        ("redis+sentinel:///mymaster", "host:port"),
        ("redis+sentinel://a:b:c/mymaster", "host:port"),
        ("redis+sentinel://a:99999/mymaster", "host:port"),
        ("redis+sentinel://a/mymaster/x", "database"),
        ("redis+sentinel://:secret@a/mymaster?password=secret", "knows sentinel_username, sentinel_password"),
    ],
)
def test_mistake_in_the_url_is_explained_without_its_secrets(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_redis(url)
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("redis_url: ")


def test_passwords_in_the_url_are_masked() -> None:
    masked = mask("redis+sentinel://u:one@a,b/m?sentinel_username=w&sentinel_password=two")
    assert masked == "redis+sentinel://u:***@a,b/m?sentinel_username=w&sentinel_password=***"


def test_settings_take_such_a_url() -> None:
    url = "redis+sentinel://a:26379/mymaster"
    assert load_settings(environ={"SCHEDULER_REDIS_URL": url}).redis_url.get_secret_value() == url


class Scripted:
    """A sentinel that answers when the test says so."""

    def __init__(self, *, knows: bool) -> None:
        self.knows = knows
        self.asked = 0
        self.answers = asyncio.Event()

    async def sentinel_masters(self) -> dict[str, Any]:
        self.asked += 1
        await self.answers.wait()
        return {"mymaster": PRIMARY} if self.knows else {}


async def test_several_that_ask_at_once_lose_no_sentinel() -> None:
    pool = SentinelUrl.parse("redis+sentinel://a,b,c/mymaster").pool()
    sentinel: Any = pool.sentinel_manager  # type: ignore[attr-defined]  # redis-py types the pool as any pool
    ignorant, knowing, third = Scripted(knows=False), Scripted(knows=True), Scripted(knows=True)
    sentinel.sentinels = [ignorant, knowing, third]
    asking = [asyncio.create_task(sentinel.discover_master("mymaster")) for _ in range(2)]
    ignorant.answers.set()
    await until(lambda: knowing.asked == 2)
    knowing.answers.set()
    assert await asyncio.gather(*asking) == [("127.0.0.1", 1)] * 2
    assert sentinel.sentinels == [knowing, ignorant, third]


async def test_primary_may_die_while_prompts_run(
    valkey_binary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    install_puppet(monkeypatch)
    with sentinel_servers(valkey_binary, tmp_path) as servers:
        settings = settings_of(redis_url=servers.url)
        engine = Engine(settings, open_redis(servers.url))
        await engine.start()
        try:
            async with AsyncClient(servers.url, settings=settings) as client:
                before = await client.enqueue("before")
                call = await puppet_of(engine).next_call()
                await client.queue.redis.execute_command("WAIT", 1, 5000)
                old = servers.primary()
                servers.kill(old)
                call.finish("ran on")
                assert (await before.result(timeout_s=SOON_S)).text == "ran on"
                after = await client.enqueue("after")
                (await puppet_of(engine).next_call()).finish("as well")
                assert (await after.result(timeout_s=SOON_S)).text == "as well"
                assert servers.primary() != old
        finally:
            await engine.stop(drain_s=0)
            await engine.queue.redis.aclose()
    said = [record.getMessage().partition(" (")[0] for record in caplog.records]
    # It may be over before any loop of the process asks Redis anything: then there is nothing to say.
    assert [line for line in said if line.startswith("Redis is")] in ([], ["Redis is away", "Redis is back"])
    await asyncio.sleep(0)


async def test_check_asks_the_primary_for_the_health_of_its_worker(
    valkey_binary: Path,
    tmp_path: Path,
    start_worker: StartWorker,  # noqa: F811  the fixture, by its name
) -> None:
    check = [sys.executable, "-m", "arq", "--check", "scheduler.WorkerSettings"]
    with sentinel_servers(valkey_binary, tmp_path) as servers:
        environ = {"PATH": "/usr/bin:/bin", "SCHEDULER_REDIS_URL": servers.url}
        for status in (1, 0):
            done = await asyncio.to_thread(subprocess.run, check, env=environ, check=False)
            assert done.returncode == status
            if status:
                await asyncio.to_thread(start_worker, servers.url)
