"""SAQ at its best: uvloop, orjson, 100 jobs at once; its log level is above the line for each job."""

import os

import orjson
import uvloop
from redis.asyncio import Redis
from saq.queue.redis import RedisQueue

uvloop.install()

queue = RedisQueue(
    Redis.from_url(os.environ["PEER_REDIS_URL"]),
    dump=orjson.dumps,
    load=orjson.loads,
    max_concurrent_ops=100,
)


async def echo(context, *, prompt, model):
    """Return the text of the prompt."""
    return prompt


settings = {"queue": queue, "functions": [echo], "concurrency": 100}
