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
        # Member, choice and place -> the first half
        self._held: dict[tuple[int, int, str], str] = {}

    def mend(self, outputs: Iterable[Output]) -> Iterator[Output]:
        """The outputs with whole characters; a first half is held back until the second comes."""
        for output in outputs:
            if not isinstance(output, Piece):
                yield from self._left(output.member)
                yield output
            elif self._held or output.reasoning or output.tool_calls or not output.text.isascii():
                mended = self._mended(output)
                if mended.text or mended.reasoning or mended.tool_calls or mended.extra:
                    yield mended
            else:
                yield output

    def _mended(self, piece: Piece) -> Piece:
        answer = (piece.member, piece.choice)
        text = self._joined((*answer, "text"), piece.text)
        extra = piece.extra
        if extra and "refusal" in extra:  # it repeats the text
            extra = {**extra, "refusal": text}
        return Piece(
            piece.member,
            text,
            self._joined((*answer, "reasoning"), piece.reasoning),
            tuple(self._mended_call(answer, call) for call in piece.tool_calls),
            piece.choice,
            extra,
        )

    def _mended_call(self, answer: tuple[int, int], call: Mapping[str, Any]) -> Mapping[str, Any]:
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
            return call
        place = (*answer, str(call.get("index")))
        return {**call, "function": {**function, "arguments": self._joined(place, function["arguments"])}}

    def _joined(self, place: tuple[int, int, str], text: str) -> str:
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
        held = [(choice, place) for of, choice, place in self._held if of == member]
        for choice, place in sorted(held, key=lambda key: (key[0], key[1].isdigit(), key[1])):
            if place == "reasoning":
                yield Piece(member, reasoning=REPLACEMENT, choice=choice)
            elif place == "text":
                yield Piece(member, REPLACEMENT, choice=choice)
            elif place.isdigit():
                call = {"index": int(place), "function": {"arguments": REPLACEMENT}}
                yield Piece(member, tool_calls=(call,), choice=choice)
        self._held = {key: half for key, half in self._held.items() if key[0] != member}
