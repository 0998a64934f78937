"""Writes what happens to one attempt: its events, and its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scheduler.logs import ids_of
from scheduler.model import JobState
from scheduler.queue.records import ClaimedJob, Ending, Publication, Return
from scheduler.results.encoding import EventEncoder, encode_error
from scheduler.results.gathered import GatheredChoice
from workers.base import Piece
from workers.errors import EngineError

if TYPE_CHECKING:
    from scheduler.results.writer import EventWriter

logger = logging.getLogger(__name__)

COALESCE_S = 0.02
"""The shortest time between two writes of one job's deltas."""
EVENTS_A_DOUBLING = 2000
"""That time doubles after every this many events, so that a long stream stays bounded."""
EVENT_CHARS = 64 << 10
"""The most text in one event. Longer pieces, and those gathered while Redis was away, are split."""


class JobWriter:
    """Writes the events and the end of one attempt. Its methods never wait; after an end they do nothing."""

    __slots__ = (
        "_encode",
        "_events",
        "_gathered",
        "_reasonings",
        "_seq",
        "_taken_at",
        "_texts",
        "_tool_calls",
        "_worker",
        "_writer",
        "bytes",
        "code",
        "due",
        "end",
        "first_seq",
        "job",
        "queued",
        "refused",
        "streamed",
        "used_tokens",
    )

    def __init__(self, writer: EventWriter, job: ClaimedJob, worker: str) -> None:
        self._writer = writer
        self._worker = worker
        self._encode = EventEncoder(job.id, job.token, job.attempt)
        self._events: list[bytes] = []
        self._texts: list[str] = []
        self._reasonings: list[str] = []
        self._tool_calls: list[Mapping[str, Any]] = []
        self._gathered: dict[int, GatheredChoice] = {}  # what few answers have: other choices, more fields
        self._seq = 0
        self._taken_at = 0.0  # when events were last written, on the event loop's clock
        self.job = job
        self.first_seq = 1
        self.end: Ending | Return | None = None
        self.code = ""  # the code of the error that the attempt ended with
        self.queued = False  # whether it is on the writer's ready list
        self.refused = False  # the token is no longer valid: nothing is written any more
        self.streamed = False
        self.due: int | None = None  # the tick with which gathered deltas are written
        self.bytes = 0
        self.used_tokens: int | None = None  # the attempt's cost, for the limits; set it before the end

    def started(self) -> None:
        """The attempt has begun."""
        if self.end is None:
            self._events.append(self._encode.started(self._next_seq(), self._worker))
            self._writer.wake(self)

    def piece(self, piece: Piece) -> None:
        """The next piece of the answer. It is gathered if events have just been written."""
        if self.end is not None or self.refused:
            return
        _, text, reasoning, tool_calls, choice, extra = piece
        if choice or extra:
            size = self._gather_more(piece)
        else:
            if text:
                self._texts.append(text)
            if reasoning:
                self._reasonings.append(reasoning)
            if tool_calls:
                self._tool_calls += tool_calls
            size = len(text) + len(reasoning) + 100 * len(tool_calls)
        self.bytes += size
        self._writer.pending_bytes += size
        if not self.streamed:
            self.streamed = True
            self._writer.wake(self)
        elif not self.queued and self.due is None:
            wait_s = COALESCE_S * 2 ** (self._seq // EVENTS_A_DOUBLING)
            self._writer.wake_at(self, self._taken_at + wait_s)

    def _gather_more(self, piece: Piece) -> int:
        """A piece of another choice, or one with more fields: events of their own gather these."""
        if not piece.choice:
            self._gather()
        gathered = self._gathered.get(piece.choice)
        if gathered is None:
            gathered = self._gathered[piece.choice] = GatheredChoice()
        return gathered.add(piece)

    def done(self, result: bytes) -> None:
        """The job is done; `result` is the JSON of its `JobResult`."""
        if self.end is None:
            self._end(JobState.DONE, self._encode.done(self._close()), result)

    def failed(self, code: str, message: str, engine_error: EngineError | None = None) -> None:
        """The job has failed for good."""
        if self.end is None:
            self.code = code
            error = encode_error(code, message, engine_error)
            self._end(JobState.FAILED, self._encode.failed(self._close()), error, reason=code)

    def expired(self) -> None:
        """The job's deadline has passed."""
        if self.end is None:
            self._end(JobState.EXPIRED, self._encode.expired(self._close()), reason="deadline")

    def retry(
        self,
        code: str,
        message: str,
        *,
        delay_ms: int,
        counts: bool,
        wait_ms: int | None = None,
        engine_error: EngineError | None = None,
    ) -> None:
        """The job returns to its lane after `delay_ms`. `counts`: the attempt counts as a failure.

        `wait_ms` is the delay that readers see, if it is longer: the job then waits in its lane.
        """
        if self.end is None:
            self.code = code
            error = encode_error(code, message, engine_error)
            event = self._encode.retrying(self._close(), error, delay_ms if wait_ms is None else wait_ms)
            self.end = Return(self.job.id, self.job.token, event, counts, delay_ms, error, self.used_tokens)
            self._writer.wake(self)

    def take(self) -> Publication | None:
        """Take the events to write now. An `end` has events of its own, and is written after these."""
        publication = None
        if self.end is None:
            self._gather()
        if self._events:
            self._taken_at = asyncio.get_running_loop().time()
            publication = Publication(self.job.id, self.job.token, *self._take_events())
        self._writer.pending_bytes -= self.bytes
        self.bytes = 0
        return publication

    def _take_events(self) -> tuple[int, tuple[bytes, ...]]:
        first_seq, events = self.first_seq, tuple(self._events)
        self.first_seq += len(events)
        self._events.clear()
        return first_seq, events

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _gather(self) -> None:
        if self._texts or self._reasonings or self._tool_calls:
            text, reasoning = "".join(self._texts), "".join(self._reasonings)
            text, reasoning = self._add_long(text, reasoning)
            self._add_delta(text, reasoning, self._tool_calls)
            self._texts.clear()
            self._reasonings.clear()
            self._tool_calls.clear()
        if self._gathered:
            gathered, self._gathered = self._gathered, {}
            for index, choice in gathered.items():
                text, reasoning = "".join(choice.texts), "".join(choice.reasonings)
                text, reasoning = self._add_long(text, reasoning, index=index)
                self._add_delta(text, reasoning, choice.tool_calls, index=index, extra=choice.extra)

    def _add_long(self, text: str, reasoning: str, *, index: int = 0) -> tuple[str, str]:
        """Add events while there is more than fits one; returns the rest."""
        while len(text) > EVENT_CHARS or len(reasoning) > EVENT_CHARS:
            self._add_delta(text[:EVENT_CHARS], reasoning[:EVENT_CHARS], (), index=index)
            text, reasoning = text[EVENT_CHARS:], reasoning[EVENT_CHARS:]
        return text, reasoning

    def _add_delta(
        self,
        text: str,
        reasoning: str,
        tool_calls: Sequence[Mapping[str, Any]],
        *,
        index: int = 0,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            event = self._encode.delta(self._seq + 1, text, reasoning, tool_calls, index=index, extra=extra)
        except (TypeError, ValueError, RecursionError) as error:
            # A model worker's mistake must stop neither the other jobs' writes nor this job's end.
            logger.error(
                "job %s: a piece of its answer cannot be written as JSON and is left out (%s)",
                self.job.id,
                type(error).__name__,
                extra=ids_of(self.job),
            )
        else:
            self._seq += 1
            self._events.append(event)

    def _close(self) -> int:
        """Put gathered deltas before the end, and return the seq of the end."""
        self._gather()
        return self._next_seq()

    def _end(self, state: JobState, head: bytes, value: bytes = b"", *, reason: str = "") -> None:
        job = self.job
        first_seq, events = self._take_events()
        ttl_ms = job.result_ttl_ms or self._writer.result_ttl_ms
        self.end = Ending(
            job.id, job.token, state, first_seq, events, head, value, reason, ttl_ms, self.used_tokens
        )
        self.bytes += len(value)
        self._writer.pending_bytes += len(value)
        self._writer.wake(self)
