"""Listens to the jobs' channels: counts tokens, and keeps the text of each answer so far."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from redis.asyncio import Redis

from scheduler.events import Delta, Done, Event, Retrying, Started, decode_event
from scheduler.model import JobInfo
from scheduler.queue import PromptQueue

RATE_OVER_S = 3.0
CHARS_A_TOKEN = 5


@dataclass(frozen=True, slots=True)
class Stream:
    """One answer that is being streamed."""

    priority: int
    text: str


class Listener:
    """Takes the events of all jobs. Tokens are estimated from the text until the engine has counted them."""

    def __init__(self) -> None:
        self.tokens = 0
        self._texts: dict[str, str] = {}
        self._estimated: Counter[str] = Counter()
        self._recent: deque[tuple[float, int]] = deque()
        self._followed: JobInfo | None = None

    async def listen(self, redis: Redis, queue: PromptQueue) -> None:
        """Follow the channels of all jobs. Runs until it is cancelled."""
        async with redis.pubsub() as pubsub:
            await pubsub.psubscribe(queue.channel("*"))
            async for message in pubsub.listen():
                if message["type"] == "pmessage":
                    self.add(decode_event(message["data"]))

    def add(self, event: Event) -> None:
        """Add an event of any job."""
        if isinstance(event, Started | Retrying):
            self._texts[event.job_id] = ""
        elif isinstance(event, Delta):
            self._texts[event.job_id] = self._texts.get(event.job_id, "") + event.text
            estimate = len(event.text) // CHARS_A_TOKEN
            self._estimated[event.job_id] += estimate
            self._count(estimate)
        elif isinstance(event, Done):
            self._count((event.result.usage.output_tokens or 0) - self._estimated.pop(event.job_id, 0))

    def _count(self, tokens: int) -> None:
        self.tokens += tokens
        self._recent.append((time.monotonic(), tokens))

    @property
    def per_second(self) -> float:
        """Tokens per second, over the last seconds."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RATE_OVER_S:
            self._recent.popleft()
        return max(0, sum(tokens for _, tokens in self._recent)) / RATE_OVER_S

    def follow(self, running: Sequence[JobInfo]) -> Stream | None:
        """One answer to show: the same one to its end, unless a more urgent one has begun."""
        followed = self._followed
        speaking = [job for job in running if self._texts.get(job.id)]
        best = max(speaking, key=lambda job: (job.priority, job.started_at_ms or 0), default=None)
        ended = followed is None or all(job.id != followed.id for job in speaking)
        if best and (followed is None or ended or best.priority > followed.priority):
            followed = self._followed = best
        return Stream(followed.priority, self._texts.get(followed.id, "")) if followed else None
