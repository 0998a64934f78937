"""Joins characters beyond U+FFFF whose halves an engine sent separately.

A tokenizer may cut an emoji in two, and JSON can write each half as an escape: `"\\ud83d"`, then
`"\\ude00"`. The halves are joined across pieces; a half that stays alone becomes U+FFFD.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from workers.base import Output, Piece

REPLACEMENT = "\ufffd"

_HALF = re.compile("[\ud800-\udfff]")
_FIRST_HALF = re.compile("[\ud800-\udbff]$")


class SurrogateJoiner:
    """Joins halves across the pieces of each member, in text, reasoning and the arguments of tool calls."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, str], str] = {}  # member and place -> the first half

    def mend(self, outputs: Iterable[Output]) -> Iterator[Output]:
        """The outputs with whole characters; a first half is held back until the second comes."""
        for output in outputs:
            if not isinstance(output, Piece):
                yield from self._left(output.member)
                yield output
            elif self._held or output.reasoning or output.tool_calls or not output.text.isascii():
                mended = self._mended(output)
                if mended.text or mended.reasoning or mended.tool_calls:
                    yield mended
            else:
                yield output

    def _mended(self, piece: Piece) -> Piece:
        member = piece.member
        return Piece(
            member,
            self._joined((member, "text"), piece.text),
            self._joined((member, "reasoning"), piece.reasoning),
            tuple(self._mended_call(member, call) for call in piece.tool_calls),
        )

    def _mended_call(self, member: int, call: Mapping[str, Any]) -> Mapping[str, Any]:
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
            return call
        place = (member, str(call.get("index")))
        return {**call, "function": {**function, "arguments": self._joined(place, function["arguments"])}}

    def _joined(self, place: tuple[int, str], text: str) -> str:
        if not text:
            return text
        text = self._held.pop(place, "") + text
        if text.isascii() or not _HALF.search(text):
            return text
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
        if _FIRST_HALF.search(text):
            self._held[place] = text[-1]
            text = text[:-1]
        return _HALF.sub(REPLACEMENT, text)

    def _left(self, member: int) -> Iterator[Piece]:
        """Replacements for the halves whose other half did not come."""
        if (member, "reasoning") in self._held:
            yield Piece(member, reasoning=REPLACEMENT)
        if (member, "text") in self._held:
            yield Piece(member, REPLACEMENT)
        for _, place in [key for key in self._held if key[0] == member and key[1].isdigit()]:
            yield Piece(member, tool_calls=({"index": int(place), "function": {"arguments": REPLACEMENT}},))
        self._held = {key: half for key, half in self._held.items() if key[0] != member}
