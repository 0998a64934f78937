"""The queue on fakeredis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest

from scheduler.queue.queue import PromptQueue
from tests.contracts.audit_contract import AuditContract
from tests.contracts.edges_contract import EdgesContract
from tests.contracts.keeping_contract import KeepingContract
from tests.contracts.limits_contract import LimitsContract
from tests.contracts.operators_contract import OperatorsContract
from tests.contracts.queue_contract import OnQueue, QueueContract
from tests.contracts.suspects_contract import SuspectsContract


class OnFakeredis(OnQueue):
    @pytest.fixture
    async def queue(self) -> AsyncIterator[PromptQueue]:
        async with fakeredis.FakeAsyncRedis() as redis:
            yield PromptQueue(redis, "fake", script_flags=False)


class TestQueueOnFakeredis(OnFakeredis, QueueContract):
    pass


class TestKeepingOnFakeredis(OnFakeredis, KeepingContract):
    pass


class TestLimitsOnFakeredis(OnFakeredis, LimitsContract):
    pass


class TestSuspectsOnFakeredis(OnFakeredis, SuspectsContract):
    pass


class TestAuditOnFakeredis(OnFakeredis, AuditContract):
    pass


class TestOperatorsOnFakeredis(OnFakeredis, OperatorsContract):
    pass


class TestEdgesOnFakeredis(OnFakeredis, EdgesContract):
    pass
