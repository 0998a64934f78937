"""The connections of a client."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer

from scheduler.errors import ConfigError
from scheduler.redis_server.closing import ClosingPool
from scheduler.redis_server.errors import AUTH, AWAY, unusable
from scheduler.redis_server.sentinel import SentinelUrl, is_sentinel
from scheduler.redis_server.url import mask, socket_options, tls_options


def connection_pool(url: str, *, retries: int) -> ConnectionPool:
    """Make the connection pool of a client. Opens no connection.

    Raises:
        ConfigError: the URL cannot be used.
    """
    options = {
        "retry": Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
        "retry_on_error": list(AWAY),
        **socket_options(url),
        **tls_options(url),
    }
    if is_sentinel(url):
        try:
            return _packing_in_c(SentinelUrl.parse(url).pool(**options))
        except ValueError as error:
            raise ConfigError(f"redis_url: {mask(url)} {error}") from None
    try:
        pool: _Pool = _Pool.from_url(url, **options)
    except (ValueError, AttributeError):
        raise unusable(url) from None
    pool.retries = retries
    return _packing_in_c(pool)


def _packing_in_c(pool: ConnectionPool) -> ConnectionPool:
    """Let hiredis serialize the commands, in a tenth of the time. redis-py does it only without asyncio."""
    fast: type[AbstractConnection] = type(
        pool.connection_class.__name__, (_Packing, pool.connection_class), {}
    )
    pool.connection_class = fast
    return pool


class _Packing(AbstractConnection):
    _serializer = HiredisRespSerializer()

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = self._serializer.pack(*args)
        return packed


class _Pool(ClosingPool):
    """Retries the greeting of a new connection; redis-py retries only opening a socket and running a command.

    Without it, a server that dies during the greeting, or a proxy without a server, is an error at once.
    """

    retries = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, redis_connect_func=self._greet, **options)
        self._opened = 0

    async def _greet(self, connection: AbstractConnection) -> None:
        self._opened += 1
        await connection.on_connect()

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        backoff = ExponentialBackoff(cap=1.0, base=0.05)
        for failures in itertools.count(1):
            opened = self._opened
            try:
                await super().ensure_connection(connection)
            except AWAY as error:
                await connection.disconnect(nowait=True)
                # Opening the socket has been retried already.
                if isinstance(error, AUTH) or self._opened == opened or failures > self.retries:
                    raise
                await asyncio.sleep(backoff.compute(failures))
            else:
                return
