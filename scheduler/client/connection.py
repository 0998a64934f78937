"""A client's connection to its queue: commands a few at a time, and everything that readers need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.errors import SchedulerError
from scheduler.queue.queue import PromptQueue
from scheduler.queue.records import Cursor, EnqueueOutcome, NewJob, Replay
from scheduler.queue.shared import FORMAT
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.errors import newer_data, too_late, translated
from scheduler.redis_server.readiness import check_server
from scheduler.results.ports import ReplayPort
from scheduler.results.replays import Replays
from scheduler.results.subscriptions import Subscriptions
from scheduler.settings import Settings

MAX_COMMANDS = 32
"""redis-py opens a connection for each concurrent command. A thousand callers share this many."""


class Connection:
    """An open connection. It belongs to the event loop in which it was made."""

    def __init__(
        self, redis: Redis, url: str, settings: Settings, *, owned: bool, script_flags: bool
    ) -> None:
        self.url = url
        self.queue = PromptQueue(redis, settings.queue, script_flags=script_flags)
        self._owned = owned
        self._open = True
        self._timeout_s = settings.redis_timeout_s
        self._subscriptions = Subscriptions(redis)
        self._replays = Replays(self._replay_many, self.queue.channel)
        self._loop = asyncio.get_running_loop()
        self._turns = asyncio.Semaphore(MAX_COMMANDS)
        self._answered_at = self._loop.time()  # when Redis last answered a command

    def check(self) -> None:
        """Raise a `SchedulerError` if the connection is closed, or belongs to another event loop."""
        if not self._open:
            raise not_connected()
        if self._loop is not asyncio.get_running_loop():
            raise SchedulerError(
                "the client was connected in another event loop: make one for each loop, "
                "or use Client, which threads may share"
            )

    async def aclose(self) -> None:
        """Close the connection. Open readers get a `SchedulerError`."""
        self._open = False
        await self._subscriptions.aclose()
        if self._owned:
            await self.queue.redis.aclose()

    @asynccontextmanager
    async def commands(self) -> AsyncIterator[PromptQueue]:
        """The queue, for `MAX_COMMANDS` callers at a time. Raises redis-py's errors as this package's."""
        self.check()
        with translated(self.url):
            await self._take_turn()
            try:
                self.check()  # it may have been closed during the wait
                yield self.queue
                self._answered_at = self._loop.time()
            finally:
                self._turns.release()

    async def _take_turn(self) -> None:
        """Wait for a turn: as long as Redis answers others, or for the time limit of one command."""
        limit_s = self._timeout_s
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    await self._turns.acquire()
            except TimeoutError:
                if self._loop.time() - self._answered_at >= limit_s:
                    raise too_late(limit_s) from None
            else:
                return

    async def enqueue(self, jobs: Sequence[NewJob]) -> Sequence[EnqueueOutcome]:
        """Enqueue at most `ENQUEUE_CHUNK` jobs, when it is this call's turn."""
        async with self.commands() as queue:
            return await queue.enqueue(jobs)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[ReplayPort, Subscriptions]]:
        """Everything that reading events needs. Raises redis-py's errors as this package's."""
        self.check()
        with translated(self.url):
            yield self._replays, self._subscriptions

    async def _replay_many(self, wanted: Sequence[tuple[str, Cursor]]) -> Sequence[Replay | Exception | None]:
        async with self.commands() as queue:
            return await queue.replay_many(wanted)


async def open_connection(url: str, settings: Settings) -> Connection:
    """Connect to a server, and check that it is usable.

    Raises:
        RedisUnavailable, RedisAuthError, RedisTooOld, NewerData: with a remedy.
    """
    redis = open_redis(url, timeout_s=settings.redis_timeout_s)
    try:
        await check_server(redis, url)
        await _check_format(redis, url, settings.queue)
    except BaseException:
        await redis.aclose()
        raise
    return Connection(redis, url, settings, owned=True, script_flags=True)


async def _check_format(redis: Redis, url: str, queue: str) -> None:
    stored = 0
    # A user who may not read it finds out at the first call.
    with translated(url), suppress(ResponseError):
        stored = await PromptQueue(redis, queue).format()
    if stored > FORMAT:
        raise newer_data(url)


def not_connected() -> SchedulerError:
    """The error for using a client before it is connected or after it was closed."""
    return SchedulerError(
        "the client is not connected, or was closed: use it inside `async with AsyncClient(…)`, "
        "or await connect()"
    )
