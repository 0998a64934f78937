"""Enqueues for streaQ."""

from produce import prompt, run_async
from worker import echo, worker

CHUNK = 1000


class Producer:
    """Its bulk call sends a pipeline."""

    async def start(self):
        await worker.__aenter__()

    async def stop(self):
        await worker.__aexit__(None, None, None)

    async def one(self, number):
        return await echo.enqueue(prompt(number))

    async def many(self, total):
        for first in range(0, total, CHUNK):
            numbers = range(first, min(first + CHUNK, total))
            await worker.enqueue_many([echo.enqueue(prompt(number)) for number in numbers])

    async def result(self, number):
        task = await self.one(number)
        return await task.result(timeout=30)


if __name__ == "__main__":
    run_async(Producer())
