"""Fixtures of the tests against scripted servers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contracts.wire import FakeServer, listening
from workers import GenerationWorker


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    """A server that answers with its `script`."""
    async with listening(FakeServer()) as fake:
        yield fake


@pytest.fixture
async def worker(request: pytest.FixtureRequest, server: FakeServer) -> AsyncIterator[GenerationWorker]:
    """The module's adapter to `server`, as its function `make` makes it."""
    worker: GenerationWorker = request.module.make(server)
    yield worker
    await worker.aclose()
