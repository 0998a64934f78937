"""The queue on real servers: Valkey, and the oldest Redis that is supported."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from scheduler.queue.queue import PromptQueue
from tests.contracts.queue_contract import QueueContract


class TestQueueOnServers(QueueContract):
    @pytest.fixture
    async def queue(self, server_url: str) -> AsyncIterator[PromptQueue]:
        async with Redis.from_url(server_url) as redis:
            queue = PromptQueue(redis, "real")
            await queue.load()
            yield queue
