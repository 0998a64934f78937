"""What adapters over HTTP share: connections, time limits, bounds, and errors translated once.

Time limits are deadlines on the event loop's clock. They surround single reads, never a `yield`: a time-out
must strike the worker and not the code that reads its outputs.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import orjson

from workers import lenient_json
from workers.base import EndpointConfig
from workers.errors import (
    ContextOverflow,
    ModelNotFound,
    RequestRejected,
    WorkerAuthError,
    WorkerConfigError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)
from workers.headers import own_headers, secrets_of
from workers.json_body import JsonBody
from workers.lanes import Lanes
from workers.network import MAX_PORT, proxy_of, tls_context
from workers.read_timer import ReadTimer
from workers.refusals import MAX_WORDS, Refusal, json_of, refusal_in_answer, refusal_of
from workers.sse import BYTE_ORDER_MARK, SseDecoder

CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024

# Servers close idle connections (llama-server after 5 s); let go of them before they do.
_KEEPALIVE_S = 4.0
# After its answer a server that leaves the connection open has so long to send the usage.
_REST_S = 1.0
# What remains after the last event is a few bytes. Reading them saves the connection for the next call.
_DRAIN_S = 1.0

# A gateway that does not reach its server; from 520 on these are Cloudflare's.
_AWAY = frozenset({502, *range(520, 531)})
_MODEL_KINDS = frozenset({"model_not_found", "invalid_model", "DeploymentNotFound"})
_CONTEXT_KINDS = frozenset({"exceed_context_size_error", "context_length_exceeded"})
_CONTEXT_WORDS = ("maximum context length", "maximum model length")  # vLLM gives it no name
_ACCOUNT_KINDS = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_HEARTBEATS = frozenset({b"", b"ping", b"pong", b"heartbeat", b"keepalive", b"keep-alive"})
# Read without being asked for. What else is said to be an encoding ("none", "utf-8") is taken to be none.
_ENCODINGS = frozenset({"gzip", "deflate"})
_UNREADABLE_ENCODINGS = frozenset({"br", "zstd", "compress", "x-compress", "x-gzip"})
_BUSY_KINDS = frozenset({"rate_limit_exceeded", "rate_limit_error", "overloaded_error"})


Translator = Callable[[Refusal], type[WorkerError]]


def error_class(refusal: Refusal) -> type[WorkerError]:
    """Which error a refusal is, for servers that have no peculiarities.

    Its kind goes before its status, which an error inside a stream often has not got. An account without
    money is one whose key is refused, although OpenAI answers 429: no wait helps.
    """
    status, kind = refusal.status, refusal.kind
    # What is asked by GET is something that a server need not have.
    if kind in _MODEL_KINDS or (status == 404 and refusal.method == "POST"):
        return ModelNotFound
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
    if status == 409 or status in _AWAY:
        return WorkerUnavailable
    if status >= 500:
        return WorkerFailed
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
        self._limits = _Limits(config)
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
        """POST some JSON and read the JSON that answers it, within `timeout_s`.

        `headers` are this request's alone.

        Raises:
            WorkerError: it did not come.
        """
        limit = self._limits.whole(_now())
        async with self._answer("POST", path, _encoded(body), limit, headers) as response:
            answer = self._json(await self._body(response, limit, MAX_BODY_BYTES))
        if (refusal := refusal_in_answer(answer)) is not None:
            raise self.error(refusal)
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, body: Mapping[str, Any], *, headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[EventStream, None]:
        """POST some JSON and read the event stream that answers it. Leaving early closes the connection.

        `headers` are this request's alone.

        Raises:
            WorkerError: the server did not answer.
        """
        began_at = _now()
        limit = self._limits.first(began_at)
        async with self._answer("POST", path, _encoded(body), limit, headers) as response:
            stream = EventStream(self, response, limit, self._limits, began_at)
            try:
                yield stream
            finally:
                stream.close()

    async def aclose(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._lanes.aclose()

    def error(self, refusal: Refusal) -> WorkerError:
        """The error that a refusal is, in the server's own words."""
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
                if not response.is_success:
                    refusal = await self._refusal(response, limit)
                    raise self.error(replace(refusal, method=method))
                if unreadable := encodings(response) & _UNREADABLE_ENCODINGS:
                    raise self.protocol_error(
                        f"sent an answer compressed by {unreadable.pop()}, which was not asked for"
                    )
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


