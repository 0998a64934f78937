"""An OpenAI-compatible server without a model that keeps a timetable: to measure what lies before an engine.

    python -m benchmarks.mock_engine --port 0 --first-token-ms 100 --interval-ms 20

It prints the port it listens on. An answer has as many tokens as the request's `max_tokens`: the first is
sent `--first-token-ms` after the request came, the others `--interval-ms` apart, all by the timetable: a
token that is late does not make the next one late. The text of a token is a space and the moment it was sent,
in µs of CLOCK_MONOTONIC, which all processes of a machine share: who receives it knows how long it took.

It has to cost much less than what is measured with it: a bare protocol on uvloop, events put together from
constant parts, and one timer for all streams.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import orjson
import uvloop

START_TIMEOUT_S = 20.0
DEFAULT_TOKENS = 16

_CHAT, _COMPLETION = b"/v1/chat/completions", b"/v1/completions"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_MODELS = orjson.dumps({"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "mock"}]})


@dataclass(frozen=True, slots=True)
class Timetable:
    """When tokens are sent, in seconds."""

    first_s: float
    interval_s: float


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks for; `members` are the prompts of its list."""

    chat: bool
    members: int
    tokens: int
    stream: bool
    usage: bool
    usage_in_chunks: bool

    @classmethod
    def read(cls, path: bytes, body: Mapping[str, Any]) -> Request:
        """From the body of a POST."""
        prompt = body.get("prompt")
        options = body.get("stream_options") or {}
        return cls(
            chat=path == _CHAT,
            members=len(prompt) if isinstance(prompt, list) else 1,
            tokens=int(body.get("max_tokens") or body.get("max_completion_tokens") or DEFAULT_TOKENS),
            stream=bool(body.get("stream")),
            usage=bool(options.get("include_usage")),
            usage_in_chunks=bool(options.get("continuous_usage_stats")),
        )

    def choice(self, member: int, text: bytes, reason: bytes, *, whole: bool = False) -> bytes:
        """An entry of `choices`, as JSON."""
        said = b'"text":"%b"' % text
        if self.chat:
            said = b'"%b":{"role":"assistant","content":"%b"}' % (b"message" if whole else b"delta", text)
        return b'{"index":%d,%b,"logprobs":null,"finish_reason":%b}' % (member, said, reason)

    def answer(self, choices: bytes, usage: bytes, *, whole: bool = False) -> bytes:
        """An answer or a part of it, as JSON; `usage` may be empty."""
        kind = b"text_completion"
        if self.chat:
            kind = b"chat.completion" if whole else b"chat.completion.chunk"
        counts = b',"usage":' + usage if usage else b""
        return b'{"id":"mock-1","object":"%b","created":1,"model":"mock","choices":[%b]%b}' % (
            kind,
            choices,
            counts,
        )


def usage_json(members: int, tokens: int) -> bytes:
    """The JSON of a `usage`: each prompt counts for one token."""
    said = members * tokens
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (members, said, members + said)


