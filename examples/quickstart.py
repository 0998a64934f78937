"""Enqueue a prompt and print its answer as it streams.

Start a worker process first: prompt-scheduler dev
"""

import asyncio
import sys

from scheduler import AsyncClient, Delta, Priority


async def main(redis_url: str) -> None:
    """Ask, stream the answer, and print what it took."""
    async with AsyncClient(redis_url) as client:
        job = await client.enqueue("Why is the sky blue?", priority=Priority.HIGH, dedup_key="sky")
        async for event in job.events():
            if isinstance(event, Delta):
                print(event.text, end="", flush=True)
        result = await job.result()
        print(f"\n{result.usage.total_tokens} tokens, {result.timings.total_ms:.1f} ms")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost:6379"))
