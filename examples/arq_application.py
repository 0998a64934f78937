"""An arq application calls `run_prompt` like any other function: it needs no other client.

Start a worker process first: arq scheduler.WorkerSettings
"""

import asyncio
import os

from arq import create_pool
from arq.connections import RedisSettings

from scheduler import SchedulerError, arq_jobs

QUEUE = "ps:{default}:arq"  # the name in braces is that of SCHEDULER_QUEUE
REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")


async def main() -> None:
    """Enqueue the arq function, wait for the result, and show what a failure looks like."""
    # Use these serializers, or orjson's: the worker process never unpickles.
    pool = await create_pool(
        RedisSettings.from_dsn(REDIS_URL), job_serializer=arq_jobs.encode, job_deserializer=arq_jobs.decode
    )
    for request in ({"prompt": "hello"}, {"prompt": "hello", "model": "nobody"}):
        job = await pool.enqueue_job("run_prompt", request, _queue_name=QUEUE)
        if job is None:  # arq already has a job with this id
            continue
        try:
            print((await job.result(timeout=30))["text"])
        except SchedulerError as error:
            print(f"{error.code}: {error}")
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main())
