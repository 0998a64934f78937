"""Connections to Redis, and redis-py's errors in the words of this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from scheduler.errors import (
    ConfigError,
    RedisAuthError,
    RedisError,
    RedisOutOfMemory,
    RedisTooOld,
    RedisUnavailable,
)

OLDEST = (7, 0)
AWAY = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.BusyLoadingError, OSError)
"""What redis-py raises while a server cannot be reached; the same call may succeed later."""

_AUTH = (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.NoPermissionError)


def open_redis(url: str, *, retries: int = 3, max_connections: int | None = None) -> Redis:
    """Make a client. No connection is opened before the first command.

    A command whose reply was lost is sent again up to `retries` times: use it with commands that bear it.

    Raises:
        ConfigError: the URL cannot be used.
    """
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries)
    try:
        client: Redis = Redis.from_url(
            url,
            retry=retry,
            retry_on_error=list(AWAY),
            health_check_interval=0,
            socket_connect_timeout=5,
            socket_keepalive=True,
            max_connections=max_connections,
        )
        return client
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"redis_url: {mask(url)} cannot be used: {error}") from None


async def check_server(redis: Redis, url: str) -> tuple[int, ...]:
    """Make sure that a usable server answers. Returns its Redis version.

    Raises:
        RedisUnavailable, RedisAuthError, RedisTooOld: with what to do about it.
    """
    with translated(url):
        await redis.ping()
        version = await server_version(redis)
    if version and version < OLDEST:
        found = ".".join(map(str, version))
        raise RedisTooOld(f"Redis {found} at {mask(url)} is too old: use Redis 7.0 or later, or Valkey")
    return version


async def server_version(redis: Redis) -> tuple[int, ...]:
    """The Redis version that the server says it is compatible with; empty where it does not say."""
    try:
        info = await redis.info("server")
    except redis_errors.ResponseError:
        return ()
    return tuple(int(part) for part in str(info.get("redis_version", "")).split(".") if part.isdigit())


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise redis-py's errors as those of this package."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        raise translate(error, url) from error


def translate(error: Exception, url: str) -> RedisError:
    """What an error of redis-py means to a user, and what to do."""
    where = mask(url)
    text = str(error)
    if isinstance(error, _AUTH) or text.startswith(("WRONGPASS", "NOAUTH", "NOPERM")):
        return RedisAuthError(
            f"Redis at {where} refused the credentials or a command: {text}; check user, password and ACL"
        )
    if isinstance(error, redis_errors.OutOfMemoryError) or "OOM command not allowed" in text:
        return RedisOutOfMemory(
            f"Redis at {where} has reached its maxmemory; raise it, or wait until work has drained"
        )
    if isinstance(error, AWAY):
        return RedisUnavailable(
            f"no Redis answers at {where} ({_cause(error)}); is it running, and is the URL right?"
        )
    if "unknown command" in text.lower():
        return RedisTooOld(f"Redis at {where} lacks a command: {text}; use Redis 7.0 or later, or Valkey")
    return RedisError(f"Redis at {where}: {text}")


def _cause(error: Exception) -> str:
    # redis-py wraps the operating system's words; an empty message still has a type
    return str(error).rstrip(".") or type(error).__name__


def mask(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username or ''}:***@{host}").geturl()
