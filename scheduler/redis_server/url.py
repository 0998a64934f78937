"""The URL of a Redis server: masked for messages, and the options that follow from it."""

from __future__ import annotations

import re
import socket
from typing import Any
from urllib.parse import parse_qs

# With these the kernel notices a vanished peer within about 20 s on every connection, whether it waits for an
# answer, for a wake token or for a message. Linux has all of them, other systems some.
_DEAD_PEER = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

_PASSWORD = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)


def mask(url: str) -> str:
    """The URL without passwords, even if it is not a valid URL."""
    url = _PASSWORD.sub(r"\1***", url)
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}:***@{host}" if at and colon else url


def socket_options(url: str) -> dict[str, Any]:
    """Options of redis-py to notice a peer that vanished; a Unix socket needs none."""
    if url.startswith("unix://"):
        return {"socket_connect_timeout": 5}
    options = {getattr(socket, name): value for name, value in _DEAD_PEER.items() if hasattr(socket, name)}
    return {"socket_connect_timeout": 5, "socket_keepalive": True, "socket_keepalive_options": options}


def tls_options(url: str) -> dict[str, Any]:
    """Options of redis-py to verify the host name; by default it accepts any certificate that a CA signed."""
    asked = parse_qs(url.partition("?")[2]).get("ssl_cert_reqs", [])
    if not url.startswith("rediss") or asked[-1:] == ["none"]:
        return {}
    return {"ssl_check_hostname": True}
