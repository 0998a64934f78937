"""Background work finishes beside a steady stream of urgent work that takes 90 % of the capacity."""

from __future__ import annotations

import asyncio

import pytest

from scheduler import AsyncClient, Job, PromptRequest
from scheduler.engine import Engine
from scheduler.redis_server.connection import open_redis
from tests.integration.engine_room import settings_of
from tests.patience import SOON_S

# Long calls: what the scheduler takes between two of them is little beside.
CALL_S, PLACES = 0.2, 16
STREAM_PER_S = 0.9 * PLACES / CALL_S
AGING_S = 0.5
BACKGROUND, BACKGROUND_PRIORITY = 20, 1
SLACK_S = SOON_S / 4

ROUTE = {
    "batch": {"max_size": 1},
    "endpoints": [
        {"backend": "echo", "max_in_flight": PLACES, "options": {"first_delay_s": CALL_S}},
    ],
}


@pytest.mark.parametrize("urgent", [7, 9])
async def test_background_work_finishes_within_the_aging_bound(valkey_url: str, urgent: int) -> None:
    settings = settings_of(routes={"echo": ROUTE}, aging_s=AGING_S)
    engine = Engine(settings, open_redis(valkey_url))
    await engine.start()
    try:
        async with AsyncClient(valkey_url, settings=settings) as client:
            stream = asyncio.create_task(urgent_stream(client, urgent))
            await asyncio.sleep(1)
            began = asyncio.get_running_loop().time()
            background = [PromptRequest(prompt="background", priority=BACKGROUND_PRIORITY)] * BACKGROUND
            jobs = [job for job in await client.enqueue_many(background) if isinstance(job, Job)]
            # What has aged past its bound has the rest of the capacity, and one claim in twenty.
            share = 0.1 * PLACES / CALL_S
            bound_s = (9 - BACKGROUND_PRIORITY) * AGING_S + BACKGROUND / share + SLACK_S
            await asyncio.gather(*(job.result(timeout_s=bound_s) for job in jobs))
            assert asyncio.get_running_loop().time() - began < bound_s
            assert not stream.done()
            stream.cancel()
            await asyncio.wait([stream])
    finally:
        await engine.stop(drain_s=5)
        await engine.queue.redis.aclose()


async def urgent_stream(client: AsyncClient, priority: int) -> None:
    """Enqueue evenly, whatever becomes of it."""
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), 0
    while True:
        due = int((loop.time() - began) * STREAM_PER_S) - sent
        if due > 0:
            await client.enqueue_many([PromptRequest(prompt="urgent", priority=priority)] * due)
            sent += due
        await asyncio.sleep(0.01)
