"""How a request goes out: the HTTP client of one connection, and sending again on a fresh connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import httpx

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
        transport = _Transport(
            query=query,
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_S),
            verify=tls,
            proxy=proxy and proxy.proxy,
            trust_env=False,
        )
        timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT_S)
        return httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, transport=transport, trust_env=False
        )

    return make


async def send(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request; send it again if the server had closed the idle connection it went to.

    On a new connection a request is sent once.
    """
    while True:
        route = _Route()
        request.extensions["trace"] = route
        try:
            return await client.send(request, stream=True)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            if not route.used_before:
                raise


class _Transport(httpx.AsyncHTTPTransport):
    """Adds the endpoint's query on the way out: httpx logs URLs, and the query may hold a secret."""

    def __init__(self, *, query: Mapping[str, str], **options: Any) -> None:
        super().__init__(**options)
        self._query = query

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._query:
            url = request.url.copy_merge_params(self._query)
            request = httpx.Request(
                request.method,
                url,
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )
        return await super().handle_async_request(request)


class _Route:
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
