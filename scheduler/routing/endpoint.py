"""An endpoint in this process: its model worker with batcher, window, breaker, limit and pause."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from scheduler.batching import Batcher, BatchPolicy, Flush, Member, Window
from scheduler.batching.kinds import BatchWorker
from scheduler.model import is_urgent
from scheduler.observations import NOBODY, BreakerChanged, CallBegan, Flushed, Observers
from scheduler.routing.breaker import Breaker, BreakerState
from scheduler.routing.call_patience import call_patience
from scheduler.routing.endpoint_call import EndpointCall
from scheduler.routing.headroom import Headroom
from scheduler.routing.limit import AdaptiveLimit, share_of
from scheduler.routing.pause import Pause
from scheduler.routing.recent_failures import RecentFailures
from scheduler.settings import EndpointSettings
from workers.errors import (
    ModelNotFound,
    RequestRejected,
    WorkerError,
    WorkerOverloaded,
    WorkerUnavailable,
)

logger = logging.getLogger(__name__)

UNKNOWN_CEILING = 256
UNKNOWN_START = 8
"""The ceiling, and the first limit, while neither the settings nor the back end give `max_in_flight`."""

MAX_ERROR_CHARS = 200


class Endpoint:
    """One base URL that serves a route in this process.

    All processes together give it at most `max_in_flight` prompts. This process has a share of that, and the
    limit adapts below the share. It gets no prompts while its breaker is open or during a pause that it asked
    for. `on_change` is called when any of this changes. `model` is the endpoint's own name for the model.
    `shared` is false for an endpoint inside this process; all others get nothing before `divide`. The
    `reserved` slots, a number or as many as urgent prompts need, are theirs: others are admitted only while
    more slots are free. Sessions are hashed with `identity`, which unlike the name stays the same when other
    endpoints are added or removed.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        settings: EndpointSettings,
        worker: BatchWorker,
        batch: BatchPolicy,
        max_in_flight: int | None = None,
        shared: bool = True,
        identity: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.model = model
        self.settings = settings
        self.worker = worker
        self.identity = identity or name
        self.weight = settings.weight
        self.shared = shared
        self.rate_limited = settings.is_limited
        self.on_change: Callable[[], None] = lambda: None
        self._observers = NOBODY
        self.in_doubt = asyncio.Event()  # the breaker suspects it, or is open: check the back end
        self.breaker = Breaker(
            settings.breaker, clock=clock, on_change=self._breaker_changed, on_suspicion=self.in_doubt.set
        )
        self.last_error = ""
        self._why = ""  # the same without the back end's own words, which may repeat a prompt
        self._said_unused = False
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._processes, self._index = (0 if shared else 1), 0
        self._adaptive = AdaptiveLimit(
            self.share, start=None if max_in_flight else UNKNOWN_START, clock=clock
        )
        self.limit = self._adaptive.value  # prompts that this process lets it hold while it is healthy
        self._pause = Pause(clock, on_over=self._changed)
        self._headroom = Headroom(self, clock, self._refit) if settings.reserved == "auto" else None
        self._failures = RecentFailures(clock)
        self.window = Window(max(1, self.limit))
        self._fit()
        self.batcher = Batcher(
            worker,
            batch,
            self.window,
            clock=clock,
            watcher=self,
            patience=call_patience(settings, streams=worker.capabilities.streaming),
        )

    # Capacity

    @property
    def max_in_flight(self) -> int | None:
        """The most prompts over all processes; None while unknown."""
        return self._max_in_flight

    @property
    def share(self) -> int:
        """This process's part of `max_in_flight`."""
        return self.share_among(self._processes, self._index)

    def share_among(self, processes: int, index: int) -> int:
        """The share of the process number `index`, from 0, among `processes`; 0 among none."""
        return self._part_of(self._total, processes, index)

    @property
    def _total(self) -> int:
        return self._max_in_flight or UNKNOWN_CEILING

    def _part_of(self, total: int, processes: int, index: int) -> int:
        return share_of(total, processes=processes, index=index, name=self.name) if processes else 0

    @property
    def reserved(self) -> int:
        """The part of its share that is for urgent prompts only; over all processes never every slot."""
        if self._headroom is not None:
            return self._headroom.kept
        return self._part_of(min(int(self.settings.reserved), self._total - 1), self._processes, self._index)

    @property
    def kept(self) -> int:
        """How many slots are kept free for urgent prompts now.

        A lowered limit still leaves a slot for other prompts, unless the whole share is reserved.
        """
        reserved = self.reserved
        return min(reserved, self.limit if reserved == self.share else max(0, self.limit - 1))

    @property
    def outstanding(self) -> int:
        """How many prompts it holds, plus those gathered for it here."""
        return self.window.in_flight + self.batcher.gathered

    @property
    def burden(self) -> float:
        """The load by which endpoints are chosen: outstanding prompts, and calls that failed recently.

        Else the one that fails at once would always look the least busy, and get what the others could do.
        """
        return self.outstanding + self._failures.weight

    @property
    def room(self) -> int:
        """How many more prompts could be sent without waiting for a slot."""
        return max(0, self.limit - self.outstanding) if self.admits else 0

    def room_for(self, priority: int) -> int:
        """How many more prompts of that priority could be sent without waiting for a slot."""
        return self.room if is_urgent(priority) else max(0, self.room - self.kept)

    @property
    def may_start(self) -> int:
        """How many more prompts that are not urgent may be claimed: its room, or less if it staggers them."""
        free = max(0, self.room - self.kept)
        return free if self._headroom is None else self._headroom.may_start(free)

    @property
    def admits(self) -> bool:
        """Whether it accepts prompts now, even if they wait for a slot."""
        return self.limit > 0 and self.breaker.admits and not self._pause.lasts

    @property
    def paused(self) -> bool:
        """Whether it has asked for a wait that is not over."""
        return self._pause.lasts

    @property
    def usable_in_s(self) -> float:
        """Seconds until it may be used again; 0 for now."""
        at = self._pause.until
        if self.breaker.state is BreakerState.OPEN:
            at = max(at, self.breaker.probe_at)
        return max(0.0, at - self._clock())

    def holds(self, max_in_flight: int) -> None:
        """The back end reports how many prompts it can hold; the settings take precedence."""
        if self.settings.max_in_flight is None and max_in_flight != self._max_in_flight:
            logger.info("endpoint %s holds %d prompts at once", self.name, max_in_flight)
            self._max_in_flight = max_in_flight
            self._adaptive = AdaptiveLimit(self.share, clock=self._clock)
            self._set_limit()

    def divide(self, processes: int, index: int) -> None:
        """Take the share of process number `index`, from 0, among `processes`; 0 among none."""
        if (processes, index) != (self._processes, self._index):
            self._processes, self._index = processes, index
            self._adaptive.ceiling = self.share
            self._set_limit()

    def crowded(self) -> None:
        """Its engine has a queue of its own: lower the limit."""
        self._adaptive.crowded()
        self._set_limit()

    def pause(self, wait_s: float) -> None:
        """Send it nothing for `wait_s` seconds, as it asked."""
        if self._pause.begin(wait_s):
            self._turn_away()
            self._changed()

    def end_pause(self) -> None:
        """End the pause that it asked for now."""
        if self._pause.end():
            self._changed()

    # Its calls: see batching.runner.CallWatcher

    def call_began(self, members: Sequence[Member] = ()) -> EndpointCall:
        """A call begins."""
        call = EndpointCall(self.name, self.breaker.begin(), self._clock(), self._is_full)
        if members and self._headroom is not None:
            self._headroom.call_began(call, members)
        if (tell := self._observers.call_began) is not None:
            settings, prompts = self.settings, [member.work for member in members]
            tell(CallBegan(call, self.name, settings.backend, settings.base_url, prompts))
        return call

    def call_given_up(self, call: Any) -> None:
        """All callers have left the call, which says nothing about the endpoint."""
        call.given_up = True
        self._report_end(call)

    @property
    def _is_full(self) -> bool:
        """Whether it is full enough that a success shows it can take more.

        Slots kept for urgent prompts are mostly empty, so it is enough that the others are full, unless a
        lowered limit has left them next to nothing.
        """
        window = self.window
        proven = self.limit > self.reserved or 2 * window.in_flight >= self.limit
        return window.free == 0 or (window.free <= window.kept and proven)

    def call_ended(self, call: Any, prompts: int, error: WorkerError | None) -> None:
        """A call has ended, with or without an error."""
        call.error = error
        self._report_end(call)
        if isinstance(error, WorkerOverloaded):
            self._adaptive.overloaded(call.began_at)
            self._set_limit()
            self.pause(self._pause.overload_s(call.began_at, error.retry_after_s))
        elif error is None:
            self._pause.succeeded()
            self._adaptive.succeeded(prompts, full=call.full)
            self._set_limit()
        ok = error is None or isinstance(error, WorkerOverloaded | RequestRejected)
        if error is not None and not ok:
            self.failed(str(error), log_text=error.log_text or error.code)
        self._failures.record(error)
        self.breaker.record(call.epoch, ok=ok)
        if isinstance(error, ModelNotFound):
            self.breaker.suspect()

    def checked(self, *, well: bool) -> None:
        """It was sent a known good prompt while suspected or half open."""
        self.breaker.checked(well=well)
        if well:
            self._failures.clear()  # the requests were at fault, or the failures are over

    def _report_end(self, call: EndpointCall) -> None:
        if self._headroom is not None and self._headroom.active:
            self._headroom.call_ended(call)
        if (tell := self._observers.call_ended) is not None:
            call.ended_at = self._clock()
            tell(call)

    def failed(self, words: str, *, log_text: str | None = None) -> None:
        """Note a failure. Administrators see `words`; logs get `log_text`, which repeats no prompt."""
        self.last_error = words[:MAX_ERROR_CHARS]
        self._why = (words if log_text is None else log_text)[:MAX_ERROR_CHARS]

    def observe_with(self, observers: Observers) -> None:
        """Report calls, batches and breaker changes to these observers."""
        self._observers = observers
        self.batcher.on_flush = self._flushed if observers.flushed is not None else None

    async def aclose(self) -> None:
        """Abort its calls and close its connections. Safe to call twice."""
        self._pause.cancel()
        if self._headroom is not None:
            self._headroom.cancel()
        await self.batcher.aclose()
        await self.worker.aclose()

    def _flushed(self, flush: Flush) -> None:
        if (tell := self._observers.flushed) is not None:
            tell(Flushed(self.name, flush))

    def _breaker_changed(self, state: BreakerState) -> None:
        if (tell := self._observers.breaker_changed) is not None:
            tell(BreakerChanged(self.name, state.value))
        if state is BreakerState.OPEN:
            self.in_doubt.set()
            # A failed probe changes nothing worth a line in the log.
            logger.log(
                logging.DEBUG if self._said_unused else logging.WARNING,
                "endpoint %s is unused for %.3g s: %s",
                self.name,
                self.usable_in_s,
                self._why,
            )
            self._said_unused = True
            self._turn_away()
        if state is BreakerState.CLOSED:
            self.last_error = self._why = ""
            self._said_unused = False
            logger.info("endpoint %s is well again", self.name)
        self._refit()

    def _turn_away(self) -> None:
        """Release gathered prompts to other endpoints, not counted as failures: waiting here has no use."""
        self.batcher.turn_away(
            WorkerUnavailable(f"endpoint {self.name} is unused for now", retry_after_s=self.usable_in_s)
        )

    def _set_limit(self) -> None:
        """Apply changes of the adaptive limit, its ceiling or the reserved part."""
        self.limit = self._adaptive.value
        if (self.limit, self.kept) == self._slots:
            return
        self._refit()

    def _fit(self) -> None:
        """Apply the limit and the kept slots to the window.

        The window keeps at least one slot, so that prompts already here get through.
        """
        self._slots = self.limit, self.kept
        self.window.limit = max(1, self.limit)
        self.window.kept = min(self.kept, self.window.limit - 1)

    def _refit(self) -> None:
        self._fit()
        self._changed()

    def _changed(self) -> None:
        self.on_change()
