"""Waits for model servers that a command has started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from scheduler.cli.children import Child
from workers.base import EndpointConfig
from workers.registry import make_worker

POLL_S = 0.1


async def until_healthy(server: Child, backend: str, base_url: str, timeout_s: float) -> None:
    """Wait until a server can answer.

    Raises:
        SchedulerError: it has ended, or the time is over.
    """
    options = {"try_priority": False} if backend == "vllm" else {}
    worker = make_worker(EndpointConfig(backend=backend, base_url=base_url, options=options))

    async def healthy() -> bool:
        return (await worker.health()).ready

    try:
        await until(healthy, server, timeout_s)
    finally:
        await worker.aclose()


async def until(reached: Callable[[], Awaitable[bool]], server: Child, timeout_s: float) -> None:
    """Wait until a condition holds, for at most `timeout_s` and while the server runs.

    Raises:
        SchedulerError: the server has ended, or the time is over.
    """
    ended = asyncio.create_task(server.wait())
    try:
        async with asyncio.timeout(timeout_s):
            while not await reached():
                if ended.done():
                    raise await server.failed()
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise server.complaint(f"{server.name} was not ready within {timeout_s:g} s:") from None
    finally:
        ended.cancel()
