"""One pub/sub connection for all channels that a process follows."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError

from scheduler.backoff import backoff
from scheduler.logs import traced

logger = logging.getLogger(__name__)

FEED_MESSAGES = 4096
"""How many messages a follower may be behind before it misses some."""


class Feed:
    """The unread messages of one follower. Bounded; it says when messages may have been missed.

    It has one timer for all its waits, which checks the clock when it fires: a timer for each message would
    be a third of what a message costs.
    """

    __slots__ = ("_error", "_give_up_at", "_messages", "_missed", "_timer", "_waiter")

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._missed = False
        self._error: NoPermissionError | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._give_up_at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    async def next(self, timeout_s: float | None = None) -> bytes | None:
        """The next message; None if some may have been missed, or if none came within `timeout_s`.

        Raises:
            redis.exceptions.NoPermissionError: the server does not let this user follow the channel.
        """
        while not self._messages and not self._missed:
            if not await self._news(timeout_s):
                return None
        if self._error is not None:
            raise self._error
        if self._missed:
            self._missed = False
            return None
        return self._messages.popleft()

    def put(self, message: bytes) -> None:
        """Add a message. If the follower is too slow, the messages before it are dropped."""
        if len(self._messages) >= FEED_MESSAGES:
            self.miss()
        self._messages.append(message)
        self._wake()

    def miss(self) -> None:
        """Note that messages may have been missed. The unread ones are of no use then."""
        self._messages.clear()
        self._missed = True
        self._wake()

    def fail(self, error: NoPermissionError) -> None:
        """Note that no message will ever come."""
        self._error = error
        self.miss()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _news(self, timeout_s: float | None) -> bool:
        """Wait until something happens; False if nothing does within that time."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        if timeout_s is not None:
            self._give_up_at = loop.time() + timeout_s
            if self._timer is None or self._timer.when() > self._give_up_at:
                self.close()
                self._timer = loop.call_at(self._give_up_at, self._look, loop)
        try:
            return await self._waiter
        finally:
            self._waiter = None
            self._give_up_at = math.inf

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give up if it is time, or look again when it will be. Between two waits the next one sees to it."""
        self._timer = None
        if self._give_up_at > loop.time():
            if self._give_up_at < math.inf:
                self._timer = loop.call_at(self._give_up_at, self._look, loop)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(False)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)


class _Topic:
    __slots__ = ("confirmed", "feeds")

    def __init__(self) -> None:
        self.feeds: set[Feed] = set()
        self.confirmed = asyncio.Event()

    def confirm(self) -> None:
        # A second confirmation: the subscription is a new one, and messages in between were missed.
        if self.confirmed.is_set():
            self.miss()
        self.confirmed.set()

    def miss(self) -> None:
        for feed in self.feeds:
            feed.miss()

    def refuse(self, error: NoPermissionError) -> None:
        for feed in self.feeds:
            feed.fail(error)
        self.confirmed.set()


class Subscriptions:
    """The subscriptions of a process. It connects with the first one, and reconnects until it is closed.

    Channels that are followed or left within one turn of the event loop share one command.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._topics: dict[str, _Topic] = {}
        self._changed: set[str] = set()  # channels to subscribe to, or to unsubscribe from
        self._has_changed = asyncio.Event()
        self._pubsub: PubSub | None = None
        self._own: tuple[Any, Any, Any] = (None, None, None)
        self._task: asyncio.Task[None] | None = None
        self._heard = False  # whether anything has come over this connection

    @asynccontextmanager
    async def follow(self, channel: str) -> AsyncIterator[Feed]:
        """Follow a channel. Redis has confirmed the subscription when the body begins."""
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = _Topic()
            self._change(channel)
        feed = Feed()
        topic.feeds.add(feed)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="subscriptions")
        try:
            await topic.confirmed.wait()
            yield feed
        finally:
            topic.feeds.discard(feed)
            feed.close()
            if not topic.feeds and self._topics.get(channel) is topic:
                del self._topics[channel]
                self._change(channel)

    async def aclose(self) -> None:
        """Close the connection. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._disconnect()
        # Open followers must not wait for a connection that will not come.
        for topic in self._topics.values():
            topic.confirmed.set()
            topic.miss()

    def _change(self, channel: str) -> None:
        self._changed.add(channel)
        self._has_changed.set()

    async def _send_changes(self, pubsub: PubSub) -> None:
        """Subscribe and unsubscribe as followers come and go, for as long as this connection lasts."""
        while True:
            await self._has_changed.wait()
            self._has_changed.clear()
            changed, self._changed = self._changed, set()
            # A channel that was left and is followed again is subscribed to again in any case: its new
            # followers wait for a confirmation.
            followed = [channel for channel in changed if channel in self._topics]
            left = [channel for channel in changed if channel not in self._topics]
            # Without the checks redis-py would reconnect here, just when the reading task gives this
            # connection up and makes a new one with all subscriptions. An error closes the connection.
            try:
                if followed and _is_connected(pubsub):
                    await pubsub.subscribe(*followed)
                if left and _is_connected(pubsub):
                    await pubsub.unsubscribe(*left)
            except (RedisError, OSError) as error:
                logger.debug("subscriptions: cannot send changes (%s)", error)

    async def _run(self) -> None:
        waits = backoff()
        while True:
            self._heard = False
            sending: asyncio.Task[None] | None = None
            try:
                pubsub = await self._connect()
                sending = asyncio.create_task(self._send_changes(pubsub), name="subscriptions: changes")
                await self._read(pubsub)
            except NoPermissionError as error:
                for topic in self._topics.values():
                    topic.refuse(error)
            except (RedisError, OSError) as error:
                logger.debug("subscriptions: the connection is gone (%s)", error)
            except Exception as error:
                logger.error("subscriptions failed; reconnecting", exc_info=traced(error, logger))
            finally:
                if sending is not None:
                    sending.cancel()
            await self._disconnect()
            for topic in self._topics.values():
                topic.miss()
            # A server that accepts connections and closes them at once must not cause a tight loop.
            if self._heard:
                waits = backoff()
            await asyncio.sleep(next(waits))

    async def _connect(self) -> PubSub:
        pubsub = self._redis.pubsub()
        await pubsub.connect()
        # redis-py would reconnect silently, but missed messages must be noticed.
        connection: Any = pubsub.connection
        self._own = (connection, connection.retry, connection.retry_on_error)
        connection.retry, connection.retry_on_error = Retry(NoBackoff(), 0), []
        self._pubsub = pubsub
        self._changed.clear()
        if self._topics:
            await pubsub.subscribe(*self._topics)
        return pubsub

    async def _read(self, pubsub: PubSub) -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is None:
                continue
            self._heard = True
            topic = self._topics.get(message["channel"].decode())
            if topic is None:
                continue
            if message["type"] == "message":
                for feed in topic.feeds:
                    feed.put(message["data"])
            elif message["type"] == "subscribe":
                topic.confirm()

    async def _disconnect(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            # The connection returns to the pool, where commands rely on its retries.
            connection, retry, retry_on_error = self._own
            connection.retry, connection.retry_on_error = retry, retry_on_error
            with suppress(RedisError, OSError):
                await pubsub.aclose()


def _is_connected(pubsub: PubSub) -> bool:
    return pubsub.connection is not None and pubsub.connection.is_connected
