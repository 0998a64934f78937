"""Server-sent events, cut anywhere."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterable
from contextlib import suppress
from itertools import pairwise, takewhile

import pytest
from hypothesis import given, settings
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


def decode_by_the_standard(stream: bytes) -> list[bytes]:
    """All events of a whole stream, in the words of the HTML standard and no faster than they are."""
    text = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *lines, _unfinished = text.split(b"\n")
    events: list[bytes] = []
    data = b""
    for line in lines:
        if not line:
            if data:
                events.append(data.removesuffix(b"\n"))
            data = b""
            continue
        field, _, value = line.partition(b":")
        if field == b"data":
            data += value.removeprefix(b" ") + b"\n"
    return events


FIELDS = st.sampled_from(
    [b"data:", b"data: ", b"data", b"", b"", b":", b"event:", b"id", b" data:", b"\xef\xbb\xbf"]
)
VALUES = st.sampled_from([b"", b"", b"x", b" ", b"[DONE]", "\u2028\u0085ü€😀".encode(), b"\x0b\x0c\x1c\x00"])
SHORT = st.binary(max_size=4).filter(lambda value: b"{" not in value)  # objects are ended by more than blanks
BREAKS = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\n\n", b""])
LINE = st.tuples(FIELDS, VALUES | SHORT, BREAKS).map(b"".join)
STREAMS = st.lists(LINE, max_size=20).map(b"".join)
CUTS = st.lists(st.integers(0, 60), max_size=40).map(sorted)


def cut_up(stream: bytes, cuts: list[int]) -> list[bytes]:
    return [stream[start:end] for start, end in pairwise([0, *cuts, max(len(stream), 60)])]


@settings(max_examples=500)
@given(STREAMS, CUTS)
def test_any_stream_cut_anywhere_decodes_as_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    events = decode_by_the_standard(stream)
    events = list(takewhile(lambda event: event.strip(b" \t") != b"[DONE]", events))
    decoder = SseDecoder()
    assert [event for part in cut_up(stream, cuts) for event in decoder.feed(part)] == events


@settings(max_examples=300)
@given(STREAMS, CUTS, st.integers(1, 40))
def test_no_event_is_longer_than_the_bound_however_it_is_cut(
    stream: bytes, cuts: list[int], bound: int
) -> None:
    decoder = SseDecoder(max_event_bytes=bound)
    with suppress(WorkerProtocolError):
        assert all(len(event) <= bound for part in cut_up(stream, cuts) for event in decoder.feed(part))


def test_unfinished_event_is_not_given_out() -> None:
    assert SseDecoder().feed(b"data: half") == []
    assert SseDecoder().feed(b"data: no blank line yet\n") == []


def test_done_ends_the_stream_and_is_no_event() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: a\n\ndata: [DONE]\n\ndata: b\n\n") == [b"a"]
    assert decoder.done
    assert decoder.feed(b"data: c\n\n") == []


@pytest.mark.parametrize("done", [b"data:[DONE]", b"data:  [DONE]", b"data: [DONE] ", b"data: [DONE]\t"])
def test_done_may_have_blanks_around_it(done: bytes) -> None:
    decoder = SseDecoder()
    assert decoder.feed(done + b"\n\ndata: a\n\n") == []
    assert decoder.done


@pytest.mark.parametrize(
    "stream",
    [
        b'data: {"a":1}\ndata: {"b":2}\ndata: [DONE]\n',
        b'data: {"a":1}\r\ndata: {"b":2}\r\n\r\ndata: [DONE]\r\n',
        b'{"a":1}\n{"b":2}\n\ndata: [DONE]\n\n',
        b'data: {"a":1}\n{"b":2}\ndata: [DONE]',
    ],
)
def test_objects_are_events_of_their_own_where_blank_lines_or_names_are_missing(stream: bytes) -> None:
    decoder = SseDecoder()
    assert decoder.feed(stream) + decoder.feed(b"\n\n") == [b'{"a":1}', b'{"b":2}']
    assert decoder.done


def test_object_over_several_lines_of_data_is_one_event() -> None:
    assert SseDecoder().feed(b'data: {"a": [\ndata: {"b":1}\ndata: ]}\n\n') == [b'{"a": [\n{"b":1}\n]}']


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (b"event: error\ndata: oh\n\n", b"oh"),
        (b"event:error\ndata:oh\n\n", b"oh"),
        (b"data: oh\nevent: error\n\n", b"oh"),
        (b"error: oh\n\n", b"oh"),
        (b"event: errors\ndata: a\n\n", None),
        (b"event: error\n\ndata: a\n\n", None),
    ],
)
def test_event_called_error_ends_the_stream(stream: bytes, error: bytes | None) -> None:
    decoder = SseDecoder()
    assert decoder.feed(stream + b"data: b\n\n") == ([] if error else [b"a", b"b"])
    assert decoder.error == error
    assert decoder.done is (error is not None)


def test_line_without_end_is_bounded() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    for part in [b"data: ", b"x" * 50]:
        assert decoder.feed(part) == []
    with pytest.raises(WorkerProtocolError, match="more than 100 bytes"):
        decoder.feed(b"x" * 50)


def test_bound_counts_what_an_event_has_and_the_line_that_has_not_ended() -> None:
    assert SseDecoder(max_event_bytes=100).feed(b"data:" + b"x" * 99 + b"\n\n") == [b"x" * 99]
    with pytest.raises(WorkerProtocolError):
        SseDecoder(max_event_bytes=100).feed(b"data:" + b"x" * 100 + b"\n\n")
    assert SseDecoder(max_event_bytes=100).feed(b"data:" + b"x" * 50 + b"\n" + b"y" * 49) == []
    with pytest.raises(WorkerProtocolError):
        SseDecoder(max_event_bytes=100).feed(b"data:" + b"x" * 50 + b"\n" + b"y" * 50)


def feed_all(decoder: SseDecoder, chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        decoder.feed(chunk)


@pytest.mark.parametrize("part", [b"x", b"data: x\n", b"data\n", b": x"])
def test_20_mb_that_never_end_take_no_more_memory_than_the_bound(part: bytes) -> None:
    decoder = SseDecoder(max_event_bytes=1_000_000)
    chunk = part * (65_536 // len(part))
    tracemalloc.start()
    try:
        with pytest.raises(WorkerProtocolError, match="more than 1,000,000 bytes"):
            feed_all(decoder, itertools.repeat(chunk, 20_000_000 // len(chunk)))
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_event_of_endless_lines_is_bounded() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    for _ in range(9):
        assert decoder.feed(b"data: 0123456789\n") == []
    with pytest.raises(WorkerProtocolError, match="more than 100 bytes"):
        decoder.feed(b"data: 0123456789\n")


def test_bound_is_for_one_event_and_not_for_the_stream() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    events = [
        event for _ in range(100) for part in (b"data: 01234", b"56789\n\n") for event in decoder.feed(part)
    ]
    assert events == [b"0123456789"] * 100


def test_an_event_may_be_as_long_as_the_bound() -> None:
    assert SseDecoder(max_event_bytes=100).feed(b"data: " + b"x" * 99 + b"\n\n") == [b"x" * 99]
    with pytest.raises(WorkerProtocolError, match="more than 100 bytes"):
        SseDecoder(max_event_bytes=100).feed(b"data: " + b"x" * 100 + b"\n\n")
