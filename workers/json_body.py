"""A JSON body where an event stream was expected: one document, or one object a line."""

from __future__ import annotations

import orjson


class JsonBody:
    """Collects the chunks of a JSON body.

    Checking whether it is complete costs, over all chunks, at most a few times as much as parsing it once.
    """

    __slots__ = ("_before", "_checked", "_one_document", "_parts", "size")

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._checked = 0  # bytes checked, over all checks
        self._before = b""  # the last byte of the previous chunk
        self._one_document = False

    def add(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._parts.append(chunk)
        self.size += len(chunk)

    def is_lines(self) -> bool:
        """Whether the first line is an object and the next line begins another."""
        chunk = self._before + self._parts[-1]
        self._before = chunk[-1:]
        if self._one_document or b"\n{" not in chunk:
            return False
        first, _, _ = self.bytes().partition(b"\n{")
        self._one_document = not _is_json(first)
        return not self._one_document

    def is_whole(self) -> bool:
        """Whether the document is known to be complete."""
        if not self._parts[-1].rstrip().endswith((b"}", b"]")) or self._checked > 4 * self.size:
            return False
        self._checked += self.size
        return _is_json(self.bytes())

    def bytes(self) -> bytes:
        """The body so far."""
        return b"".join(self._parts)


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True
