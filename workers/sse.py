"""Decodes server-sent events from bytes as they arrive.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

from __future__ import annotations

from workers.errors import WorkerProtocolError

MAX_EVENT_BYTES = 8 * 1024 * 1024

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DONE = b"[DONE]"
_LONGEST_DONE = 32
_BLANKS = b" \t"  # tolerated around it
_UNUSUAL = (b"event:error", b"event: error", b"error:", b"{", b"data")


class SseDecoder:
    """Turns chunks of a byte stream, cut anywhere, into the data of its events.

    Of an event only `data` is read, and whether its name is `error`: LLM servers repeat other names in the
    data. After OpenAI's closing `[DONE]` or an error, `done` is true and the rest is ignored; `error` is the
    data of that error. An unfinished event at the end of the stream is not returned.

    Two omissions are tolerated: an object on a line of its own is an event without `data:`, and an object
    ends where the next line begins another.
    """

    __slots__ = (
        "_at_start",
        "_data",
        "_is_error",
        "_line",
        "_max_bytes",
        "_size",
        "_skip_newline",
        "done",
        "error",
    )

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.done = False
        self.error: bytes | None = None
        self._is_error = False
        self._max_bytes = max_event_bytes
        self._line = bytearray()  # an unfinished line
        self._data: list[bytes] = []
        self._size = 0  # bytes of the data, with a line break for each line
        self._skip_newline = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """Decode a chunk; return the data of the events that it completes.

        Raises:
            WorkerProtocolError: an event has more than `max_event_bytes`.
        """
        if self._skip_newline and chunk:  # the second half of a split CRLF
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
            chunk = chunk.removeprefix(BYTE_ORDER_MARK)
        lines = chunk.splitlines()
        if not chunk.endswith((b"\n", b"\r")):
            self._hold(lines.pop())
        return lines

    def _take(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                if self._data and self._begins_another(value):
                    self._end_event(events)
                self._keep(value)
            elif not line:
                if self._data:
                    self._end_event(events)
                else:
                    self._is_error = False
            elif line.startswith(_UNUSUAL):
                self._take_unusual(line, events)
            if self.done:
                break
        return events

    def _take_unusual(self, line: bytes, events: list[bytes]) -> None:
        if line == b"data":  # a field without a colon is an empty one
            self._keep(b"")
        elif line.startswith(b"error:"):  # llama-server, until 2025
            self._is_error = True
            self._keep(line[6:].strip())
        elif line.startswith(b"event:"):
            self._is_error = line[6:].strip() == b"error"
        elif line.startswith(b"{") and line.rstrip().endswith(b"}"):
            if self._data:
                self._end_event(events)
            self._keep(line)
            self._end_event(events)

    def _begins_another(self, value: bytes) -> bool:
        """Whether a blank line is missing before this data: no JSON continues like that after an object."""
        if not (self._data[0].startswith(b"{") and self._data[-1].endswith(b"}")):
            return False
        return value.startswith(b"{") or value.strip(_BLANKS) == _DONE

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

    def _end_event(self, events: list[bytes]) -> None:
        event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
        self._data.clear()
        self._size = 0
        if self._is_error:
            self.error = event
            self.done = True
        elif len(event) < _LONGEST_DONE and event.strip(_BLANKS) == _DONE:
            self.done = True
        else:
            events.append(event)
