"""JSON where an event stream was asked for: one document, or one object a line."""

from __future__ import annotations

import orjson


class JsonBody:
    """Gathers the bytes of a body that is JSON, whatever it is cut into.

    Looking whether it is whole costs, over all chunks, no more than a few times what reading it does.
    """

    __slots__ = ("_before", "_looked_at", "_one_document", "_parts", "size")

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._looked_at = 0  # bytes, over all looks
        self._before = b""  # the last byte of the chunk before
        self._one_document = False

    def add(self, chunk: bytes) -> None:
        """Take in more of the body."""
        self._parts.append(chunk)
        self.size += len(chunk)

    def is_lines(self) -> bool:
        """Whether the first line is an object and another begins on the next."""
        chunk = self._before + self._parts[-1]
        self._before = chunk[-1:]
        if self._one_document or b"\n{" not in chunk:
            return False
        first, _, _ = self.bytes().partition(b"\n{")
        self._one_document = not _is_json(first)
        return not self._one_document

    def is_whole(self) -> bool:
        """Whether the document ends here, as far as it was looked at."""
        if not self._parts[-1].rstrip().endswith((b"}", b"]")) or self._looked_at > 4 * self.size:
            return False
        self._looked_at += self.size
        return _is_json(self.bytes())

    def bytes(self) -> bytes:
        """All that has come."""
        return b"".join(self._parts)


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return True
