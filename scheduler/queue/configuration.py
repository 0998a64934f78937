"""The settings, limits and routes that worker processes publish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from scheduler.queue.limits import Limits
from scheduler.queue.part import QueuePart
from scheduler.queue.scripts import Argument

NO_LIMITS = Limits()


class Configuration(QueuePart):
    """The settings, limits and routes that worker processes publish."""

    async def configure(
        self,
        *,
        conf: Mapping[str, str | int | float],
        routes: Mapping[str, bytes],
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Publish the queue's settings, its limits, and the routes that a worker process serves.

        Routes that only other processes serve stay as they are. The limits of tenants belong to the queue:
        they replace those published before.
        """
        groups: list[Mapping[str, Argument | float]] = [conf, routes, limits.fields()]
        args: list[Argument] = [len(group) for group in groups]
        for group in groups:
            for name, value in group.items():
                args += (name, str(value) if isinstance(value, float) else value)
        await self._scripts.run("configure", *args)

    async def settings(self) -> dict[str, str]:
        """The settings in force, as a worker process published them."""
        stored: dict[bytes, bytes] = await self.redis.hgetall(self.keys.fixed("conf"))  # type: ignore[misc]  # redis-py has one type for sync and async
        return {name.decode(): value.decode("utf-8", "replace") for name, value in stored.items()}

    async def limits(self) -> dict[str, str]:
        """The rate limits in force, as `Limits.fields` has them."""
        stored: dict[bytes, bytes] = await self.redis.hgetall(self.keys.fixed("limits"))  # type: ignore[misc]  # redis-py has one type for sync and async
        return {name.decode(): value.decode("utf-8", "replace") for name, value in stored.items()}

    async def format(self) -> int:
        """The format in which the queue was last written; 0 if no process has published one."""
        stored: bytes | None = await self.redis.hget(self.keys.fixed("meta"), "format")  # type: ignore[misc]  # redis-py has one type for sync and async
        return int(stored) if stored and stored.isdigit() else 0

    async def routes(self) -> dict[str, dict[str, Any]]:
        """The routes that worker processes have published."""
        raw: dict[bytes, bytes] = await self.redis.hgetall(self.keys.fixed("routes"))  # type: ignore[misc]  # redis-py has one type for sync and async
        return {name.decode(): orjson.loads(body) for name, body in raw.items()}

    async def forget_routes(self, names: Sequence[str]) -> None:
        """Take routes off the list that nobody serves any more; clients then refuse prompts for them."""
        if names:
            await self.redis.hdel(self.keys.fixed("routes"), *names)  # type: ignore[misc]  # redis-py has one type for sync and async
