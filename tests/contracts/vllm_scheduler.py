"""vLLM's scheduler without a model: some answers at once, the rest in a queue, a token each in every step."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from tests.contracts.wire import DONE, FakeServer, Request, answer, listening, stream, write_chunk

STEP_S = 0.002


@dataclass(order=True, slots=True)
class Sequence:
    """One answer in the making; the lowest rank goes first."""

    rank: tuple[int, int]
    index: int = field(compare=False)
    tokens_left: int = field(compare=False)
    request: Request = field(compare=False)
    chunks: asyncio.Queue[dict[str, Any]] = field(compare=False)


class SchedulingServer(FakeServer):
    """`slots` answers at a time, the urgent ones first if it knows `priorities`."""

    def __init__(self, *, slots: int, priorities: bool) -> None:
        super().__init__()
        self.slots = slots
        self.priorities = priorities
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.asked = 0
        self._arrivals = count()

    async def respond(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.body is not None:
            await self._generate(request, writer)
        elif request.path == "/metrics":
            running, waiting = len(self.running), len(self.waiting)
            lines = f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n"
            await answer(200, lines.encode())(writer)
        elif request.path in {"/health", "/v1/models"}:
            await answer(200, {"data": [{"id": "tiny"}]})(writer)
        else:
            await answer(404, {"detail": "Not Found"})(writer)

    async def work(self) -> None:
        """Step for ever, as an engine does."""
        while True:
            await asyncio.sleep(STEP_S)
            self.waiting = [sequence for sequence in self.waiting if not sequence.request.left.is_set()]
            heapq.heapify(self.waiting)
            while self.waiting and len(self.running) < self.slots:
                self.running.append(heapq.heappop(self.waiting))
            for sequence in self.running:
                sequence.tokens_left -= 1
                reason = None if sequence.tokens_left else "length"
                choice = {"index": sequence.index, "text": " a", "finish_reason": reason}
                sequence.chunks.put_nowait({"choices": [choice]})
            self.running = [
                sequence
                for sequence in self.running
                if sequence.tokens_left and not sequence.request.left.is_set()
            ]

    async def _generate(self, request: Request, writer: asyncio.StreamWriter) -> None:
        body = request.body
        self.asked += 1
        priority = body.get("priority", 0) if self.priorities else 0
        chunks: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        unfinished = body.get("n", 1)
        for index in range(unfinished):
            rank = (priority, next(self._arrivals))
            heapq.heappush(self.waiting, Sequence(rank, index, body["max_tokens"], request, chunks))
        await stream(end=False)(writer)
        while unfinished and not request.left.is_set():
            with suppress(TimeoutError):
                said = [await asyncio.wait_for(chunks.get(), 10 * STEP_S)]
                while not chunks.empty():
                    said.append(chunks.get_nowait())
                for chunk in said:
                    unfinished -= chunk["choices"][0]["finish_reason"] is not None
                    write_chunk(writer, chunk)
                await writer.drain()
        write_chunk(writer, DONE)
        writer.write(b"0\r\n\r\n")


@asynccontextmanager
async def scheduling(server: SchedulingServer) -> AsyncIterator[SchedulingServer]:
    """Let it listen and work."""
    work = asyncio.create_task(server.work())
    async with listening(server):
        yield server
    work.cancel()
    await asyncio.wait([work])
