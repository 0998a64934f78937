"""Enqueues for arq."""

import os

from arq import create_pool
from arq.connections import RedisSettings
from produce import concurrently, prompt, run_async


class Producer:
    """arq has no bulk call, so that 100 at a time is its fastest way."""

    async def start(self):
        self.pool = await create_pool(RedisSettings.from_dsn(os.environ["PEER_REDIS_URL"]))

    async def stop(self):
        await self.pool.aclose()

    async def one(self, number):
        return await self.pool.enqueue_job("echo", prompt(number))

    async def many(self, total):
        await concurrently(self, total)

    async def result(self, number):
        job = await self.one(number)
        return await job.result(poll_delay=0.001)


if __name__ == "__main__":
    run_async(Producer())
