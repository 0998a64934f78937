"""Celery at its best for small tasks: Redis as broker and for results, no events, large prefetch."""

import os

from celery import Celery

URL = os.environ["PEER_REDIS_URL"]

app = Celery("worker", broker=URL, backend=URL)
app.conf.update(
    worker_prefetch_multiplier=0,
    result_expires=3600,
    worker_enable_remote_control=False,
    broker_connection_retry_on_startup=True,
)


@app.task(name="echo")
def echo(job):
    """Return the text of the prompt."""
    return job["prompt"]
