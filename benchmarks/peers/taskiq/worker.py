"""taskiq on its list or its stream broker: uvloop, orjson, 100 tasks at once, parameters as they are."""

import os

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

URL = os.environ["PEER_REDIS_URL"]
BROKERS = {"list": ListQueueBroker, "stream": RedisStreamBroker}

broker = (
    BROKERS[os.environ["TASKIQ_BROKER"]](URL)
    .with_result_backend(RedisAsyncResultBackend(URL, result_ex_time=3600, serializer=ORJSONSerializer()))
    .with_serializer(ORJSONSerializer())
)


@broker.task(task_name="echo")
async def echo(job):
    """Return the text of the prompt."""
    return job["prompt"]
