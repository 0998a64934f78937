"""Opens connections: to the first of a host's addresses that answers."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, TypeVar

import httpx

from workers.network import DEFAULT_PORTS

NEXT_ADDRESS_S = 0.25
"""How long one address may stay silent before the next is tried beside it (RFC 8305)."""

ProtocolT = TypeVar("ProtocolT", bound=asyncio.BaseProtocol)


async def dial(
    make_protocol: Callable[[], ProtocolT], url: httpx.URL, tls: ssl.SSLContext | None
) -> ProtocolT:
    """A connection to the server of a URL, over TLS if there is a context for it.

    Raises:
        OSError: none of its addresses can be reached, or TLS fails.
        UnicodeError: the host's name cannot be one.
    """
    loop = asyncio.get_running_loop()
    host = url.raw_host.decode("ascii")
    port = url.port or DEFAULT_PORTS[url.scheme]
    if tls is not None:
        tls.set_alpn_protocols(["http/1.1"])

    async def open_one(address: str) -> ProtocolT:
        name = None if tls is None else host
        return (await loop.create_connection(make_protocol, address, port, ssl=tls, server_hostname=name))[1]

    addresses = await _addresses(host, port)
    if len(addresses) == 1:
        return await open_one(addresses[0])
    return await _first(addresses, open_one)


async def _addresses(host: str, port: int) -> Sequence[str]:
    with suppress(ValueError):
        ip_address(host)
        return (host,)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(info[4][0]) for info in found))


async def _first(
    addresses: Sequence[str], open_one: Callable[[str], Coroutine[Any, Any, ProtocolT]]
) -> ProtocolT:
    """The connection that is there first; each address gets a head start before the one behind it."""
    untried = list(addresses)
    tried: list[asyncio.Task[ProtocolT]] = []
    waiting: set[asyncio.Task[ProtocolT]] = set()
    try:
        while True:
            if untried:
                tried.append(asyncio.create_task(open_one(untried.pop(0))))
                waiting.add(tried[-1])
            limit_s = NEXT_ADDRESS_S if untried else None
            done, waiting = await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    tried.remove(task)
                    return task.result()
            if not waiting and not untried:
                return tried[0].result()  # the first failure: that of the address that is meant to be used
    finally:
        for task in tried:
            task.cancel()
            task.add_done_callback(_close)


def _close(task: asyncio.Task[Any]) -> None:
    """Close a connection that came too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
