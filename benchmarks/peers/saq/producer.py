"""Enqueues for SAQ."""

import asyncio

from produce import concurrently, prompt, run_async
from worker import queue


class Producer:
    """SAQ has no bulk call, so that 100 at a time is its fastest way."""

    swept = False

    async def start(self):
        await queue.connect()

    async def stop(self):
        await queue.disconnect()

    async def one(self, number):
        return await queue.enqueue("echo", **prompt(number))

    async def many(self, total):
        await concurrently(self, total)

    async def result(self, number):
        if not self.swept:
            await self.until_swept()
        return await queue.apply("echo", poll_interval=0.001, **prompt(number))

    async def until_swept(self):
        """Wait for the sweep with which a worker starts: it aborts a job that is just being taken."""
        while not await queue.redis.exists("saq:default:sweep"):
            await asyncio.sleep(0.01)
        self.swept = True


if __name__ == "__main__":
    run_async(Producer())
