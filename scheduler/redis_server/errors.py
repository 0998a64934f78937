"""Errors of redis-py: which ones are temporary, and what each means to a user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from scheduler.errors import (
    ConfigError,
    NewerData,
    RedisAuthError,
    RedisError,
    RedisOutOfMemory,
    RedisTooOld,
    RedisUnavailable,
)
from scheduler.redis_server.url import mask

AWAY = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.BusyLoadingError, OSError)
"""Errors of redis-py while a server cannot be reached; the same call may succeed later."""

# Temporary refusals of a running server: after a failover, with a full disk or memory, without replicas.
_REFUSALS = (
    redis_errors.ReadOnlyError,
    redis_errors.MasterDownError,
    redis_errors.ClusterDownError,
    redis_errors.TryAgainError,
    redis_errors.OutOfMemoryError,
    redis_errors.BusyLoadingError,
)

# The refusals without a class in redis-py, and all of them as EXEC reports them for a discarded transaction.
# redis-py puts the command of a pipeline before them. UNBLOCKED: the server has become a replica.
_REFUSAL = re.compile(
    r"""(?:Command\ \#\ \d+\ \(.*\)\ of\ pipeline\ caused\ error:\ (?:\(?['"])?)?
    (?:(?:MISCONF|NOREPLICAS|BUSY|MASTERDOWN|UNBLOCKED)\ |
    Transaction\ discarded\ because\ of:\ -?
    (?:READONLY|OOM|LOADING|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|BUSY|MASTERDOWN)\ )""",
    re.DOTALL | re.VERBOSE,
)

AUTH = (redis_errors.AuthenticationError, redis_errors.AuthorizationError, redis_errors.NoPermissionError)

# Signs of a socket that did not open, and of one that the other side closed.
_NOT_CONNECTED = ("Connect call failed", "refused", "Name or service", "nodename", "unreachable")

_HUNG_UP = ("closed by server", "Connection lost", "reset by peer", "Broken pipe")

_WRITING = "Error UNKNOWN while writing to socket. "


def passes(error: BaseException) -> bool:
    """Whether the error is temporary: the same command may succeed later."""
    return isinstance(error, AWAY) or refuses(error)


def refuses(error: BaseException | None) -> bool:
    """Whether a running server refuses commands, or writes, for now."""
    return isinstance(error, _REFUSALS) or _REFUSAL.match(str(error)) is not None


def too_late(limit_s: float | None) -> redis_errors.TimeoutError:
    """Make the error for a server that did not answer in time."""
    return redis_errors.TimeoutError(f"no answer within {limit_s:g} s" if limit_s else "no answer")


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise redis-py's errors as errors of this package."""
    try:
        yield
    except (redis_errors.RedisError, OSError) as error:
        raise translate(error, url) from error


def translate(error: Exception, url: str) -> RedisError:
    """Say what an error of redis-py means to a user, and what to do."""
    where = mask(url)
    text = str(error)
    if isinstance(error, AUTH) or text.startswith(("WRONGPASS", "NOAUTH", "NOPERM", "ACL failure")):
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


def unusable(url: str) -> ConfigError:
    """Make the error for a URL that redis-py rejects. Its own message could repeat parts of a password."""
    return ConfigError(
        f"redis_url: {mask(url)} is not a valid URL: give redis://[user:password@]host[:port][/db], "
        "with special characters in user and password percent-encoded"
    )


def too_old(version: str, url: str) -> RedisTooOld:
    """Make the error for a server that lacks a needed feature."""
    return RedisTooOld(f"Redis {version} at {mask(url)} is too old: use Redis 7.0 or later, or Valkey")


def newer_data(url: str) -> NewerData:
    """Make the error for a queue that a newer version of this package wrote."""
    return NewerData(
        f"a newer version of prompt-scheduler has written the queue on Redis at {mask(url)}, in a format "
        "that this one does not know; upgrade it here too. Nothing was changed"
    )


def _cause(error: Exception) -> str:
    # redis-py wraps the operating system's message; if that is empty, the type is left.
    return str(error).removeprefix(_WRITING).rstrip(".") or type(error).__name__


def _question(text: str, url: str) -> str:
    """What to check if nothing answers. With TLS on one side only, a connection opens and then fails."""
    if url.startswith("rediss") and not any(sign in text for sign in _NOT_CONNECTED):
        return "is it running, and does it speak TLS? If it does not, give redis://"
    if url.startswith("redis:") and any(sign in text for sign in _HUNG_UP):
        return "is it running, and is the URL right? If it speaks TLS, give rediss://"
    return "is it running, and is the URL right?"
