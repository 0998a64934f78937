"""Calls made within one turn of the event loop share round trips."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")
Item = TypeVar("Item")

MAX_BYTES = 8 << 20
"""The most that one round trip carries, unless a single item is larger."""


class Chunks(Generic[Item]):
    """Gathers items that share a call: at most `most` items and `MAX_BYTES`, or one item that is larger."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self.left: list[Item] = []

    def add(self, item: Item, size: int) -> Sequence[Item]:
        """Add an item. Returns the chunk before it if that is full, else nothing; `left` has the rest."""
        if self.left and (len(self.left) == self._most or self._bytes + size > MAX_BYTES):
            full, self.left, self._bytes = self.left, [item], size
            return full
        self.left.append(item)
        self._bytes += size
        return ()


class _Asked(NamedTuple, Generic[Question, Answer]):
    question: Question
    reply: asyncio.Future[Answer]


class Coalescer(Generic[Question, Answer]):
    """Gathers questions and asks them together. A lone question waits for one turn of the event loop.

    `ask_many` answers at most `chunk` questions, in order. An exception among the answers is raised for that
    question; an exception that it raises is raised for all of them. `size` gives the bytes of a question, so
    that those of one call stay within `MAX_BYTES`.
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
        """Ask, together with the others of this turn. A cancelled caller's question is asked anyway."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._begin)
        reply: asyncio.Future[Answer] = loop.create_future()
        self._asked.append(_Asked(question, reply))
        return await reply

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        chunks: Chunks[_Asked[Question, Answer]] = Chunks(self._chunk)
        for one in asked:
            if full := chunks.add(one, self._size(one.question)):
                self._send(full)
        self._send(chunks.left)

    def _send(self, asked: Sequence[_Asked[Question, Answer]]) -> None:
        task = asyncio.create_task(self._call(asked), name="coalesced call")
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self, asked: Sequence[_Asked[Question, Answer]]) -> None:
        answers: Sequence[Answer | Exception]
        try:
            answers = await self._ask_many([one.question for one in asked])
        except Exception as error:
            answers = [error] * len(asked)
        for one, answer in zip(asked, answers, strict=True):
            if one.reply.done():
                continue  # the caller was cancelled
            if isinstance(answer, Exception):
                one.reply.set_exception(answer)
            else:
                one.reply.set_result(answer)
