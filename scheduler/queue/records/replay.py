"""A job's events, read again."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.model import JobState

Cursor = tuple[int, int]
"""`(token, seq)` of the last event seen; `(0, 0)` before the first."""

START: Cursor = (0, 0)


@dataclass(frozen=True, slots=True)
class Replay:
    """A job's state and its events after a cursor, in one read."""

    state: JobState
    """The job's state."""
    events: tuple[bytes, ...]
    """Each a whole JSON object.

    If the job has ended and `more` is false, the last one is the terminal event, made from the record if the
    stream has gone; it is left out if the cursor is at or past it.
    """
    last: Cursor
    """The newest event that there is."""
    more: bool = False
    """Whether there are more events than were read."""
