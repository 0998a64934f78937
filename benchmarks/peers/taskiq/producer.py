"""Enqueues for taskiq."""

from produce import concurrently, prompt, run_async
from worker import broker, echo


class Producer:
    """taskiq has no bulk call, so that 100 at a time is its fastest way."""

    async def start(self):
        await broker.startup()

    async def stop(self):
        await broker.shutdown()

    async def one(self, number):
        return await echo.kiq(prompt(number))

    async def many(self, total):
        await concurrently(self, total)

    async def result(self, number):
        task = await self.one(number)
        return await task.wait_result(check_interval=0.001)


if __name__ == "__main__":
    run_async(Producer())
