"""The events of one answer over HTTP, read within their time limits."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Protocol

import httpx
import orjson

from workers import lenient_json
from workers.encodings import decoded
from workers.errors import WorkerError, WorkerProtocolError, WorkerTimeout
from workers.headers import head_of
from workers.json_body import JsonBody
from workers.read_timer import ReadTimer
from workers.refusals import Refusal, json_of, refusal_in_answer, refusal_of
from workers.sse import BYTE_ORDER_MARK, SseDecoder
from workers.time_limits import TimeLimit, TimeLimits, now

MAX_BODY_BYTES = 16 * 1024 * 1024

# After the answer, a server that leaves the connection open has this long to send the usage.
_REST_S = 1.0
# A few bytes remain after the last event. Reading them keeps the connection for the next call.
_DRAIN_S = 1.0
_HEARTBEATS = frozenset({b"", b"ping", b"pong", b"heartbeat", b"keepalive", b"keep-alive"})


class Errors(Protocol):
    """Makes the errors of an endpoint."""

    def error(self, refusal: Refusal) -> WorkerError: ...

    def protocol_error(self, what: str) -> WorkerProtocolError: ...

    def timed_out(self, limit: TimeLimit) -> WorkerTimeout: ...


class EventStream:
    """The events of one answer, as JSON objects; each step of the iteration yields the events of one read.

    It ends when the server ends the stream, or with `[DONE]`: then `said_done` is true. Whether the answer is
    complete is for the adapter to decide. Until the first `output_came()` the time limit is that of the first
    token, then that of the next. `lenient` is true once an event was not quite JSON and may hold halves of
    characters. `head` is what the response's head says about the answer.

    A server that does not stream sends JSON: one event with the whole answer.

    Raises:
        WorkerTimeout: nothing came in time.
        WorkerProtocolError: the connection broke, or what came is no JSON object.
        WorkerError: the server reported an error in the stream.
    """

    def __init__(
        self,
        endpoint: Errors,
        response: httpx.Response,
        first: TimeLimit,
        limits: TimeLimits,
        began_at: float,
    ) -> None:
        self.lenient = False
        self._endpoint = endpoint
        self._content_type = response.headers.get("content-type", "nothing")
        self.head = head_of(response.headers)
        self._chunks = decoded(response)
        self._decoder = SseDecoder()
        self._feed = self._detect
        self._body = JsonBody()
        self._is_whole = False
        self._limits = limits
        self._began_at = began_at
        self._ends_at = limits.total(began_at).at
        self._limit: TimeLimit | None = first  # None: that of the next token, after `_heard_at`
        self._heard_at = 0.0
        self._heard = False
        self._timer = ReadTimer(first.at)
        self._failure: WorkerError | None = None
        self._at_end = False

    @property
    def said_done(self) -> bool:
        """Whether the server has declared the end, by `[DONE]` or by sending a whole document."""
        return self._is_whole or (self._decoder.done and self._decoder.error is None and not self._failure)

    def output_came(self) -> None:
        """Note that the last read brought output."""
        self._heard = True

    def answer_ended(self) -> None:
        """Note that the answer is complete: the rest of the stream has `_REST_S`."""
        self._set_limit(TimeLimit(now() + _REST_S, f"no end within {_REST_S:g} s of the answer's"))

    def close(self) -> None:
        """Stop reading."""
        self._timer.close()

    def _set_limit(self, limit: TimeLimit) -> None:
        self._heard = False
        self._limit = limit.or_sooner(self._limits.total(self._began_at))
        self._timer.move(self._limit.at)

    def _wait_for_next(self) -> None:
        """Set the limit of the next token."""
        self._heard = False
        self._limit = None
        self._heard_at = now()
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
        self._raise_failure()
        await self._drain()
        raise StopAsyncIteration

    async def _drain(self) -> None:
        with suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(_DRAIN_S):
                async for _ in self._chunks:
                    pass

    async def _read(self) -> bytes | None:
        """The next bytes; None at the end, whose cause may be in `_failure`."""
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

    def _passed_limit(self) -> TimeLimit:
        if self._limit is not None:
            return self._limit
        return self._limits.idle(self._heard_at).or_sooner(self._limits.total(self._began_at))

    def _last_events(self) -> list[dict[str, Any]]:
        """The rest at the end, once: a last event without its blank line, or the events of a JSON document.

        Raises:
            StopAsyncIteration: nothing is left.
        """
        if not self._at_end:
            self._at_end = True
            if events := self._document_events() if self._body.size else self._unfinished_events():
                return events
        self._raise_failure()
        raise StopAsyncIteration

    def _events(self, data: list[bytes]) -> list[dict[str, Any]]:
        """The objects of some events. An error among them is raised after the events before it."""
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
        """The events that lack only their blank line at the end of the stream."""
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
        if self._decoder.done:  # after [DONE] it does not matter how the connection ended
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

    def _detect(self, chunk: bytes) -> list[bytes]:
        """Detect by the first bytes what the server sends: media types are unreliable, often text/plain."""
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

    def _raise_failure(self) -> None:
        """Raise the error that ended the reading, or the one in an event called `error`, if any."""
        if self._failure is not None:
            raise self._failure
        if (data := self._decoder.error) is None:
            return
        try:
            said = json_of(data)
        except ValueError:
            said = data.decode("utf-8", "replace")
        raise self._endpoint.error(refusal_of(said))
