"""A time limit for the reads of an answer, with one timer for all of them."""

from __future__ import annotations

import asyncio


class ReadTimer:
    """Cancels a read in progress when its time is up; between reads it cancels nothing.

    It does what `asyncio.timeout_at` around each read would do, without a timer for each read: the one timer
    checks the clock when it fires, and is set again if the limit has moved. Call `begin()` before each read
    and `end()` after it.
    """

    __slots__ = ("_at", "_before", "_fires_at", "_handle", "_loop", "_struck", "_task")

    def __init__(self, at: float) -> None:
        """`at` is the limit, on the clock of the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._at = at
        self._fires_at = at
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None  # the task that is reading
        self._before = 0  # its pending cancellations when the read began
        self._struck = False

    def move(self, at: float) -> None:
        """Change the limit."""
        self._at = at
        if self._handle is not None and at < self._fires_at:
            self._handle.cancel()
            self._set()

    def begin(self) -> None:
        """Note that a read begins in this task."""
        task = asyncio.current_task()
        self._task = task
        self._before = task.cancelling() if task is not None else 0
        if self._handle is None:
            self._set()

    def is_up(self) -> bool:
        """Whether the read was cancelled because its time is up, and for no other reason.

        Call it once, when a read ends with `asyncio.CancelledError`.
        """
        struck, self._struck = self._struck, False
        return struck and self._task is not None and self._task.uncancel() <= self._before

    def end(self) -> None:
        """Note that the read has ended."""
        if self._struck and self._task is not None:  # the data came in time after all
            self._task.uncancel()
        self._struck = False
        self._task = None

    def close(self) -> None:
        """Stop the timer. Safe to call twice."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _set(self) -> None:
        self._fires_at = self._at
        self._handle = self._loop.call_at(self._at, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if self._task is None:  # the next read sets it again
            return
        if self._loop.time() < self._at:
            self._set()
        else:
            self._struck = True
            self._task.cancel()
