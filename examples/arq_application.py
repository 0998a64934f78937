"""An arq application uses `run_prompt` like any of its functions: no other client is needed.

Start a worker process first: arq scheduler.WorkerSettings
"""

import asyncio
import os

from arq import create_pool
from arq.connections import RedisSettings

from scheduler import SchedulerError, arq_jobs

QUEUE = "ps:{default}:arq"  # the name of SCHEDULER_QUEUE stands in braces
REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost:6379")


async def main() -> None:
    """Enqueue the arq function, wait for the result's fields, and see what a failure is like."""
    # The serializers must be these, or orjson's: the worker process never unpickles.
    pool = await create_pool(
        RedisSettings.from_dsn(REDIS_URL), job_serializer=arq_jobs.encode, job_deserializer=arq_jobs.decode
    )
    for request in ({"prompt": "hello"}, {"prompt": "hello", "model": "nobody"}):
        job = await pool.enqueue_job("run_prompt", request, _queue_name=QUEUE)
        if job is None:  # arq has a job of that id already
            continue
        try:
            print((await job.result(timeout=30))["text"])
        except SchedulerError as error:
            print(f"{error.code}: {error}")
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main())