def stamp() -> bytes:
    """A token: this moment."""
    return b" %d" % (time.monotonic_ns() // 1000)


class Answer:
    """An answer on its way. What does not change in its events is put together once."""

    __slots__ = ("_left", "_parts", "_protocol", "_request", "_said", "due_s")

    def __init__(self, protocol: Protocol, request: Request, due_s: float) -> None:
        self._protocol = protocol
        self._request = request
        self._left = request.tokens
        self._said: list[bytes] = []
        self._parts = [self._event(member, b"null", b"").split(b"@") for member in range(request.members)]
        self.due_s = due_s

    def step(self) -> bool:
        """Say a token for each member; returns whether there is one more to say."""
        self._left -= 1
        text = stamp()
        if not self._request.stream:
            self._said.append(text)
            if not self._left:
                self._protocol.respond(self._whole())
        elif self._left and not self._request.usage_in_chunks:
            self._protocol.write_chunk(b"".join([head + text + tail for head, tail in self._parts]))
        else:
            self._protocol.write_chunk(self._rare_step(text))
        if not self._left:
            self._protocol.answered()
        return self._left > 0 and not self._protocol.closed

    def _rare_step(self, text: bytes) -> bytes:
        """The last events, and those that tell how many tokens there were."""
        request, said = self._request, self._request.tokens - self._left
        usage = usage_json(1, said) if request.usage_in_chunks else b""
        reason = b"null" if self._left else b'"length"'
        events = [self._event(member, reason, usage).replace(b"@", text) for member in range(request.members)]
        if self._left:
            return b"".join(events)
        if request.usage:
            events.append(b"data: %b\n\n" % request.answer(b"", usage_json(request.members, said)))
        events.append(b"data: [DONE]\n\n")
        return b"".join(events)

    def _event(self, member: int, reason: bytes, usage: bytes) -> bytes:
        """An event with a mark in the place of its text."""
        return b"data: %b\n\n" % self._request.answer(self._request.choice(member, b"@", reason), usage)

    def _whole(self) -> bytes:
        """The JSON of the whole answer, for those that want no stream."""
        request, text = self._request, b"".join(self._said)
        choices = [request.choice(member, text, b'"length"', whole=True) for member in range(request.members)]
        usage = usage_json(request.members, request.tokens)
        return request.answer(b",".join(choices), usage, whole=True)


class Clock:
    """One timer for all answers: those that are due in the same millisecond are served together."""

    def __init__(self, timetable: Timetable) -> None:
        self.timetable = timetable
        self._due: dict[int, list[Answer]] = {}  # by millisecond
        self._order: list[int] = []  # the same milliseconds, as a heap
        self._wakes_at_ms = 0  # 0: no timer is set

    def add(self, answer: Answer) -> None:
        """Let an answer go on when it is due."""
        at_ms = int(answer.due_s * 1000) + 1
        if at_ms in self._due:
            self._due[at_ms].append(answer)
            return
        self._due[at_ms] = [answer]
        heapq.heappush(self._order, at_ms)
        if not self._wakes_at_ms or at_ms < self._wakes_at_ms:
            self._wakes_at_ms = at_ms
            asyncio.get_running_loop().call_at(at_ms / 1000, self._tick, at_ms)

    def _tick(self, at_ms: int) -> None:
        if at_ms != self._wakes_at_ms:
            return  # another timer was set that comes sooner
        now_ms = int(asyncio.get_running_loop().time() * 1000)
        self._wakes_at_ms = -1  # whoever is put back now need not set one
        while self._order and self._order[0] <= now_ms:
            for answer in self._due.pop(heapq.heappop(self._order)):
                if answer.step():
                    answer.due_s += self.timetable.interval_s
                    self.add(answer)
        self._wakes_at_ms = self._order[0] if self._order else 0
        if self._order:
            asyncio.get_running_loop().call_at(self._wakes_at_ms / 1000, self._tick, self._wakes_at_ms)


class Protocol(asyncio.Protocol):
    """HTTP/1.1, as far as clients of engines speak it: keep-alive, bodies with a length, no pipelining."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self._streaming = False
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        """Let go of the answer."""
        self.closed = True

    def data_received(self, data: bytes) -> None:
        """Take part of a request."""
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        request_line, *lines = bytes(head).split(b"\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(b":") for line in lines)}
        length = int(headers.get(b"content-length", 0))
        if len(rest) < length:
            return
        del self._received[: len(head) + len(blank) + length]
        method, path, _ = request_line.split(b" ", 2)
        self._serve(method, path, bytes(rest[:length]))

    def _serve(self, method: bytes, path: bytes, body: bytes) -> None:
        if method == b"POST" and path in {_CHAT, _COMPLETION}:
            request = Request.read(path, orjson.loads(body))
            self._streaming = request.stream
            if request.stream:
                self._write(_STREAM_HEAD)
            due_s = asyncio.get_running_loop().time() + self._clock.timetable.first_s
            self._clock.add(Answer(self, request, due_s))
        elif path == b"/v1/models":
            self.respond(_MODELS)
        elif path == b"/health":
            self.respond(b"")
        else:
            self.respond(b'{"error":{"message":"no such path"}}', status=b"404 Not Found")

    def respond(self, body: bytes, *, status: bytes = b"200 OK") -> None:
        """Answer a request in one piece."""
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._write(head % (status, len(body)) + body)

    def write_chunk(self, data: bytes) -> None:
        """Send a part of a stream."""
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def answered(self) -> None:
        """The answer is complete."""
        if self._streaming:
            self._write(b"0\r\n\r\n")
            self._streaming = False

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(data)


async def serve(port: int, timetable: Timetable) -> None:
    """Serve until the process is ended."""
    clock = Clock(timetable)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Protocol(clock), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass(frozen=True, slots=True)
class MockEngine:
    """A mock engine that runs: its URL, and its process."""

    url: str
    pid: int
    timetable: Timetable


@contextmanager
def mock_engine(*, first_token_ms: float, interval_ms: float) -> Iterator[MockEngine]:
    """Start a mock engine in a process of its own; it ends with the block."""
    options = [f"--first-token-ms={first_token_ms}", f"--interval-ms={interval_ms}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.mock_engine", "--port=0", *options], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], START_TIMEOUT_S)[0]:
            raise SystemExit(f"the mock engine did not start in {START_TIMEOUT_S:.0f} s")
        port = int(process.stdout.readline())
        timetable = Timetable(first_token_ms / 1000, interval_ms / 1000)
        yield MockEngine(f"http://127.0.0.1:{port}/v1", process.pid, timetable)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Parse the command line, serve."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mock_engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="0: any, which is printed")
    parser.add_argument("--first-token-ms", type=float, default=100.0)
    parser.add_argument("--interval-ms", type=float, default=20.0)
    options = parser.parse_args()
    timetable = Timetable(options.first_token_ms / 1000, options.interval_ms / 1000)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.port, timetable))


if __name__ == "__main__":
    main()
