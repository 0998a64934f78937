"""A job's events as they are read again."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.model import JobState

Cursor = tuple[int, int]
"""`(token, seq)` of the last event seen; `(0, 0)` before the first."""

START: Cursor = (0, 0)


@dataclass(frozen=True, slots=True)
class Replay:
    """A job's state and its events after a cursor, in one read.

    When the job has ended and `more` is false, the last of `events` is the terminal event, made from the
    record where the stream has gone, unless the cursor is at or past it. `last` is the newest event there is.
    """

    state: JobState
    events: tuple[bytes, ...]
    last: Cursor
    more: bool = False
