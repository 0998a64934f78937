"""Dramatiq at its best for small jobs: gevent, Redis as broker and for results."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = os.environ["PEER_REDIS_URL"]

broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True, result_ttl=3_600_000))
dramatiq.set_broker(broker)


@dramatiq.actor
def echo(job):
    """Return the text of the prompt."""
    return job["prompt"]
