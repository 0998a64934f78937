"""Bodies that are JSON, cut anywhere."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from workers.json_body import JsonBody


def looks(chunks: Iterable[bytes]) -> list[tuple[bool, bool]]:
    """Whether it is lines, and whole, after each chunk."""
    body = JsonBody()
    found = []
    for chunk in chunks:
        body.add(chunk)
        found.append((body.is_lines(), body.is_whole()))
    return found


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(
    "data", [b'{"a": [1, {}]}', b'[{"a": 1}]\n', b'{\n  "a": {\n"b": "}"\n}\n}', b'{"a": "\\n{"}']
)
def test_document_is_whole_at_its_end_and_not_before(data: bytes) -> None:
    assert looks([data])[0] == (False, True)
    found = [whole for _, whole in looks(single(data.strip()))]
    assert found.index(True) == len(found) - 1


@pytest.mark.parametrize("data", [b'{"a":1}\n{"b":2}\n', b'{"a":1}\r\n{"b":2}'])
def test_lines_are_known_when_the_second_begins(data: bytes) -> None:
    assert looks([data])[0][0]
    found = [lines for lines, _ in looks(single(data))]
    assert found.index(True) == data.index(b'{"b"')


@pytest.mark.parametrize("data", [b'{\n"a":\n{\n}\n}', b"[\n{}\n]"])
def test_document_over_several_lines_is_one(data: bytes) -> None:
    assert not any(lines for lines, _ in looks(single(data)))


class Counting(JsonBody):
    """Counts the bytes that were looked at."""

    looked_at = 0

    def bytes(self) -> bytes:
        data = super().bytes()
        self.looked_at += len(data)
        return data


@pytest.mark.parametrize("part", [b"}", b",{}", b"\n{", b"{", b"[]"])
def test_looking_costs_no_more_than_a_few_times_reading(part: bytes) -> None:
    body = Counting()
    for chunk in [b"[", *[part] * 5000]:
        body.add(chunk)
        body.is_lines()
        body.is_whole()
    assert body.looked_at <= 7 * body.size
