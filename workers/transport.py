"""How requests go out: HTTP clients of one connection each."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from workers.http1 import Http1Transport
from workers.network import ProxyRoute, tls_context

CONNECT_TIMEOUT_S = 5.0
KEEPALIVE_S = 4.0
"""Servers close idle connections (llama-server after 5 s); they are closed here before that."""


def client_factory(
    url: str,
    *,
    headers: httpx.Headers,
    query: Mapping[str, str],
    environ: Mapping[str, str],
    proxy: ProxyRoute | None,
) -> Callable[[], httpx.AsyncClient]:
    """A function that makes HTTP clients of one connection each, all for the server at `url`.

    Raises:
        WorkerConfigError: the certificates that `environ` names cannot be read.
    """
    tls = tls_context(httpx.URL(url), environ)
    query = dict(query)

    def make() -> httpx.AsyncClient:
        transport: httpx.AsyncBaseTransport
        if proxy is None:
            transport = Http1Transport(tls=tls, keepalive_s=KEEPALIVE_S)
        else:
            transport = _ProxyTransport(proxy.proxy, tls)
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        return httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=timeout,
            transport=_WithQuery(transport, query) if query else transport,
            trust_env=False,
        )

    return make


class _ProxyTransport(httpx.AsyncHTTPTransport):
    """One connection through a proxy.

    A request is sent again if the server had closed the idle connection it went to. On a new connection it is
    sent once.
    """

    def __init__(self, proxy: httpx.Proxy, tls: ssl.SSLContext) -> None:
        limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S)
        super().__init__(proxy=proxy, verify=tls, limits=limits, trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        while True:
            request.extensions["trace"] = way = _Way()
            try:
                return await super().handle_async_request(request)
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                if not way.used_before:
                    raise


class _WithQuery(httpx.AsyncBaseTransport):
    """Adds the endpoint's query on the way out: httpx logs URLs, and the query may hold a secret."""

    def __init__(self, transport: httpx.AsyncBaseTransport, query: Mapping[str, str]) -> None:
        self._transport = transport
        self._query = query

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url.copy_merge_params(self._query)
        return await self._transport.handle_async_request(
            httpx.Request(
                request.method,
                url,
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


class _Way:
    """Notes on what connection a request went. httpcore calls it for each step of its work."""

    def __init__(self) -> None:
        self._connected = False
        self._sent = False

    @property
    def used_before(self) -> bool:
        """Whether the request went to a connection that was there before."""
        return self._sent and not self._connected

    async def __call__(self, step: str, _: Any) -> None:
        if step.endswith("connect_tcp.started"):
            self._connected = True
        elif step.endswith("send_request_headers.started"):
            self._sent = True
