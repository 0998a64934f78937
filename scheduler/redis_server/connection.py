"""Connections to Redis, and redis-py's errors in the words of this package."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from redis import exceptions as redis_errors
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer

from scheduler.errors import (
    ConfigError,
    NewerData,
    RedisAuthError,
    RedisError,
    RedisOutOfMemory,
    RedisTooOld,
    RedisUnavailable,
)
from scheduler.redis_server.sentinel import SentinelUrl, is_sentinel

OLDEST = (7, 0)
FIRST_ANSWER_S = 2.0
AWAY = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.BusyLoadingError, OSError)
"""What redis-py raises while a server cannot be reached; the same call may succeed later."""

# What a server that is there says for a while: after a failover, with a full disk or memory, or alone.
_REFUSALS = (
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.OutOfMemoryError,
    redis_errors.BusyLoadingError,
)
# Those for which redis-py has no class, and all of them where EXEC says why it gives a transaction up; before
# them redis-py writes which command of a pipeline it was. UNBLOCKED: the server became a replica meanwhile.
_REFUSAL = re.compile(
    r"""(?:Command\ \#\ \d+\ \(.*\)\ of\ pipeline\ caused\ error:\ (?:\(?['"])?)?
    (?:(?:MISCONF|NOREPLICAS|BUSY|MASTERDOWN|UNBLOCKED)\ |
    Transaction\ discarded\ because\ of:\ -?
    (?:READONLY|OOM|LOADING|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|BUSY|MASTERDOWN)\ )""",
    re.DOTALL | re.VERBOSE,
)

_AUTH = (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.NoPermissionError)


# A peer that is gone without a word is noticed by the kernel, within about these seconds, on any connection:
# one that waits for an answer, for a wake token, or for a message. Linux has them all, others some.
_DEAD_PEER = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

# Of a socket that did not open, and of one that the other side closed.
_NOT_CONNECTED = ("Connect call failed", "refused", "Name or service", "nodename", "unreachable")
_HUNG_UP = ("closed by server", "Connection lost", "reset by peer", "Broken pipe")
_WRITING = "Error UNKNOWN while writing to socket. "

_PASSWORD = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)


def open_redis(url: str, *, retries: int = 3, timeout_s: float | None = None) -> Redis:
    """Make a client. No connection is opened before the first command.

    A command whose reply was lost is sent again up to `retries` times: use it with commands that bear it. All
    of that has `timeout_s`, if any.

    Raises:
        ConfigError: the URL cannot be used.
    """
    client = TimedRedis(connection_pool=connection_pool(url, retries=retries))
    client.auto_close_connection_pool = True
    client.timeout_s = timeout_s
    return client


class TimedRedis(Redis):
    """A client that gives every command, and every pipeline, `timeout_s` for all of its tries.

    A server that was stopped keeps its connections open and answers nothing. What waits on the server (BLPOP)
    has its own time beside. Late is `redis.exceptions.TimeoutError`, as if the server had gone.
    """

    timeout_s: float | None = None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command."""
        limit_s = self.timeout_s
        if limit_s is not None and args[0] == "BLPOP":
            limit_s += float(args[-1])
        try:
            async with asyncio.timeout(limit_s):
                return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        except TimeoutError:
            raise too_late(limit_s) from None

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Make a pipeline."""
        pipe = TimedPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        pipe.timeout_s = self.timeout_s
        return pipe


class TimedPipeline(Pipeline):
    """The pipeline of a `TimedRedis`."""

    timeout_s: float | None = None

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run what is in it."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await super().execute(raise_on_error)
        except TimeoutError:
            raise too_late(self.timeout_s) from None

    async def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command that does not wait for the others, after WATCH."""
        try:
            async with asyncio.timeout(self.timeout_s):
                return await super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]  # redis-py has no types for it
        except TimeoutError:
            raise too_late(self.timeout_s) from None

    async def reset(self) -> None:
        """Forget what is in it. A connection that cannot be told to watch no more is closed."""
        if self.connection is not None and not self.connection.is_connected:
            self.watching = False
        try:
            async with asyncio.timeout(self.timeout_s):
                await super().reset()  # type: ignore[no-untyped-call]  # redis-py has no types for it
        except (redis_errors.RedisError, OSError):
            self.watching = False
            if self.connection is not None:
                await self.connection.disconnect(nowait=True)
            await super().reset()  # type: ignore[no-untyped-call]  # redis-py has no types for it


def too_late(limit_s: float | None) -> redis_errors.TimeoutError:
    """The error for a server that has not answered in time."""
    return redis_errors.TimeoutError(f"no answer within {limit_s:g} s" if limit_s else "no answer")


def connection_pool(url: str, *, retries: int) -> ConnectionPool:
    """Make the connections of a client; none is opened yet.

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
    """Let hiredis put the commands together, as redis-py does without asyncio: a tenth of the time."""
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


class _Pool(ConnectionPool):
    """redis-py tries again to open a socket and to run a command, but not what is said between the two.

    A server that dies in that moment, or a proxy whose server is away, would be an error at once.
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
                # A socket that did not open has been tried again already.
                if isinstance(error, _AUTH) or self._opened == opened or failures > self.retries:
                    raise
                await asyncio.sleep(backoff.compute(failures))
            else:
                return


def passes(error: BaseException) -> bool:
    """Whether it is the server's trouble and not the command's: the same command may go through later."""
    return isinstance(error, AWAY) or refuses(error)


def refuses(error: BaseException | None) -> bool:
    """Whether a server that is there takes no commands, or no writes, for a while."""
    return isinstance(error, _REFUSALS) or _REFUSAL.match(str(error)) is not None


