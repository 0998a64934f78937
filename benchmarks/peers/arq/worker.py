"""arq at its best: uvloop, poll_delay 1 ms, 100 jobs at once, no line logged for each job."""

import os

import uvloop
from arq.connections import RedisSettings

uvloop.install()

LOGGING = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": "WARNING"}}}


async def echo(context, job):
    """Return the text of the prompt."""
    return job["prompt"]


class WorkerSettings:
    """What `python -m arq worker.WorkerSettings` runs."""

    functions = (echo,)
    redis_settings = RedisSettings.from_dsn(os.environ["PEER_REDIS_URL"])
    poll_delay = 0.001
    max_jobs = 100
