"""Halves of characters, sent apart."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers import Completed, Output, Piece
from workers.surrogates import SurrogateJoiner


def mended(*outputs: Output) -> list[Output]:
    joiner = SurrogateJoiner()
    return [output for part in outputs for output in joiner.mend([part])]


def halves(text: str) -> str:
    """The text as JSON's escapes give it where every half stands alone."""
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(chr(units[at] << 8 | units[at + 1]) for at in range(0, len(units), 2))


@given(st.text(), st.lists(st.integers(0, 40), max_size=8).map(sorted))
def test_any_text_cut_between_any_halves_is_whole_again(text: str, cuts: list[int]) -> None:
    units = halves(text)
    bounds = [0, *(min(cut, len(units)) for cut in cuts), len(units)]
    pieces = [Piece(0, units[a:b]) for a, b in pairwise(bounds)]
    *said, end = mended(*pieces, Completed(0, "stop"))
    assert "".join(piece.text for piece in said if isinstance(piece, Piece)) == text
    assert end == Completed(0, "stop")


@given(st.text(st.characters(codec=None)))
def test_nothing_that_is_no_text_comes_out(text: str) -> None:
    for output in mended(Piece(0, text, text), Completed(0, "stop")):
        if isinstance(output, Piece):
            (output.text + output.reasoning).encode()


def test_members_and_their_places_are_kept_apart() -> None:
    def call(index: int, arguments: str) -> Piece:
        return Piece(0, tool_calls=({"index": index, "function": {"arguments": arguments}},))

    assert mended(
        Piece(0, "a\ud83d"),
        Piece(1, "b\ud83d"),
        call(0, "c\ud83d"),
        Piece(0, reasoning="\ude00"),
        call(0, "\ude00"),
        Piece(1, "\ude00"),
        Completed(1, "stop"),
        call(1, "\ud83d"),
        Completed(0, "stop"),
    ) == [
        Piece(0, "a"),
        Piece(1, "b"),
        call(0, "c"),
        Piece(0, reasoning="\ufffd"),
        call(0, "😀"),
        Piece(1, "😀"),
        Completed(1, "stop"),
        call(1, ""),
        Piece(0, "\ufffd"),
        call(1, "\ufffd"),
        Completed(0, "stop"),
    ]
