"""What adapters over HTTP share: connections, time limits, bounds, and errors translated once.

Time limits are deadlines on the event loop's clock. They surround single reads, never a `yield`: a time-out
must strike the worker and not the code that reads its outputs.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from workers.base import EndpointConfig
from workers.errors import (
    ContextOverflow,
    RequestRejected,
    WorkerAuthError,
    WorkerConfigError,
    WorkerError,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)
from workers.headers import own_headers, secrets_of
from workers.lanes import Lanes
from workers.network import MAX_PORT, proxy_of, tls_context
from workers.sse import SseDecoder

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_WORDS = 500

# Servers close idle connections (llama-server after 5 s); let go of them before they do.
_KEEPALIVE_S = 4.0
# What remains after the last event is a few bytes. Reading them saves the connection for the next call.
_DRAIN_S = 1.0

_CONTEXT_KINDS = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_CONTEXT_WORDS = ("maximum context length", "maximum model length")  # vLLM gives it no name
_ACCOUNT_KINDS = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_BUSY_KINDS = frozenset({"rate_limit_exceeded", "rate_limit_error", "overloaded_error"})


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that the server sent, as a response or inside a stream.

    `kind` is the server's own name for it, `words` its message, both empty where it gave none.
    """

    status: int
    kind: str = ""
    words: str = ""
    retry_after_s: float | None = None


Translator = Callable[[Refusal], type[WorkerError]]


def error_class(refusal: Refusal) -> type[WorkerError]:
    """Which error a refusal is, for servers that have no peculiarities.

    Its kind goes before its status, which an error inside a stream often has not got. An account without
    money is one whose key is refused, although OpenAI answers 429: no wait helps.
    """
    status, kind = refusal.status, refusal.kind
    if status in {401, 402, 403} or kind in _ACCOUNT_KINDS:
        return WorkerAuthError
    if status in {429, 503, 529} or kind in _BUSY_KINDS:
        return WorkerOverloaded
    if kind in _CONTEXT_KINDS or (status == 400 and any(words in refusal.words for words in _CONTEXT_WORDS)):
        return ContextOverflow
    if status in {408, 504}:
        return WorkerTimeout
    if kind == "invalid_request_error":
        return RequestRejected
    if status >= 500 or status == 409:
        return WorkerUnavailable
    return RequestRejected if status >= 400 else WorkerProtocolError


