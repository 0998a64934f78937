"""Stock arq at its best: what `bench.py` compares with."""

import asyncio
import os
from typing import Any, ClassVar

import uvloop
from arq.connections import RedisSettings

asyncio.set_event_loop(uvloop.new_event_loop())


async def echo(context: dict[str, Any], prompt: str) -> str:
    """Return the argument."""
    return prompt


class WorkerSettings:
    """poll_delay 1 ms and 100 jobs at once; other values were slower."""

    functions: ClassVar = [echo]
    redis_settings = RedisSettings.from_dsn(os.environ["PEER_REDIS_URL"])
    poll_delay = 0.001
    max_jobs = 100