class _Limits:
    """The time limits of an endpoint's calls."""

    def __init__(self, config: EndpointConfig) -> None:
        self._whole_s, self._total_s = config.timeout_s, config.total_timeout_s
        self._first_s = config.first_token_timeout_s
        self._idle = min(
            (config.idle_timeout_s, "idle_timeout_s"), (config.timeout_s, "timeout_s"), key=lambda one: one[0]
        )
        self.idle_s = self._idle[0]

    def total(self, began_at: float) -> _Limit:
        """The limit of a whole call, however well it flows."""
        if self._total_s is None:
            return _NEVER
        return _Limit(began_at + self._total_s, f"no end within total_timeout_s = {self._total_s:g}")

    def whole(self, began_at: float) -> _Limit:
        """The limit of an answer that comes at once."""
        limit = _Limit(began_at + self._whole_s, f"no answer within timeout_s = {self._whole_s:g}")
        return limit.or_sooner(self.total(began_at))

    def first(self, began_at: float) -> _Limit:
        """The limit of the first token."""
        limit = _Limit(began_at + self._first_s, f"no token within first_token_timeout_s = {self._first_s:g}")
        return limit.or_sooner(self.whole(began_at))

    def idle(self, since: float) -> _Limit:
        """The limit of the token after the one that came at `since`."""
        seconds, name = self._idle
        return _Limit(since + seconds, f"no more tokens within {name} = {seconds:g}")


