"""The circuit breaker of an endpoint. Pure: the clock is passed in.

    closed ──too many failures──▶ suspected ──the check fails──▶ open ──the back end is ready──▶ half_open
      ▲ ▲                            │                             ▲                              │  │
      │ ╰─────the check succeeds─────╯                             ╰─the check fails: twice as ───╯  │
      │                                                                   long                       │
      ╰─────────────────────────────the check succeeds───────────────────────────────────────────────╯

A suspected breaker is still closed and admits prompts. A check sends a known good prompt that belongs to no
user: failures alone prove nothing, because the requests may be at fault.

Source: M. Nygard, "Release It!", 2nd ed., 2018, "Circuit Breaker".
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum

from scheduler.settings import BreakerSettings

SUSPECT_AGAIN_S = 0.5
"""How long an endpoint that passed a check is not suspected again, in seconds."""


class BreakerState(StrEnum):
    """`closed` admits prompts; `open` and `half_open` admit none. `half_open`: a check is in progress."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Watches the calls to one endpoint.

    Call `begin()` before each call to the endpoint and `record()` after it. The outcome of a call that began
    before the last change of state says nothing about the state now, and is ignored. `on_change` is called
    on each change of state, `on_suspicion` when the endpoint needs a check; report the check to `checked()`.
    """

    __slots__ = (
        "_clock",
        "_epoch",
        "_failures_in_row",
        "_on_change",
        "_on_suspicion",
        "_outcomes",
        "_recent_failures",
        "_reopened",
        "_settings",
        "_suspect_from",
        "probe_at",
        "state",
        "suspected",
    )

    def __init__(
        self,
        settings: BreakerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[BreakerState], None] = lambda _: None,
        on_suspicion: Callable[[], None] = lambda: None,
    ) -> None:
        self.state = BreakerState.CLOSED
        self.suspected = False  # closed, and waiting for a check
        self.probe_at = 0.0  # on the clock; valid while open
        self._settings = settings
        self._clock = clock
        self._on_change = on_change
        self._on_suspicion = on_suspicion
        self._epoch = 0
        self._suspect_from = -math.inf  # on the clock
        self._reopened = 0  # times in a row
        self._failures_in_row = 0
        self._recent_failures = 0
        self._outcomes: deque[tuple[float, bool]] = deque()

    @property
    def admits(self) -> bool:
        """Whether prompts may be sent now."""
        return self.state is BreakerState.CLOSED

    def begin(self) -> int:
        """A call begins. Pass the returned epoch to `record`."""
        return self._epoch

    def record(self, epoch: int, *, ok: bool) -> None:
        """A call has ended. `ok`: the endpoint did its part, even if it refused the request."""
        if epoch == self._epoch and self.state is BreakerState.CLOSED:
            self._count(ok)

    def suspect(self) -> None:
        """Ask for a check of the endpoint, unless it has just passed one."""
        if self.state is BreakerState.CLOSED and not self.suspected and self._clock() >= self._suspect_from:
            self.suspected = True
            self._on_suspicion()

    def trip(self) -> None:
        """Open at once: the back end is known not to be ready."""
        if self.state is BreakerState.CLOSED:
            self._open()

    def probed(self, *, ready: bool) -> None:
        """The back end was asked for its health while open. That is cheap, so the next probe follows soon."""
        if self.state is not BreakerState.OPEN:
            return
        if ready:
            self._enter(BreakerState.HALF_OPEN)
        else:
            self.probe_at = self._clock() + self._settings.open_s

    def checked(self, *, well: bool) -> None:
        """The back end was sent a known good prompt while suspected or half open."""
        if self.state is BreakerState.HALF_OPEN:
            self._close() if well else self._reopen()
        elif self.suspected and well:
            self._forget()
            self._suspect_from = self._clock() + SUSPECT_AGAIN_S
        elif self.suspected:
            self._open()

    def _count(self, ok: bool) -> None:
        now = self._clock()
        self._outcomes.append((now, ok))
        self._recent_failures += not ok
        while self._outcomes[0][0] < now - self._settings.window_s:
            self._recent_failures -= not self._outcomes.popleft()[1]
        self._failures_in_row = 0 if ok else self._failures_in_row + 1
        if not ok and (self._failures_in_row >= self._settings.failures or self._fails_too_often()):
            self.suspect()

    def _fails_too_often(self) -> bool:
        calls = len(self._outcomes)
        return (
            calls >= self._settings.min_calls and self._recent_failures >= self._settings.failure_rate * calls
        )

    def _open(self) -> None:
        open_s = self._settings.open_s * 2.0 ** min(self._reopened, 60)
        self.probe_at = self._clock() + min(open_s, max(self._settings.open_s, self._settings.max_open_s))
        self._enter(BreakerState.OPEN)

    def _reopen(self) -> None:
        self._reopened += 1
        self._open()

    def _close(self) -> None:
        self._reopened = 0
        self._enter(BreakerState.CLOSED)

    def _enter(self, state: BreakerState) -> None:
        self.state = state
        self._epoch += 1
        self._forget()
        self._on_change(state)

    def _forget(self) -> None:
        self.suspected = False
        self._failures_in_row = self._recent_failures = 0
        self._outcomes.clear()
