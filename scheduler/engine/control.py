"""Messages to the worker processes on the queue's control channel."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import orjson

from scheduler.engine.service import Service
from scheduler.results.subscriptions import Subscriptions


class Control(Service):
    """Applies messages as they come: cancelled jobs, and limits that an administrator has reset.

    `on_cancel(job_id, token)` and `on_forgive(subject)` hear of them. A lost message of a cancelled job does
    no harm: the next renewal or write is refused.
    """

    def __init__(
        self,
        subscriptions: Subscriptions,
        channel: str,
        *,
        on_cancel: Callable[[str, int], None],
        on_forgive: Callable[[str], None],
    ) -> None:
        super().__init__("control")
        self._subscriptions = subscriptions
        self._channel = channel
        self._on_cancel = on_cancel
        self._on_forgive = on_forgive

    async def run(self) -> None:
        """Listen for ever."""
        async with self._subscriptions.follow(self._channel) as feed:
            while True:
                message = await feed.next()
                if message is not None:
                    self.apply(message)

    def apply(self, message: bytes) -> None:
        """Apply one message; one that cannot be read changes nothing."""
        with suppress(ValueError, KeyError, TypeError):
            order = orjson.loads(message)
            if "forgive" in order:
                self._on_forgive(str(order["forgive"]))
            else:
                self._on_cancel(order["cancel"], int(order["token"]))