_NEVER = _Limit(math.inf, "")


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

    Ends when the server ends the stream, or with `[DONE]`: `said_done`. Whether all was said by then is for
    the adapter to know. Until `output_came()` the limit is that of the first token, and then that of the
    next. `lenient`: some event was not quite JSON and may hold halves of characters.

    A server that does not stream sends JSON: one event, with the whole answer.

    Raises:
        WorkerTimeout: nothing came in time.
        WorkerProtocolError: the connection broke, or what came is no JSON object.
        WorkerError: the server reported an error in the stream.
    """

    def __init__(
        self,
        endpoint: HttpEndpoint,
        response: httpx.Response,
        first: _Limit,
        limits: _Limits,
        began_at: float,
    ) -> None:
        self.lenient = False
        self._endpoint = endpoint
        self._content_type = response.headers.get("content-type", "nothing")
        self._chunks = decoded(response)
        self._decoder = SseDecoder()
        self._feed = self._tell
        self._body = JsonBody()
        self._is_whole = False
        self._limits = limits
        self._began_at = began_at
        self._ends_at = limits.total(began_at).at
        self._limit: _Limit | None = first  # None: that of the next token, after `_heard_at`
        self._heard_at = 0.0
        self._heard = False
        self._timer = ReadTimer(first.at)
        self._failure: WorkerError | None = None
        self._at_end = False

    @property
    def said_done(self) -> bool:
        """Whether the server has said that this is the end; a whole document says so by itself."""
        return self._is_whole or (self._decoder.done and self._decoder.error is None and not self._failure)

    def output_came(self) -> None:
        """Some output has come of what was read last."""
        self._heard = True

    def answer_ended(self) -> None:
        """Nothing that is needed is still to come: the rest has `_REST_S`."""
        self._set_limit(_Limit(_now() + _REST_S, f"no end within {_REST_S:g} s of the answer's"))

    def close(self) -> None:
        """No more is read."""
        self._timer.close()

    def _set_limit(self, limit: _Limit) -> None:
        self._heard = False
        self._limit = limit.or_sooner(self._limits.total(self._began_at))
        self._timer.move(self._limit.at)

    def _wait_for_next(self) -> None:
        """Let the limit be that of the next token."""
        self._heard = False
        self._limit = None
        self._heard_at = _now()
        self._timer.move(min(self._heard_at + self._limits.idle_s, self._ends_at))

    def __aiter__(self) -> EventStream:
        """Itself; a plain object has nothing to finalize when the reader stops."""
        return self

    async def __anext__(self) -> list[dict[str, Any]]:
        """The events of the next read that completes any."""
        while not self._decoder.done:
            if (chunk := await self._read()) is None:
                return self._last_events()
            data = self._feed(chunk)
            if data and (events := self._events(data)):
                return events
        self._raise_what_failed()
        await self._drain()
        raise StopAsyncIteration

    async def _drain(self) -> None:
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(_DRAIN_S):
                async for _ in self._chunks:
                    pass

    async def _read(self) -> bytes | None:
        """The next bytes; None at the end, for which there may be a `_failure`."""
        if self._heard:
            self._wait_for_next()
        timer = self._timer
        timer.begin()
        try:
            return await anext(self._chunks, None)
        except asyncio.CancelledError:
            if not timer.is_up():
                raise
            self._failure = self._endpoint.timed_out(self._passed_limit())
        except httpx.HTTPError as error:
            self._failure = self._endpoint.protocol_error(f"cut its stream off ({type(error).__name__})")
        finally:
            timer.end()
        return None

    def _passed_limit(self) -> _Limit:
        if self._limit is not None:
            return self._limit
        return self._limits.idle(self._heard_at).or_sooner(self._limits.total(self._began_at))

    def _last_events(self) -> list[dict[str, Any]]:
        """What is left at the end, once: a last event whose blank line is missing, or the JSON that it was.

        Raises:
            StopAsyncIteration: that was all.
        """
        if not self._at_end:
            self._at_end = True
            if events := self._document_events() if self._body.size else self._unfinished_events():
                return events
        self._raise_what_failed()
        raise StopAsyncIteration

    def _events(self, data: list[bytes]) -> list[dict[str, Any]]:
        """The objects of some events. An error among them is raised when those before it have been heard."""
        events: list[dict[str, Any]] = []
        try:
            for part in data:
                if (event := self._event(part)) is not None:
                    events.append(event)
        except WorkerError as error:
            self._failure = error
            self._decoder.done = True
        return events

    def _unfinished_events(self) -> list[dict[str, Any]]:
        """What the stream ended, or broke off, before the blank line of; nothing where it is not whole."""
        events: list[dict[str, Any]] = []
        try:
            for data in self._decoder.feed(b"\n\n"):
                if (event := self._event(data)) is not None:
                    events.append(event)
        except WorkerProtocolError:
            return events
        except WorkerError as error:  # the server's
            self._failure = error
            return events
        if self._decoder.done:  # [DONE]: how the connection ended does not matter
            self._failure = None
        return events

    def _document_events(self) -> list[dict[str, Any]]:
        self.lenient = True
        try:
            said = json_of(self._body.bytes())
        except ValueError:
            raise self._failure or self._endpoint.protocol_error("sent an answer that is not JSON") from None
        self._is_whole = True
        self._failure = None
        parts = said if isinstance(said, list) else [said]
        return [event for part in parts if (event := self._object(part)) is not None]

    def _tell(self, chunk: bytes) -> list[bytes]:
        """Tell by its first bytes what the server sends. Its media type does not: many say text/plain."""
        begin = chunk.removeprefix(BYTE_ORDER_MARK).lstrip()
        if not begin:
            return []
        if begin.startswith(b"<"):
            raise self._endpoint.protocol_error(
                f"sent {self._content_type[:80]} where an event stream was asked for"
            )
        if begin.startswith((b"{", b"[")):
            self._set_limit(self._limits.whole(self._began_at))
            self._feed = self._keep
            return self._keep(begin)
        self._feed = self._decoder.feed
        return self._feed(chunk)

    def _keep(self, chunk: bytes) -> list[bytes]:
        self._body.add(chunk)
        if self._body.size > MAX_BODY_BYTES:
            raise self._endpoint.protocol_error(f"sent an answer of more than {MAX_BODY_BYTES:,} bytes")
        if self._body.is_lines():
            lines, self._body = self._body.bytes(), JsonBody()
            self._feed = self._decoder.feed
            return self._feed(lines)
        if self._body.is_whole():
            self.answer_ended()
        return []

    def _event(self, data: bytes) -> dict[str, Any] | None:
        try:
            event = orjson.loads(data)
        except orjson.JSONDecodeError:
            event = self._leniently(data)
        return self._object(event)

    def _leniently(self, data: bytes) -> Any:
        if data.strip(b" \t[]:").lower() in _HEARTBEATS:
            return None
        self.lenient = True
        try:
            return lenient_json.loads(data)
        except ValueError:
            raise self._endpoint.protocol_error("sent an event that is not JSON") from None

    def _object(self, event: Any) -> dict[str, Any] | None:
        if isinstance(event, dict):
            if event.get("error") and (refusal := refusal_in_answer(event)) is not None:
                raise self._endpoint.error(refusal)
            return event
        if not event:  # llama-server begins the stream of a list with null
            return None
        if isinstance(event, list) and len(event) == 1:  # Gemini's errors
            return self._object(event[0])
        raise self._endpoint.protocol_error("sent an event that is no JSON object")

    def _raise_what_failed(self) -> None:
        """Raise what ended the reading, or the error that an event called `error` has brought, if any did."""
        if self._failure is not None:
            raise self._failure
        if (data := self._decoder.error) is None:
            return
        try:
            said = json_of(data)
        except ValueError:
            said = data.decode("utf-8", "replace")
        raise self._endpoint.error(refusal_of(said))


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
    decoder = SseDecoder()  # some answer everything by a stream
    for data in (body, *decoder.feed(body + b"\n\n"), decoder.error or b""):
        with suppress(ValueError):
            refusal = refusal_of(json_of(data))
            return Refusal(status, refusal.kind, refusal.words, wait_s)
    words = body.decode("utf-8", "replace").strip()
    # The page that a proxy shows to people says less than its status.
    return Refusal(status, words="" if words.startswith("<") else words[:MAX_WORDS], retry_after_s=wait_s)


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


def encodings(response: httpx.Response) -> set[str]:
    """The names in `Content-Encoding`."""
    header = response.headers.get("content-encoding")
    return {name.strip().lower() for name in header.split(",")} if header else set()


def decoded(response: httpx.Response) -> AsyncIterator[bytes]:
    """The body as it comes, decompressed where the server compresses although it was asked not to."""
    return response.aiter_bytes() if encodings(response) & _ENCODINGS else response.aiter_raw()


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