class HttpEndpoint:
    """One base URL, and how to talk JSON to it.

    `engine` names the kind of server in messages. `translate` decides which error a refusal is.
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
        self._timeout_s = config.timeout_s
        self._first_token_timeout_s = config.first_token_timeout_s
        self._translate = translate
        self.url = url
        self._headers = httpx.Headers(
            {"Accept-Encoding": "identity", "Content-Type": "application/json", **(headers or {})}
        )
        self._headers.update(own_headers(config))
        self._query = dict(config.query)
        self._tls = tls_context(httpx.URL(url), config.environ)
        self._proxy = proxy_of(httpx.URL(url), config.environ)
        self._lanes = Lanes(self._client, idle_s=_KEEPALIVE_S, clock=time.monotonic)

    async def get(self, path: str) -> Any:
        """GET some JSON, such as a server's state, within `PROBE_TIMEOUT_S`.

        Raises:
            WorkerError: it did not come.
        """
        return self._json(await self.get_bytes(path))

    async def get_bytes(self, path: str) -> bytes:
        """GET something that is not JSON, such as a server's metrics, within `PROBE_TIMEOUT_S`.

        Raises:
            WorkerError: it did not come.
        """
        limit = _Limit(_now() + PROBE_TIMEOUT_S, f"no answer within {PROBE_TIMEOUT_S:g} s")
        async with self._answer("GET", path, None, limit) as response:
            return await self._body(response, limit, MAX_BODY_BYTES)

    async def post(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> Any:
        """POST some JSON and read the JSON that answers it, within the time of a whole call.

        `headers` are this request's alone.

        Raises:
            WorkerError: it did not come.
        """
        limit = self._whole_call()
        async with self._answer("POST", path, _encoded(body), limit, headers) as response:
            return self._json(await self._body(response, limit, MAX_BODY_BYTES))

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[EventStream, None]:
        """POST some JSON and read the event stream that answers it. Leaving early closes the connection.

        `headers` are this request's alone.

        Raises:
            WorkerError: the server did not answer, or not with an event stream.
        """
        whole_call = self._whole_call()
        limit = whole_call.or_sooner(
            _Limit(
                _now() + self._first_token_timeout_s,
                f"no token within first_token_timeout_s = {self._first_token_timeout_s:g}",
            )
        )
        async with self._answer("POST", path, _encoded(body), limit, headers) as response:
            content_type = response.headers.get("content-type", "nothing")
            if not content_type.startswith("text/event-stream"):
                raise self.protocol_error(f"sent {content_type[:80]} where an event stream was asked for")
            yield EventStream(self, response, limit, whole_call)

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._lanes.aclose()

    def error(self, refusal: Refusal) -> WorkerError:
        """The error that a refusal is, in the server's own words."""
        words = self._without_secrets(refusal.words or refusal.kind)
        said = f": {words}" if words else ""
        error = self._translate(refusal)
        hint = "; check api_key_env" if refusal.status in {401, 403} else ""
        answered = f"{self._name} answered {refusal.status}"
        return error(
            f"{answered}{said}{hint}",
            retry_after_s=refusal.retry_after_s,
            log_text=f"{answered}{hint}",
        )

    def protocol_error(self, what: str) -> WorkerProtocolError:
        """The error for an answer that breaks the protocol."""
        message = f"{self._name} {what}"
        return WorkerProtocolError(message, log_text=message)

    def malformed(self) -> WorkerProtocolError:
        """The error for an answer that has not the fields that such a server sends."""
        return self.protocol_error(
            f"sent an answer that is not what {self._engine} sends; is base_url right?"
        )

    def cut_off(self, missing: int, total: int) -> WorkerProtocolError:
        """The error for a stream that ended while `missing` of its `total` prompts had no end."""
        return self.protocol_error(f"ended its answer before the end of {missing} of {total} prompts")

    def timed_out(self, limit: _Limit) -> WorkerTimeout:
        """The error for a time limit that has passed."""
        message = f"{self._name}: {limit.message}"
        return WorkerTimeout(message, log_text=message)

    def _whole_call(self) -> _Limit:
        return _Limit(_now() + self._timeout_s, f"no end within timeout_s = {self._timeout_s:g}")

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self.url,
            headers=self._headers,
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
            transport=_Transport(
                query=self._query,
                limits=httpx.Limits(max_connections=1, keepalive_expiry=_KEEPALIVE_S),
                verify=self._tls,
                proxy=self._proxy and self._proxy.proxy,
                trust_env=False,
            ),
            trust_env=False,
        )

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        content: bytes | None,
        limit: _Limit,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[httpx.Response, None]:
        """The response to a request, with its head read, if it is a good one."""
        async with self._lanes.one() as client:
            request = client.build_request(method, path, content=content, headers=headers)
            response = await self._send(client, request, limit)
            async with aclosing(response):
                if response.status_code != 200:
                    raise self.error(await self._refusal(response, limit))
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise self.protocol_error("sent a compressed answer, which was not asked for")
                yield response

    async def _send(self, client: httpx.AsyncClient, request: httpx.Request, limit: _Limit) -> httpx.Response:
        try:
            async with asyncio.timeout_at(limit.at):
                return await _send_where_it_is_heard(client, request)
        except TimeoutError:
            raise self.timed_out(limit) from None
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = self._without_secrets(str(error)) or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            message = f"{self._name}: cannot connect ({reason}); {self._what_to_look_at()}"
            raise WorkerUnavailable(message, log_text=message) from None
        except httpx.ProxyError as error:
            reason = self._without_secrets(str(error)) or "no reason given"
            message = f"{self._name}: the proxy refuses ({reason}); {self._what_to_look_at()}"
            raise WorkerUnavailable(message, log_text=message) from None
        except httpx.HTTPError as error:
            message = f"{self._name}: the connection failed ({type(error).__name__})"
            raise WorkerUnavailable(message, log_text=message) from None

    def _what_to_look_at(self) -> str:
        if self._proxy is None:
            return "is the server up, and base_url right?"
        return f"it goes by the proxy of {self._proxy.variable}; is that right, or should NO_PROXY name it?"

    async def _refusal(self, response: httpx.Response, limit: _Limit) -> Refusal:
        try:
            body = await self._body(response, limit, MAX_ERROR_BYTES)
        except WorkerError:  # the status alone says enough
            body = b""
        return read_refusal(response.status_code, response.headers, body, now=datetime.now(UTC))

    async def _body(self, response: httpx.Response, limit: _Limit, max_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout_at(limit.at):
                async for part in response.aiter_raw():
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
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            raise self.protocol_error("sent an answer that is not JSON; is base_url right?") from None

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


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


@dataclass(frozen=True, slots=True)
class _Limit:
    """A moment on the event loop's clock, and what it means when it passes."""

    at: float
    message: str

    def or_sooner(self, other: _Limit) -> _Limit:
        return min(self, other, key=lambda limit: limit.at)


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


class EventStream:
    """The events of one answer, as JSON objects; one step of the iteration is what one read brought.

    Ends when the server ends the stream, or with `[DONE]`. Whether all was said by then is for the adapter to
    know. Until `output_began()` the limit is that of the first token.

    Raises:
        WorkerTimeout: nothing came in time.
        WorkerProtocolError: the connection broke, or what came is no JSON object.
        WorkerError: the server reported an error in the stream.
    """

    def __init__(
        self, endpoint: HttpEndpoint, response: httpx.Response, limit: _Limit, whole_call: _Limit
    ) -> None:
        self._endpoint = endpoint
        self._chunks = response.aiter_raw()
        self._decoder = SseDecoder()
        self._limit = limit
        self._whole_call = whole_call

    def output_began(self) -> None:
        """The first token is here: from now on only `timeout_s` holds."""
        self._limit = self._whole_call

    def __aiter__(self) -> EventStream:
        """Itself; a plain object has nothing to finalize when the reader stops."""
        return self

    async def __anext__(self) -> list[dict[str, Any]]:
        """The events of the next read that completes any."""
        while not self._decoder.done:
            data = self._decoder.feed(await self._read())
            if data and (events := [event for event in map(self._event, data) if event is not None]):
                return events
        await self._drain()
        raise StopAsyncIteration

    async def _drain(self) -> None:
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(_DRAIN_S):
                async for _ in self._chunks:
                    pass

    async def _read(self) -> bytes:
        try:
            async with asyncio.timeout_at(self._limit.at):
                return await anext(self._chunks)
        except TimeoutError:
            raise self._endpoint.timed_out(self._limit) from None
        except httpx.HTTPError as error:
            raise self._endpoint.protocol_error(f"cut its stream off ({type(error).__name__})") from None

    def _event(self, data: bytes) -> dict[str, Any] | None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise self._endpoint.protocol_error("sent an event that is not JSON") from None
        if event is None:  # llama-server begins the stream of a list with it
            return None
        if not isinstance(event, dict):
            raise self._endpoint.protocol_error("sent an event that is no JSON object")
        if event.get("error"):
            raise self._endpoint.error(_refusal_in(event, 500))
        return event


def check_base_url(base_url: str) -> str:
    """The URL without a slash at its end, once it is known to be usable.

    Raises:
        WorkerConfigError: it is not, and why.
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


def bearer(config: EndpointConfig) -> dict[str, str]:
    """The header that carries the API key; none without a key.

    Raises:
        WorkerConfigError: the key cannot stand in a header.
    """
    return {"Authorization": f"Bearer {check_key(config.api_key)}"} if config.api_key else {}


def check_key(key: str) -> str:
    """The key, once it is known to fit into a header.

    Raises:
        WorkerConfigError: it does not.
    """
    if not key.isascii() or not key.isprintable() or " " in key:
        raise WorkerConfigError(
            "api_key: has characters that no API key has, a line end perhaps; check api_key_env"
        )
    return key


def read_refusal(status: int, headers: Mapping[str, str], body: bytes, *, now: datetime) -> Refusal:
    """Make out what an error response says. `now` is what a Retry-After date counts from."""
    wait_s = retry_after_s(headers, now=now)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        words = body.decode("utf-8", "replace").strip()
        # The page that a proxy shows to people says less than its status.
        return Refusal(status, words="" if words.startswith("<") else words[:MAX_WORDS], retry_after_s=wait_s)
    refusal = _refusal_in(answer, status) if isinstance(answer, dict) else Refusal(status)
    return Refusal(status, refusal.kind, refusal.words, wait_s)


def _refusal_in(answer: Mapping[str, Any], status: int) -> Refusal:
    """Read `{"error": {"code", "message", "type"}}`, `{"error": "…"}`, `{"message": …}`, `{"detail": …}`."""
    error = answer.get("error") or answer
    if not isinstance(error, dict):
        return Refusal(status, words=str(error)[:MAX_WORDS])
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    kind = code if isinstance(code, str) else error.get("type")
    words = error.get("message") or error.get("detail") or ""
    return Refusal(status, str(kind or "")[:MAX_WORDS], str(words)[:MAX_WORDS])


def retry_after_s(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """The wait in seconds that `retry-after-ms` or `Retry-After` (seconds or an HTTP date) asks for."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if value is None or seconds is not None:
        return seconds
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


async def _send_where_it_is_heard(client: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Send a request, again where it met an idle connection that the server has meanwhile closed.

    What goes to a connection that is new is sent once.
    """
    while True:
        route = _Route()
        request.extensions["trace"] = route
        try:
            return await client.send(request, stream=True)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            if not route.used_before:
                raise


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError as error:  # a lone surrogate, a number beyond 64 bits
        raise RequestRejected(f"the request cannot be written as JSON: {error}") from None


def _now() -> float:
    return asyncio.get_running_loop().time()
