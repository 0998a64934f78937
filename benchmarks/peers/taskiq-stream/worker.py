"""taskiq on its stream broker at its best: uvloop, orjson, 100 tasks at once, parameters as they are."""

import os

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["PEER_REDIS_URL"]

broker = (
    RedisStreamBroker(URL)
    .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600, serializer=ORJSONSerializer()))
    .with_serializer(ORJSONSerializer())
)


@broker.task(task_name="echo")
async def echo(job):
    """Return the text of the prompt."""
    return job["prompt"]
