"""streaQ at its best: uvloop, orjson, 100 tasks at once, no line logged for each task."""

import os

import orjson
from streaq import Worker

worker = Worker(
    redis_url=os.environ["PEER_REDIS_URL"],
    concurrency=100,
    serializer=lambda value: orjson.dumps(value).decode(),
    deserializer=orjson.loads,
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(silent=True, timeout=None)
async def echo(job):
    """Return the text of the prompt."""
    return job["prompt"]
