"""What all parts of the queue share: Redis, the keys, the scripts."""

from __future__ import annotations

from redis.asyncio import Redis

from scheduler.queue.keys import Keys
from scheduler.queue.scripts import Scripts


class QueuePart:
    """A part of the queue's methods, on one Redis.

    `redis` must not decode responses. `script_flags` is false for a server that does not know `#!lua`.
    """

    def __init__(self, redis: Redis, name: str = "default", *, script_flags: bool = True) -> None:
        self.redis = redis
        self.name = name
        db = _database(redis)
        self.keys = Keys(name, db)
        self._scripts = Scripts(redis, self.keys.prefix, flags=script_flags, db=db)

    def channel(self, job_id: str) -> str:
        """The pub/sub channel on which a job's events appear."""
        return self.keys.of("channel", job_id)


def _database(redis: Redis) -> int:
    """The number of the database that a client talks to, wherever its URL says so."""
    return int(redis.connection_pool.connection_kwargs.get("db") or 0)
