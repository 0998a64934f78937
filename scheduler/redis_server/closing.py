"""Pools that stay closed: redis-py's lets a command that is under way connect again behind a close."""

from __future__ import annotations

from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection


class ClosingPool(ConnectionPool):
    """Disconnects what comes back after it was closed. A new command opens it again."""

    _is_closed = False

    async def get_connection(self, *args: Any, **options: Any) -> AbstractConnection:
        self._is_closed = False
        connection: AbstractConnection = await super().get_connection(*args, **options)
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        await super().release(connection)
        if self._is_closed:
            await connection.disconnect(nowait=True)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        self._is_closed = self._is_closed or inuse_connections
        await super().disconnect(inuse_connections)
