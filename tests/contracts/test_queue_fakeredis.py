"""The queue on fakeredis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest

from scheduler.queue.queue import PromptQueue
from tests.contracts.queue_contract import QueueContract


class TestQueueOnFakeredis(QueueContract):
    @pytest.fixture
    async def queue(self) -> AsyncIterator[PromptQueue]:
        async with fakeredis.FakeAsyncRedis() as redis:
            yield PromptQueue(redis, "fake", script_flags=False)
