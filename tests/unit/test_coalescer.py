"""Questions of one turn of the event loop, asked together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from scheduler import coalescer
from scheduler.coalescer import Coalescer


class Oracle:
    """Answers a number with its square; seven is beyond it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[list[int]] = []
        self.error = error

    async def ask_many(self, questions: Sequence[int]) -> Sequence[int | Exception]:
        self.asked.append(list(questions))
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return [ValueError("seven") if number == 7 else number * number for number in questions]


async def test_questions_of_one_turn_share_calls_of_bounded_length() -> None:
    oracle = Oracle()
    together = Coalescer(oracle.ask_many, chunk=3)
    assert await asyncio.gather(*(together.ask(n) for n in range(5))) == [0, 1, 4, 9, 16]
    assert oracle.asked == [[0, 1, 2], [3, 4]]


async def test_a_call_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalescer, "MAX_BYTES", 10)
    oracle = Oracle()
    together = Coalescer(oracle.ask_many, chunk=100, size=lambda number: number)
    await asyncio.gather(*(together.ask(n) for n in (4, 6, 1, 50, 2)))
    assert oracle.asked == [[4, 6], [1], [50], [2]]


async def test_who_asks_later_is_not_kept_by_a_call_that_is_under_way() -> None:
    oracle = Oracle()
    together = Coalescer(oracle.ask_many, chunk=3)
    first = asyncio.create_task(together.ask(1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert await together.ask(2) == 4
    assert await first == 1
    assert oracle.asked == [[1], [2]]


async def test_an_error_is_its_questions_own() -> None:
    together = Coalescer(Oracle().ask_many, chunk=3)
    good, bad = await asyncio.gather(together.ask(2), together.ask(7), return_exceptions=True)
    assert good == 4
    assert isinstance(bad, ValueError)


async def test_a_call_that_fails_fails_for_all() -> None:
    together = Coalescer(Oracle(ConnectionError("away")).ask_many, chunk=3)
    answers = await asyncio.gather(*(together.ask(n) for n in range(2)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError] * 2


async def test_who_has_gone_leaves_the_others_their_answers() -> None:
    together = Coalescer(Oracle().ask_many, chunk=3)
    gone = asyncio.create_task(together.ask(1))
    stays = asyncio.create_task(together.ask(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == 4
    assert gone.cancelled()