async def leave_demoted(redis: Redis, error: BaseException) -> None:
    """Close idle connections to a server that has become a replica: new ones may find the primary."""
    if isinstance(error, redis_errors.ReadOnlyError | redis_errors.MasterDownError):
        await redis.connection_pool.disconnect(inuse_connections=False)


def socket_options(url: str) -> dict[str, Any]:
    """What redis-py needs to notice a peer that is gone; a Unix socket has no such peer."""
    if url.startswith("unix://"):
        return {"socket_connect_timeout": 5}
    options = {getattr(socket, name): value for name, value in _DEAD_PEER.items() if hasattr(socket, name)}
    return {"socket_connect_timeout": 5, "socket_keepalive": True, "socket_keepalive_options": options}


def tls_options(url: str) -> dict[str, Any]:
    """What makes TLS ask for a certificate of that very host; redis-py takes any that its CAs have signed."""
    asked = parse_qs(url.partition("?")[2]).get("ssl_cert_reqs", [])
    if not url.startswith("rediss") or asked[-1:] == ["none"]:
        return {}
    return {"ssl_check_hostname": True}


def unusable(url: str) -> ConfigError:
    """The error for a URL that redis-py does not take. Its own words would repeat parts of a password."""
    return ConfigError(
        f"redis_url: {mask(url)} is not a valid URL: give redis://[user:password@]host[:port][/db], "
        "with special characters in user and password percent-encoded"
    )


async def check_server(redis: Redis, url: str) -> tuple[int, ...]:
    """Make sure that a usable server answers. Returns its Redis version.

    Raises:
        RedisUnavailable, RedisAuthError, RedisTooOld: with what to do about it.
    """
    with translated(url):
        await redis.ping()
        version = await server_version(redis)
    if version and version < OLDEST:
        raise too_old(".".join(map(str, version)), url)
    return version


async def wait_for_server(url: str, limit_s: float, *, tell: Callable[[str], None]) -> None:
    """Return once a usable server answers. One that is there and takes no commands for now is waited for.

    `tell` hears of that once.

    Raises:
        RedisUnavailable: none did within `limit_s` seconds.
        RedisAuthError, RedisTooOld, ConfigError: at once.
    """
    give_up_at, has_told = time.monotonic() + limit_s, False
    redis = open_redis(url, retries=0, timeout_s=FIRST_ANSWER_S)
    try:
        while True:
            try:
                await check_server(redis, url)
                return
            except RedisError as error:
                if refuses(error.__cause__):
                    if not has_told:
                        tell(str(error))
                    give_up_at, has_told = time.monotonic() + limit_s, True
                elif not isinstance(error, RedisUnavailable) or time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(0.2)
    finally:
        await redis.aclose()


def too_old(version: str, url: str) -> RedisTooOld:
    """The error for a server that lacks what is used."""
    return RedisTooOld(f"Redis {version} at {mask(url)} is too old: use Redis 7.0 or later, or Valkey")


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
    if isinstance(error, _AUTH) or text.startswith(("WRONGPASS", "NOAUTH", "NOPERM", "ACL failure")):
        return RedisAuthError(
            f"Redis at {where} refused the credentials or a command: {text}; check user, password and ACL"
        )
    if isinstance(error, redis_errors.OutOfMemoryError) or "OOM command not allowed" in text:
        return RedisOutOfMemory(
            f"Redis at {where} has reached its maxmemory; raise it, or wait until work has drained"
        )
    if "NEWERFORMAT" in text:
        return newer_data(url)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return RedisUnavailable(
            f"Redis at {where} has a certificate that is not accepted ({_cause(error)}); name its CA with "
            "?ssl_ca_certs=/path/to/ca.pem or SSL_CERT_FILE, and the host as the certificate does"
        )
    if refuses(error):
        return RedisUnavailable(
            f"Redis at {where} takes no commands, or no writes, for now: {text}; wait until it does"
        )
    if isinstance(error, AWAY):
        return RedisUnavailable(f"no Redis answers at {where} ({_cause(error)}); {_question(text, url)}")
    if isinstance(error, redis_errors.InvalidResponse):
        return RedisUnavailable(
            f"what answers at {where} is no Redis ({_cause(error)}); is the URL right? Redis with TLS needs rediss://"
        )
    if "unknown command" in text.lower():
        return RedisTooOld(f"Redis at {where} lacks a command: {text}; use Redis 7.0 or later, or Valkey")
    return RedisError(f"Redis at {where}: {text}")


def newer_data(url: str) -> NewerData:
    """The error for a queue that a newer version of this package has written."""
    return NewerData(
        f"a newer version of prompt-scheduler has written the queue on Redis at {mask(url)}, in a format "
        "that this one does not know; upgrade it here too. Nothing was changed"
    )


def _cause(error: Exception) -> str:
    # redis-py wraps the operating system's words; an empty message still has a type
    return str(error).removeprefix(_WRITING).rstrip(".") or type(error).__name__


def _question(text: str, url: str) -> str:
    """What to look at, where nothing answers: TLS on one side alone is a connection that comes to nothing."""
    if url.startswith("rediss") and not any(sign in text for sign in _NOT_CONNECTED):
        return "is it running, and does it speak TLS? If it does not, give redis://"
    if url.startswith("redis:") and any(sign in text for sign in _HUNG_UP):
        return "is it running, and is the URL right? If it speaks TLS, give rediss://"
    return "is it running, and is the URL right?"


def mask(url: str) -> str:
    """The URL without its password, wherever it stands and however wrong the URL is."""
    url = _PASSWORD.sub(r"\1***", url)
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}:***@{host}" if at and colon else url
