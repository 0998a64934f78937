from __future__ import annotations

import asyncio
import socket

import pytest
from redis import exceptions as redis_errors

from scheduler import ConfigError, RedisAuthError, RedisError, RedisOutOfMemory, RedisTooOld, RedisUnavailable
from scheduler.redis_server.connection import open_redis
from scheduler.redis_server.errors import passes, translate, translated
from scheduler.redis_server.readiness import server_version
from scheduler.redis_server.url import mask, socket_options, tls_options

URL = "redis://user:secret@host:6379/0"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://localhost:6379", "redis://localhost:6379"),
        ("redis://user@host", "redis://user@host"),
        ("redis://user:secret@host:1/2", "redis://user:***@host:1/2"),
        ("redis://:secret@host", "redis://:***@host"),
        ("redis://:sec@ret@host", "redis://:***@host"),
        ("redis://:sec/ret@host", "redis://:***@host"),
        ("redis://[bad:secret@host", "redis://[bad:***@host"),
        ("rediss://host?password=secret&db=1", "rediss://host?password=***&db=1"),
        ("rediss://host?ssl_password=secret&db=1", "rediss://host?ssl_password=***&db=1"),
        ("unix:///tmp/s?db=1&password=secret", "unix:///tmp/s?db=1&password=***"),
    ],
)
def test_a_password_is_masked_wherever_it_stands(url: str, masked: str) -> None:
    assert mask(url) == masked


@pytest.mark.parametrize("url", ["redis://host:port", "redis://:sec/ret@host", "redis://[::1", "http://host"])
def test_a_url_that_cannot_be_used_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="redis_url") as refused:
        open_redis(url)
    assert "sec" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis_errors.ConnectionError("Error 111 connecting to host:6379."), RedisUnavailable),
        (redis_errors.TimeoutError("Timeout connecting to server"), RedisUnavailable),
        (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), RedisUnavailable),
        (OSError(113, "No route to host"), RedisUnavailable),
        (redis_errors.AuthenticationError("invalid username-password pair"), RedisAuthError),
        (redis_errors.NoPermissionError("this user has no permissions"), RedisAuthError),
        (redis_errors.ResponseError("WRONGPASS invalid"), RedisAuthError),
        (redis_errors.ResponseError("ACL failure in script: No permissions"), RedisAuthError),
        (redis_errors.OutOfMemoryError("command not allowed"), RedisOutOfMemory),
        (redis_errors.ResponseError("OOM command not allowed when used memory"), RedisOutOfMemory),
        (redis_errors.ResponseError("unknown command 'COPY'"), RedisTooOld),
        (redis_errors.ResponseError("something else"), RedisError),
    ],
)
def test_errors_of_redis_get_this_packages_words(error: Exception, expected: type[Exception]) -> None:
    found = translate(error, URL)
    assert type(found) is expected
    assert "redis://user:***@host:6379/0" in str(found)
    assert "secret" not in str(found)


def test_the_original_error_is_kept_as_the_cause() -> None:
    original = redis_errors.ConnectionError("gone")
    with pytest.raises(RedisUnavailable) as raised, translated(URL):
        raise original
    assert raised.value.__cause__ is original


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), translated(URL):
        raise KeyError("x")


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has this option")
def test_a_peer_that_is_gone_without_a_word_is_noticed_in_seconds() -> None:
    options = socket_options(URL)
    assert options["socket_keepalive"] is True
    assert options["socket_keepalive_options"][socket.TCP_USER_TIMEOUT] <= 30_000
    with socket.socket() as probe:
        for option, value in options["socket_keepalive_options"].items():
            probe.setsockopt(socket.IPPROTO_TCP, option, value)


def test_a_unix_socket_has_no_tcp_options() -> None:
    assert set(socket_options("unix:///tmp/s")) == {"socket_connect_timeout"}


@pytest.mark.parametrize(
    ("info", "expected"), [({"redis_version": "7.2.4"}, (7, 2, 4)), ({}, ()), ({"redis_version": "8"}, (8,))]
)
async def test_the_servers_version_is_read(info: dict[str, str], expected: tuple[int, ...]) -> None:
    class Server:
        async def info(self, section: str) -> dict[str, str]:
            return info

    assert await server_version(Server()) == expected  # type: ignore[arg-type]  # stands in for the real one


async def test_a_server_that_hides_its_version_will_do() -> None:
    class Server:
        async def info(self, section: str) -> dict[str, str]:
            raise redis_errors.NoPermissionError("no INFO for you")

    assert await server_version(Server()) == ()  # type: ignore[arg-type]  # stands in for the real one


@pytest.mark.parametrize(
    "words",
    [
        "MISCONF Redis is configured to save RDB snapshots",
        "NOREPLICAS Not enough good replicas to write",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "Command # 2 (PSETEX a 1\n x) of pipeline caused error: NOREPLICAS Not enough good replicas",
        "Command # 1 (DEL a) of pipeline caused error: ('MISCONF Redis is configured to save',)",
        "Transaction discarded because of: READONLY You can't write against a read only replica.",
    ],
)
def test_trouble_of_the_server_passes(words: str) -> None:
    assert passes(redis_errors.ResponseError(words))
    assert type(translate(redis_errors.ResponseError(words), URL)) is RedisUnavailable


@pytest.mark.parametrize(
    "words",
    [
        "ERR wrong number of arguments",
        "BUSYGROUP Consumer Group name already exists",
        "Command # 1 (SET BUSY 1) of pipeline caused error: WRONGTYPE Operation against a key",
        "Transaction discarded because of previous errors.",
    ],
)
def test_a_wrong_command_does_not_pass(words: str) -> None:
    assert not passes(redis_errors.ResponseError(words))


@pytest.mark.parametrize(
    ("url", "verified"),
    [
        ("rediss://host", True),
        ("rediss+sentinel://a/primary", True),
        ("rediss://:ssl_cert_reqs=none@host", True),
        ("rediss://host?ssl_cert_reqs=none", False),
        ("redis://host", False),
    ],
)
def test_tls_verifies_the_host_unless_told_otherwise(url: str, verified: bool) -> None:
    assert tls_options(url) == ({"ssl_check_hostname": True} if verified else {})


async def test_a_command_that_is_under_way_at_the_close_leaves_no_connection_behind(valkey_url: str) -> None:
    client, other = open_redis(valkey_url), open_redis(valkey_url)
    await other.ping()
    waiting = asyncio.ensure_future(client.execute_command("BLPOP", "list", 60))
    while len(await other.client_list()) < 2:
        await asyncio.sleep(0.01)
    await client.aclose()
    await other.execute_command("RPUSH", "list", "x")
    assert await waiting == (b"list", b"x"), "it has connected again"
    while len(await other.client_list()) > 1:
        await asyncio.sleep(0.01)
    await client.ping()
    await client.aclose()
    await other.aclose()
