"""What users' own tests lean on."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from scheduler import Client, ConfigError, JobState, load_settings
from scheduler.testing import local_client, local_scheduler
from tests.patience import SOON_S


async def test_prompts_run_in_this_process() -> None:
    async with local_scheduler() as client:
        assert (await client.run("hello there", timeout_s=SOON_S)).text == "hello there"


async def test_two_at_a_time_know_nothing_of_each_other() -> None:
    async with local_scheduler() as one, local_scheduler() as two:
        job = await one.enqueue("hello")
        await job.result(timeout_s=SOON_S)
        assert await two.queue.replay(job.id) is None


async def test_everything_is_gone_at_the_end() -> None:
    before = asyncio.all_tasks()
    async with local_scheduler() as client:
        await client.enqueue("never read")
    assert asyncio.all_tasks() == before


async def test_the_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULER_CONFIG", "/nowhere.toml")
    monkeypatch.setenv("SCHEDULER_REDIS_URL", "redis://127.0.0.1:1")
    async with local_scheduler() as client:
        assert (await client.run("hello", timeout_s=SOON_S)).text == "hello"


async def test_settings_may_be_given() -> None:
    routes = {"mine": {"endpoints": [{"backend": "echo"}]}}
    async with local_scheduler(load_settings(environ={}, routes=routes)) as client:
        assert (await client.run("hello", model="mine", timeout_s=SOON_S)).model == "echo"


async def test_a_stage_that_cannot_start_is_an_error_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = asyncio.all_tasks()
    routes = {"echo": {"endpoints": [{"backend": "echo"}], "rag": {"documents": "/nowhere/at/all"}}}
    with pytest.raises(ConfigError):
        async with local_scheduler(load_settings(environ={}, routes=routes)):
            pass
    assert asyncio.all_tasks() == before


def test_without_async_it_leaves_no_thread() -> None:
    before = threading.active_count()
    with local_client() as client:
        job = client.enqueue("hello")
        assert job.result(timeout_s=SOON_S).text == "hello"
        assert job.info().state is JobState.DONE
    assert threading.active_count() == before


def test_the_fixture_gives_a_client(prompt_client: Client) -> None:
    assert isinstance(prompt_client, Client)
    assert prompt_client.run("hello", timeout_s=SOON_S).text == "hello"


@pytest.mark.parametrize("package", ["fakeredis", "lupa"])
def test_without_fakeredis_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'prompt-scheduler\[testing\]'"), local_client():
        pass
