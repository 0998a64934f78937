"""Redis behind Sentinel: `redis+sentinel://[user:password@]host[:port][,host[:port]…]/service[/db]`."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from redis.asyncio import ConnectionPool
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool

from scheduler.redis_server.closing import ClosingPool

DEFAULT_PORT = 26379
SCHEMES = ("redis+sentinel://", "rediss+sentinel://")

_HOST = re.compile(r"^(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/?#@\s]+)(:(?P<port>\d{1,5}))?$")
_QUERY = ("sentinel_username", "sentinel_password", "ssl_ca_certs")


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """The parts of a URL."""

    sentinels: tuple[tuple[str, int], ...]
    """Host and port of each sentinel."""
    service: str
    """The service whose primary to use."""
    db: int = 0
    """The database."""
    username: str | None = None
    """The server's user, from before the `@`."""
    password: str | None = field(default=None, repr=False)
    """The server's password, from before the `@`."""
    tls: bool = False
    """Whether server and sentinels use TLS, as with `rediss+sentinel://`."""
    sentinel_username: str | None = None
    """The sentinels' user, from `?sentinel_username=…`."""
    sentinel_password: str | None = field(default=None, repr=False)
    """The sentinels' password, from `?sentinel_password=…`."""
    ssl_ca_certs: str | None = None
    """The file with the CA of server and sentinels, from `?ssl_ca_certs=…`."""

    @classmethod
    def parse(cls, url: str) -> SentinelUrl:
        """Parse a URL.

        Raises:
            ValueError: it does not have this form. The message repeats no credentials.
        """
        scheme, _, rest = url.partition("://")
        address, _, query = rest.partition("?")
        authority, _, path = address.partition("/")
        credentials, _, hosts = authority.rpartition("@")
        username, _, password = credentials.partition(":")
        service, _, db = path.partition("/")
        if not service:
            raise ValueError("names no service; it stands after the hosts: …:26379/mymaster")
        if db and not db.isdecimal():
            raise ValueError("the database after the service is no number")
        return cls(
            sentinels=tuple(_host(one) for one in hosts.split(",")),
            service=unquote(service),
            db=int(db or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=scheme.startswith("rediss"),
            **_options(query),
        )

    def pool(self, **connection: Any) -> ConnectionPool:
        """Make a pool of connections to the primary; `connection` are redis-py's options for each."""
        if self.tls and self.ssl_ca_certs:
            connection["ssl_ca_certs"] = self.ssl_ca_certs
        kept = {name: value for name, value in connection.items() if name.startswith(("socket_", "ssl_"))}
        own = {
            "username": self.sentinel_username,
            "password": self.sentinel_password,
            "ssl": self.tls,
            **kept,
        }
        sentinel = _Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types for it
            self.sentinels, sentinel_kwargs={name: value for name, value in own.items() if value}
        )
        return _Pool(  # type: ignore[no-untyped-call]  # redis-py has no types for it
            self.service,
            sentinel,
            db=self.db,
            username=self.username,
            password=self.password,
            ssl=self.tls,
            **connection,
        )


class _Sentinel(Sentinel):
    """Discovers the primary with a list of sentinels of its own.

    redis-py reorders the shared list while others iterate over it: two calls at once would lose a third
    sentinel, and leave its connection open.
    """

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        asking = copy.copy(self)
        asking.sentinels = list(self.sentinels)
        found: tuple[str, int] = await super(_Sentinel, asking).discover_master(service_name)
        self.sentinels = asking.sentinels
        return found


class _Pool(ClosingPool, SentinelConnectionPool):
    """Also closes the connections to the sentinels, which redis-py leaves open."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:  # the client is being closed
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


def is_sentinel(url: str) -> bool:
    """Whether a URL names sentinels."""
    return url.startswith(SCHEMES)


def _host(text: str) -> tuple[str, int]:
    match = _HOST.match(text)
    port = int((match and match["port"]) or DEFAULT_PORT)
    if match is None or not 0 < port < 65_536:
        raise ValueError("has a sentinel that is not of the form host or host:port")
    return match["host"].strip("[]"), port


def _options(query: str) -> dict[str, str]:
    given = parse_qs(query, keep_blank_values=True)
    for name in given:
        if name not in _QUERY:
            raise ValueError(f"knows {', '.join(_QUERY)} after the ?, and nothing else")
    return {name: values[-1] for name, values in given.items()}
