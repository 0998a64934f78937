"""An arq application uses `run_prompt` like any of its functions: no other client is needed.

Start a worker process first: arq scheduler.WorkerSettings
"""

import asyncio

import orjson
from arq import create_pool
from arq.connections import RedisSettings

QUEUE = "ps:{default}:arq"  # the name of SCHEDULER_QUEUE stands in braces


async def main() -> None:
    """Enqueue the arq function and wait for the result's fields."""
    # The serializer must be orjson's: the worker process never unpickles.
    pool = await create_pool(RedisSettings(), job_serializer=orjson.dumps, job_deserializer=orjson.loads)
    job = await pool.enqueue_job("run_prompt", {"prompt": "hello", "model": "echo"}, _queue_name=QUEUE)
    if job is not None:
        print((await job.result(timeout=30))["text"])
    await pool.aclose()


if __name__ == "__main__":
    asyncio.run(main())
