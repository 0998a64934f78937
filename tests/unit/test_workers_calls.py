"""What adapters share in asking and reading."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from workers import Completed, Generation, Output, Piece
from workers.calls import refuse_chats_in_a_list, whole


async def test_answers_in_one_piece_each_keep_all_that_was_said() -> None:
    async def outputs() -> AsyncGenerator[Output, None]:
        yield Piece(1, "b")
        yield Piece(0, reasoning="h", tool_calls=({"index": 0},))
        yield Piece(0, "a", reasoning="m", tool_calls=({"index": 1},))
        yield Completed(2, "stop")
        yield Completed(0, "stop")
        yield Completed(1, "stop")

    assert [output async for output in whole(outputs())] == [
        Completed(2, "stop"),
        Piece(0, "a", "hm", ({"index": 0}, {"index": 1})),
        Completed(0, "stop"),
        Piece(1, "b"),
        Completed(1, "stop"),
    ]


async def test_closing_the_whole_answer_closes_the_streamed_one() -> None:
    closed = []

    async def outputs() -> AsyncGenerator[Output, None]:
        try:
            yield Completed(0, "stop")
            yield Completed(1, "stop")
        finally:
            closed.append(True)

    answers = whole(outputs())
    await anext(answers)
    await answers.aclose()
    assert closed == [True]


def test_chat_shares_no_call() -> None:
    chat = Generation("m", messages=())
    refuse_chats_in_a_list([chat])
    refuse_chats_in_a_list([Generation("m", prompt="a")] * 2)
    with pytest.raises(ValueError, match="one chat in a call"):
        refuse_chats_in_a_list([chat, chat])
