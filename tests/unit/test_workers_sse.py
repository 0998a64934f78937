"""Server-sent events, cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.errors import WorkerProtocolError
from workers.sse import SseDecoder

STREAM = (
    b"\xef\xbb\xbfdata: one\n\n"
    b": a comment\n"
    b"event: delta\r\nid: 7\r\ndata:two\r\n\r\n"
    b"data: three\r\ndata:  four\r\ndata:\n\n"
    b"\n\n"
    b"data: gr\xc3\xbcn\r\r"
    b"retry: 10\n\n"
    b"data: last\n\n"
)
EVENTS = [b"one", b"two", b"three\n four\n", b"gr\xc3\xbcn", b"last"]


def test_events_of_one_read_come_together() -> None:
    assert SseDecoder().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_cuts_change_nothing(cuts: list[int]) -> None:
    decoder = SseDecoder()
    parts = [STREAM[start:end] for start, end in pairwise([0, *cuts, len(STREAM)])]
    assert [event for part in parts for event in decoder.feed(part)] == EVENTS


def test_single_bytes_change_nothing() -> None:
    decoder = SseDecoder()
    assert [event for byte in STREAM for event in decoder.feed(bytes([byte]))] == EVENTS


@given(st.binary(max_size=200), st.integers(0, 200))
def test_any_bytes_decode_alike_however_they_are_cut(stream: bytes, cut: int) -> None:
    whole, halves = SseDecoder(), SseDecoder()
    assert halves.feed(stream[:cut]) + halves.feed(stream[cut:]) == whole.feed(stream)


def test_unfinished_event_is_not_given_out() -> None:
    assert SseDecoder().feed(b"data: half") == []
    assert SseDecoder().feed(b"data: no blank line yet\n") == []


def test_done_ends_the_stream_and_is_no_event() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n\ndata: [DONE]\n\ndata: b\n\n") == [b"a"]
    assert decoder.done
    assert decoder.feed(b"data: c\n\n") == []


def test_line_without_end_is_bounded() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    for part in [b"data: ", b"x" * 50]:
        assert decoder.feed(part) == []
    with pytest.raises(WorkerProtocolError, match="more than 100 bytes"):
        decoder.feed(b"x" * 50)


def test_event_of_endless_lines_is_bounded() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    for _ in range(10):
        assert decoder.feed(b"data: 0123456789\n") == []
    with pytest.raises(WorkerProtocolError, match="more than 100 bytes"):
        decoder.feed(b"data: 0123456789\n")


def test_bound_is_for_one_event_and_not_for_the_stream() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    events = [
        event for _ in range(100) for part in (b"data: 01234", b"56789\n\n") for event in decoder.feed(part)
    ]
    assert events == [b"0123456789"] * 100
