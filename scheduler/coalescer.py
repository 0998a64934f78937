"""What is asked for within a turn of the event loop shares round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

MAX_BYTES = 8 << 20


class _Asked(NamedTuple, Generic[Question, Answer]):
    question: Question
    reply: asyncio.Future[Answer]


class Coalescer(Generic[Question, Answer]):
    """Gathers questions and asks them together; who asks alone waits a turn of the event loop and no more.

    `ask_many` answers at most `chunk` questions, in order; an exception among the answers is that one's, and
    what it raises is every one's. Questions of one call have `MAX_BYTES` in all, as far as `size` tells.
    """

    def __init__(
        self,
        ask_many: Callable[[Sequence[Question]], Awaitable[Sequence[Answer | Exception]]],
        *,
        chunk: int,
        size: Callable[[Question], int] = lambda _: 0,
    ) -> None:
        self._ask_many = ask_many
        self._chunk = chunk
        self._size = size
        self._asked: list[_Asked[Question, Answer]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, question: Question) -> Answer:
        """Ask with the others of this turn. Who is cancelled meanwhile leaves the question to be asked."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._begin)
        reply: asyncio.Future[Answer] = loop.create_future()
        self._asked.append(_Asked(question, reply))
        return await reply

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        for chunk in self._chunks(asked):
            task = asyncio.create_task(self._call(chunk), name="coalesced call")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    def _chunks(self, asked: Sequence[_Asked[Question, Answer]]) -> Iterator[list[_Asked[Question, Answer]]]:
        chunk: list[_Asked[Question, Answer]] = []
        size = 0
        for one in asked:
            weight = self._size(one.question)
            if len(chunk) == self._chunk or (chunk and size + weight > MAX_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(one)
            size += weight
        yield chunk

    async def _call(self, asked: Sequence[_Asked[Question, Answer]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._ask_many([one.question for one in asked])
        except Exception as error:
            answers = [error] * len(asked)
        for one, answer in zip(asked, answers, strict=True):
            if one.reply.done():
                continue  # who asked has gone
            if isinstance(answer, Exception):
                one.reply.set_exception(answer)
            else:
                one.reply.set_result(answer)
