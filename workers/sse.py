"""Server-sent events, decoded from bytes as they come.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from workers.errors import WorkerProtocolError

MAX_EVENT_BYTES = 8 * 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DONE = b"[DONE]"


class SseDecoder:
    """Turns pieces of a byte stream, cut anywhere, into the data of its events.

    Only `data` counts: LLM servers repeat in it what `event` says. After OpenAI's closing `[DONE]`, `done` is
    true and the rest is ignored. An event that the stream does not finish is never given out.
    """

    __slots__ = ("_at_start", "_data", "_line", "_max_bytes", "_size", "_skip_newline", "done")

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.done = False
        self._max_bytes = max_event_bytes
        self._line = bytearray()  # a line that has not ended
        self._data: list[bytes] = []
        self._size = 0  # bytes of the data, a line break each counted
        self._skip_newline = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take some bytes; return the data of the events that they complete.

        Raises:
            WorkerProtocolError: an event has more than `max_event_bytes`.
        """
        if self._skip_newline and chunk:  # the second half of a CRLF that was split
            chunk = chunk.removeprefix(b"\n")
            self._skip_newline = False
        if self.done or not chunk:
            return []
        self._skip_newline = chunk.endswith(b"\r")
        if b"\n" not in chunk and b"\r" not in chunk:
            self._hold(chunk)
            return []
        return self._take(self._lines(chunk))

    def _lines(self, chunk: bytes) -> list[bytes]:
        if self._line:
            chunk = bytes(self._line) + chunk
            self._line.clear()
        if self._at_start:
            self._at_start = False
            chunk = chunk.removeprefix(_BYTE_ORDER_MARK)
        lines = chunk.splitlines()
        if not chunk.endswith((b"\n", b"\r")):
            self._hold(lines.pop())
        return lines

    def _take(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                self._keep(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":  # a field without a colon is an empty one
                self._keep(b"")
            elif not line and self._data:
                event = self._end_event()
                if event == _DONE:
                    self.done = True
                    break
                events.append(event)
        return events

    def _hold(self, part: bytes) -> None:
        self._line += part
        self._check_size()

    def _keep(self, value: bytes) -> None:
        self._data.append(value)
        self._size += len(value) + 1
        self._check_size()

    def _check_size(self) -> None:
        if self._size + len(self._line) > self._max_bytes:
            raise WorkerProtocolError(f"the server sent an event of more than {self._max_bytes:,} bytes")

    def _end_event(self) -> bytes:
        event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        return event
