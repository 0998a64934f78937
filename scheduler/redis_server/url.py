"""The URL of a Redis server: what it says without its password, and the options that follow from it."""

from __future__ import annotations

import re
import socket
from typing import Any
from urllib.parse import parse_qs

# A peer that is gone without a word is noticed by the kernel, within about these seconds, on any connection:
# one that waits for an answer, for a wake token, or for a message. Linux has them all, others some.
_DEAD_PEER = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}

_PASSWORD = re.compile(r"([?&][^=&]*password=)[^&]*", re.IGNORECASE)


def mask(url: str) -> str:
    """The URL without its password, wherever it stands and however wrong the URL is."""
    url = _PASSWORD.sub(r"\1***", url)
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{separator}{user}:***@{host}" if at and colon else url


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
