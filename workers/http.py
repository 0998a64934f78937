"""One endpoint over HTTP: connections, time limits, size bounds, and errors translated in one place.

Time limits are deadlines on the event loop's clock. They surround single reads, never a `yield`: a time-out
must cancel the worker's read and not the code that reads its outputs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import orjson

from workers.base import EndpointConfig
from workers.connections import Connections
from workers.encodings import decoded, unreadable_encoding
from workers.errors import (
    RequestRejected,
    WorkerError,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)
from workers.event_stream import MAX_BODY_BYTES, EventStream
from workers.headers import own_headers, secrets_of
from workers.network import check_base_url, proxy_of
from workers.refusals import Refusal, Translator, error_class, json_of, read_refusal, refusal_in_answer
from workers.time_limits import TimeLimit, TimeLimits, now
from workers.transport import CONNECT_TIMEOUT_S, KEEPALIVE_S, client_factory

PROBE_TIMEOUT_S = 5.0
MAX_ERROR_BYTES = 64 * 1024

_NOTHING = httpx.ByteStream(b"")
# The body of an error response comes with its head, or is not worth waiting for.
_REFUSAL_S = 5.0


class HttpEndpoint:
    """One base URL that speaks JSON.

    `engine` names the kind of server in messages. `translate` maps a refusal to its error class.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        engine: str,
        base_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        translate: Translator = error_class,
    ) -> None:
        url = check_base_url(config.base_url if base_url is None else base_url)
        self._engine = engine
        self._name = f"{engine} at {url}"
        self._secrets = secrets_of(config)
        self._limits = TimeLimits(config)
        self._translate = translate
        self.url = url
        self._proxy = proxy_of(httpx.URL(url), config.environ)
        make_client = client_factory(
            url,
            headers=_headers(config, headers),
            query=config.query,
            environ=config.environ,
            proxy=self._proxy,
        )
        self._connections = Connections(make_client, idle_s=KEEPALIVE_S, clock=time.monotonic)

    async def get(self, path: str) -> Any:
        """GET JSON, such as a server's state, within `PROBE_TIMEOUT_S`.

        Raises:
            WorkerError: the request failed.
        """
        return self._json(await self.get_bytes(path))

    async def get_bytes(self, path: str) -> bytes:
        """GET other content, such as a server's metrics, within `PROBE_TIMEOUT_S`.

        Raises:
            WorkerError: the request failed.
        """
        limit = TimeLimit(now() + PROBE_TIMEOUT_S, f"no answer within {PROBE_TIMEOUT_S:g} s")
        async with self._answer("GET", path, None, limit) as response:
            return await self._body(response, limit, MAX_BODY_BYTES)

    async def post(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """POST JSON and return the JSON response, within `timeout_s`.

        `headers` are added to this request.

        Raises:
            WorkerError: the request failed.
        """
        limit = self._limits.whole(now())
        async with self._answer("POST", path, _encoded(body), limit, headers) as response:
            answer = self._json(await self._body(response, limit, MAX_BODY_BYTES))
        if (refusal := refusal_in_answer(answer)) is not None:
            raise self.error(refusal)
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[EventStream, None]:
        """POST JSON and read the response as an event stream. Leaving early closes the connection.

        `headers` are added to this request.

        Raises:
            WorkerError: the server did not answer.
        """
        began_at = now()
        limit = self._limits.first(began_at)
        async with self._answer("POST", path, _encoded(body), limit, headers) as response:
            stream = EventStream(self, response, limit, self._limits, began_at)
            try:
                yield stream
            finally:
                stream.close()

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._connections.aclose()

    def error(self, refusal: Refusal) -> WorkerError:
        """The error for a refusal; its message quotes the server."""
        words, kind = refusal.words, refusal.kind
        words = f"{words} ({kind})" if words and kind and kind not in words else words or kind
        said = f": {self._without_secrets(words)}" if words else ""
        error = self._translate(refusal)
        hint = "; check api_key_env" if refusal.status in {401, 403} else ""
        answered = f"{self._name} answered {refusal.status}"
        return error(
            f"{answered}{said}{hint}",
            retry_after_s=refusal.retry_after_s,
            log_text=f"{answered}{hint}",
            engine_error=replace(refusal.said, status=refusal.status),
        )

    def protocol_error(self, what: str) -> WorkerProtocolError:
        """The error for an answer that breaks the protocol."""
        message = f"{self._name} {what}"
        return WorkerProtocolError(message, log_text=message)

    def malformed(self) -> WorkerProtocolError:
        """The error for an answer without the expected fields."""
        return self.protocol_error(
            f"sent an answer that is not what {self._engine} sends; is base_url right?"
        )

    def cut_off(self, missing: int, total: int) -> WorkerProtocolError:
        """The error for a stream that ended before the end of `missing` of its `total` prompts."""
        return self.protocol_error(f"ended its answer before the end of {missing} of {total} prompts")

    def timed_out(self, limit: TimeLimit) -> WorkerTimeout:
        """The error for a time limit that has passed."""
        message = f"{self._name}: {limit.message}"
        return WorkerTimeout(message, log_text=message)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        content: bytes | None,
        limit: TimeLimit,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[httpx.Response, None]:
        """The response to a request, with its head read, if its status is 2xx."""
        async with self._connections.one() as client:
            request = client.build_request(method, path, content=content, headers=headers)
            response = await self._send(client, request, limit)
            try:
                async with aclosing(response):
                    if not response.is_success:
                        refusal = await self._refusal(response, limit)
                        raise self.error(replace(refusal, method=method))
                    if name := unreadable_encoding(response):
                        raise self.protocol_error(
                            f"sent an answer compressed by {name}, which was not asked for"
                        )
                    yield response
            finally:
                # The stream refers to the response, and keeps the request alive until garbage collection.
                response.stream = _NOTHING

    async def _send(
        self, client: httpx.AsyncClient, request: httpx.Request, limit: TimeLimit
    ) -> httpx.Response:
        try:
            async with asyncio.timeout_at(limit.at):
                return await client.send(request, stream=True)
        except TimeoutError:
            raise self.timed_out(limit) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = self._without_secrets(str(error)) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            message = f"{self._name}: cannot connect ({reason}); {self._hint()}"
            raise WorkerUnavailable(message, log_text=message) from None
        except httpx.ProxyError as error:
            reason = self._without_secrets(str(error)) or "no reason given"
            message = f"{self._name}: the proxy refuses ({reason}); {self._hint()}"
            raise WorkerUnavailable(message, log_text=message) from None
        except httpx.HTTPError as error:
            message = f"{self._name}: the connection failed ({type(error).__name__})"
            raise WorkerUnavailable(message, log_text=message) from None

    def _hint(self) -> str:
        if self._proxy is None:
            return "is the server up, and base_url right?"
        return f"it goes by the proxy of {self._proxy.variable}; is that right, or should NO_PROXY name it?"

    async def _refusal(self, response: httpx.Response, limit: TimeLimit) -> Refusal:
        """The refusal in an error response. If its body does not come soon, the status has to do."""
        body = bytearray()
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout_at(min(limit.at, now() + _REFUSAL_S)):
                async for part in decoded(response):
                    body += part
                    if len(body) > MAX_ERROR_BYTES:
                        break
        return read_refusal(response.status_code, response.headers, bytes(body), now=datetime.now(UTC))

    async def _body(self, response: httpx.Response, limit: TimeLimit, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(limit.at):
                async for part in decoded(response):
                    size += len(part)
                    if size > max_bytes:
                        raise self.protocol_error(f"sent an answer of more than {max_bytes:,} bytes")
                    parts.append(part)
        except TimeoutError:
            raise self.timed_out(limit) from None
        except httpx.HTTPError:
            raise self.protocol_error("cut its answer off") from None
        return b"".join(parts)

    def _json(self, body: bytes) -> Any:
        try:
            return json_of(body)
        except ValueError:
            raise self.protocol_error("sent an answer that is not JSON; is base_url right?") from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def _headers(config: EndpointConfig, adapters: Mapping[str, str] | None) -> httpx.Headers:
    """The headers of every request: the endpoint's settings win over the adapter's."""
    headers = httpx.Headers({"Accept-Encoding": "identity", "Content-Type": "application/json"})
    headers.update(adapters or {})
    headers.update(own_headers(config))
    return headers


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:  # a lone surrogate, a number beyond 64 bits
        raise RequestRejected(f"the request cannot be written as JSON: {error}") from None
