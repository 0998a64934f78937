"""How to reach a server: its URL, the proxy to use, and the certificates to trust.

httpx reads the same variables, but again for each client; it fails on some of them in the middle of a
request, and knows neither networks nor brackets in `NO_PROXY`. Here they are read once, when an endpoint is
made.

Source: https://curl.se/libcurl/c/CURLOPT_NOPROXY.html, https://pkg.go.dev/golang.org/x/net/http/httpproxy
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TypeAlias

import httpx

from workers.errors import WorkerConfigError

_Address: TypeAlias = IPv4Address | IPv6Address

MAX_PORT = 65_535

DEFAULT_PORTS = {"http": 80, "https": 443}
# Desktops write socks:// for SOCKS 5.
_SCHEMES = {"http": "http", "https": "https", "socks": "socks5", "socks5": "socks5", "socks5h": "socks5h"}


@dataclass(frozen=True, slots=True)
class ProxyRoute:
    """A proxy to use."""

    variable: str
    """The environment variable that names it."""
    proxy: httpx.Proxy = field(repr=False)
    """Its URL, which may hold a password."""


def check_base_url(base_url: str) -> str:
    """The URL, checked, and without a slash at its end.

    Raises:
        WorkerConfigError: it cannot be used.
    """
    if not base_url:
        raise WorkerConfigError("base_url: is missing; give the server's URL, such as http://127.0.0.1:8080")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise WorkerConfigError(f"base_url: is no URL: {error}") from None
    if url.userinfo:
        raise WorkerConfigError(
            "base_url: holds credentials; put the key into a variable and name it in api_key_env"
        )
    if url.scheme not in {"http", "https"} or not url.host:
        raise WorkerConfigError(f"base_url: {base_url!r} must begin with http:// or https:// and a host")
    if url.query or url.fragment:
        raise WorkerConfigError(
            f"base_url: {base_url!r} must have no query and no fragment; query = {{ … }} adds one"
        )
    if url.port is not None and not 0 < url.port <= MAX_PORT:
        raise WorkerConfigError(f"base_url: {base_url!r} has no port from 1 to {MAX_PORT}")
    return str(url).rstrip("/")


def proxy_of(url: httpx.URL, environ: Mapping[str, str]) -> ProxyRoute | None:
    """The proxy for a URL. None: reach it directly, as everything on this machine.

    Raises:
        WorkerConfigError: the variable for this URL does not name a usable proxy.
    """
    if is_loopback(url.host) or _is_exempt(url, _variable(environ, "no_proxy")[1]):
        return None
    for name in (f"{url.scheme}_proxy", "all_proxy"):
        variable, value = _variable(environ, name)
        if value:
            return ProxyRoute(variable, _proxy(variable, value, environ))
    return None


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def tls_context(url: httpx.URL, environ: Mapping[str, str]) -> ssl.SSLContext:
    """The TLS context for a URL: with the authorities of `SSL_CERT_FILE` and `SSL_CERT_DIR`, or the usual.

    Raises:
        WorkerConfigError: the URL is https, and a variable names something unreadable.
    """
    # Loading the system's certificates takes some 20 ms for each endpoint. A plain URL needs none, and an
    # empty context trusts nobody.
    if url.scheme != "https":
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file, folders = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if not file and not folders:
        return httpx.create_ssl_context(trust_env=False)
    if folders and not any(Path(folder).is_dir() for folder in folders.split(os.pathsep)):
        raise WorkerConfigError(
            f"SSL_CERT_DIR: {folders} is no folder; give one of hashed certificates, or unset it"
        )
    try:
        return ssl.create_default_context(cafile=file or None, capath=folders or None)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise WorkerConfigError(
            f"SSL_CERT_FILE: {file} cannot be used ({reason}); give a file of PEM certificates, or unset it"
        ) from None


def _variable(environ: Mapping[str, str], name: str) -> tuple[str, str]:
    """A variable's name as it is spelled, and its value. Lower case wins."""
    for spelled in (name, name.upper()):
        if spelled in environ:
            return spelled, environ[spelled].strip()
    return name.upper(), ""


def _proxy(variable: str, value: str, environ: Mapping[str, str]) -> httpx.Proxy:
    """The proxy; errors leave the value out, because it may hold a password."""
    scheme, parted, rest = value.partition("://")
    if not parted:
        scheme, rest = "http", value
    known = _SCHEMES.get(scheme.lower())
    if known is None:
        raise WorkerConfigError(
            f"{variable}: {scheme[:20]}:// is no kind of proxy that can be used; "
            "give http://, https:// or socks5://, or unset it"
        )
    try:
        url = httpx.URL(f"{known}://{rest}")
    except httpx.InvalidURL:
        raise _no_proxy_url(variable) from None
    if not url.host or not 0 < (url.port or 1) <= MAX_PORT:
        raise _no_proxy_url(variable)
    if known.startswith("socks") and find_spec("socksio") is None:
        raise WorkerConfigError(
            f"{variable}: a SOCKS proxy needs one more package: pip install 'httpx[socks]'; "
            "or name the server in NO_PROXY to reach it directly"
        )
    return httpx.Proxy(url, ssl_context=tls_context(url, environ) if known == "https" else None)


def _no_proxy_url(variable: str) -> WorkerConfigError:
    return WorkerConfigError(
        f"{variable}: is no URL of a proxy; give one such as http://proxy.example:3128, or unset it"
    )


def _is_exempt(url: httpx.URL, no_proxy: str) -> bool:
    host = url.host.rstrip(".").lower()
    port = url.port or DEFAULT_PORTS.get(url.scheme)
    address = _address(host)
    return any(
        _covers(entry, url.scheme, host, port, address)
        for entry in re.split(r"[,;\s]+", no_proxy.lower())
        if entry
    )


def _covers(entry: str, scheme: str, host: str, port: int | None, address: _Address | None) -> bool:
    """Whether an entry of NO_PROXY covers a host: by name, domain, pattern, address or network.

    A scheme before it and a port after it must be the URL's. Other entries are ignored.
    """
    wanted, parted, rest = entry.partition("://")
    if parted:
        if wanted not in {scheme, "all"}:
            return False
        entry = rest.rstrip("/")
    if address is not None and (network := _in_network(entry, address)) is not None:
        return network
    name, own_port = _split_port(entry)
    if own_port and own_port != str(port):
        return False
    if address is not None and (named := _address(name)) is not None:
        return named == address
    name = name.rstrip(".")
    if "*" in name:
        return fnmatchcase(host, name)
    name = name.lstrip(".")
    return bool(name) and (host == name or (address is None and host.endswith(f".{name}")))


def _in_network(entry: str, address: _Address) -> bool | None:
    """Whether an address is in the network of an entry; None if the entry is not a network."""
    if "/" not in entry:
        return None
    try:
        return address in ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return None


def _split_port(entry: str) -> tuple[str, str]:
    """An entry's host and port: `host:80`, `[::1]:80`, `::1`."""
    if entry.startswith("["):
        name, _, behind = entry[1:].partition("]")
        return name, behind.removeprefix(":")
    if entry.count(":") == 1:
        name, _, port = entry.partition(":")
        return name, port
    return entry, ""


def _address(host: str) -> _Address | None:
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
