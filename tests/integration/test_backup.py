"""A snapshot that was taken under load, restored as docs/operations.md says."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scheduler import AsyncClient, DedupMode, Job, JobNotFound, PromptRequest, admin
from tests.acceptance.conftest import StartWorker, slow_echo
from tests.acceptance.conftest import start_worker as start_worker  # noqa: PLC0414  a fixture
from tests.integration.lone_server import LoneServer
from tests.patience import SOON_S

LATER_S = 20.0
"""Restored leases end after one lease; nobody takes them away before."""


@pytest.fixture
async def servers(redis_binary: Path, tmp_path: Path) -> AsyncIterator[tuple[LoneServer, LoneServer]]:
    """The one that is backed up, which is running, and the one that is restored, which is not yet."""
    folders = [tmp_path / name for name in ("old", "new")]
    for folder in folders:
        folder.mkdir()
    old = LoneServer(redis_binary, folders[0])
    # With its append-only file on it would look for that, and not for the snapshot.
    new = LoneServer(redis_binary, folders[1], "--appendonly", "no")
    await old.start()
    yield old, new
    for server in (old, new):
        server.kill()


async def test_a_restored_snapshot_is_sound_and_its_jobs_are_done(
    servers: tuple[LoneServer, LoneServer], tmp_path: Path, start_worker: StartWorker
) -> None:
    old, new = servers
    toml = slow_echo(0.2, max_in_flight=4)
    first = await asyncio.to_thread(start_worker, old.url, toml=toml, SCHEDULER_LEASE_S="2")
    async with AsyncClient(old.url) as client:
        done = await client.enqueue("done", dedup_key="k", dedup=DedupMode.WINDOW)
        await done.result(timeout_s=SOON_S)
        kept = [
            await client.enqueue("later", delay_s=2),
            *await client.enqueue_many([PromptRequest(prompt="a b c", dedup_key=f"{n}") for n in range(20)]),
        ]
        async with asyncio.timeout(SOON_S):
            while (await client.queue.redis.zcard(client.queue.keys.fixed("leases"))) < 4:
                await asyncio.sleep(0.01)
        await _save(client.queue.redis)
        lost = await client.enqueue("since the snapshot")
    first.kill()
    old.kill()
    shutil.copy(tmp_path / "old" / "dump.rdb", tmp_path / "new")

    await new.start()
    async with AsyncClient(new.url) as client:
        assert (await admin.audit(client.queue)).problems == []
        await client.queue.redis.config_set("appendonly", "yes")
        await asyncio.to_thread(start_worker, new.url, toml=toml, SCHEDULER_LEASE_S="2")
        jobs = [client.job(job.id) for job in kept if isinstance(job, Job)]
        assert len(jobs) == 21
        results = await asyncio.gather(*(job.result(timeout_s=LATER_S) for job in jobs))
        assert {result.text for result in results} == {"later", "a b c"}
        again = await client.enqueue("done", dedup_key="k", dedup=DedupMode.WINDOW)
        assert (await again.result(timeout_s=SOON_S)).reused, "answers are kept, too"
        with pytest.raises(JobNotFound):
            await client.job(lost.id).info()
        assert (await admin.audit(client.queue)).problems == []


async def _save(redis: Redis) -> None:
    await redis.bgsave()
    async with asyncio.timeout(SOON_S):
        while (await redis.info("persistence"))["rdb_bgsave_in_progress"]:
            await asyncio.sleep(0.02)
    assert (await redis.info("persistence"))["rdb_last_bgsave_status"] == "ok"
