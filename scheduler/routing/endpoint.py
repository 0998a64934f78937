"""An endpoint at work in this process: its model worker, and all that stands between it and the prompts."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from scheduler.batching import Batcher, BatchPolicy, CallPatience, Flush, Member, Window
from scheduler.model import is_urgent
from scheduler.observations import NOBODY, BreakerChanged, CallBegan, Flushed, Observers
from scheduler.routing.breaker import Breaker, BreakerState
from scheduler.routing.limit import AdaptiveLimit, share_of
from scheduler.settings import EndpointSettings
from workers.base import ModelWorker
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
"""Where neither the settings nor the back end say how much it holds, this is tried at first."""

MAX_PAUSE_S = 3600.0
"""The longest wait that a back end can ask for."""

OVERLOAD_PAUSE_S, MAX_OVERLOAD_PAUSE_S = 0.25, 30.0
"""Pauses of one that does not say how long it is overloaded: the unit, which doubles, and the bound."""

EARLY_S = 0.001
"""A timer that was early is set again for so long at least."""

FAILURE_HALVES_S = 5.0
"""In a choice of endpoints a call that has failed weighs as one on its way, and half as much after this."""

REFUSAL_WEIGHS = 0.25
"""The same of a request that was refused: it may be at fault, or an endpoint that refuses them all."""

MAX_ERROR_CHARS = 200


class _Call:
    """A call on its way: when it began, the breaker's state then, and whether the window was full."""

    __slots__ = ("began_at", "ended_at", "endpoint", "epoch", "error", "full", "given_up")

    def __init__(self, endpoint: str, epoch: int, began_at: float, full: bool) -> None:
        self.endpoint = endpoint
        self.epoch = epoch
        self.began_at = self.ended_at = began_at
        self.full = full
        self.error: Exception | None = None
        self.given_up = False


class Endpoint:
    """One base URL that serves a route in this process.

    `max_in_flight` prompts, over all processes, of which this one has a share; below it the limit adapts.
    The breaker leaves the endpoint alone while it fails, a pause while it has asked for one. `on_change` is
    called when any of it has changed. `model` is the endpoint's own name for the model. `shared` is false
    for what lives in this process alone and is divided with nobody; others have nothing until `divide`.
    `reserved` of the `max_in_flight` are for urgent prompts: others come only while more places are free.
    `identity` tells it from others for sessions: unlike the name, it stays when others come or go.
    """

    def __init__(
        self,
        *,
        name: str,
        model: str,
        settings: EndpointSettings,
        worker: ModelWorker,
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
        self.breaker = Breaker(
            settings.breaker, clock=clock, on_change=self._breaker_changed, on_suspicion=self._suspected
        )
        self.in_doubt = asyncio.Event()  # it is suspected, or open: somebody has to check the back end
        self.last_error = ""
        self._why = ""  # the same, without what the back end has said: that may repeat a prompt
        self._left_alone = False
        self._clock = clock
        self._max_in_flight = max_in_flight
        self._processes, self._place = (0 if shared else 1), 0
        self._adaptive = AdaptiveLimit(
            self.share, start=None if max_in_flight else UNKNOWN_START, clock=clock
        )
        self.limit = self._adaptive.value  # prompts that this process lets it hold while it is well
        self._paused_until = 0.0
        self._overloads = 0  # one after the other, without a word of how long to wait
        self._failures, self._failed_at = 0.0, 0.0  # what failed calls weigh, as of then
        self._resume: asyncio.TimerHandle | None = None
        self.window = Window(max(1, self.limit))
        self._fit()
        self.batcher = Batcher(
            worker,
            batch,
            self.window,
            clock=clock,
            watcher=self,
            patience=_patience(settings, streams=worker.capabilities.streaming),
        )

    # What it may hold

    @property
    def max_in_flight(self) -> int | None:
        """The most prompts over all processes; None while nobody has said."""
        return self._max_in_flight

    @property
    def share(self) -> int:
        """The part of `max_in_flight` that is this process's."""
        return self.share_among(self._processes, self._place)

    def share_among(self, processes: int, place: int) -> int:
        """What the share of the process at `place` is among so many; 0 among none."""
        return self._part_of(self._total, processes, place)

    @property
    def _total(self) -> int:
        return self._max_in_flight or UNKNOWN_CEILING

    def _part_of(self, total: int, processes: int, place: int) -> int:
        return share_of(total, processes=processes, place=place, name=self.name) if processes else 0

    @property
    def reserved(self) -> int:
        """The part of its share that is for urgent prompts alone: of the whole always less than all."""
        return self._part_of(min(self.settings.reserved, self._total - 1), self._processes, self._place)

    @property
    def kept(self) -> int:
        """How many places are left free for urgent prompts now.

        A lowered limit does not leave the others without a place, unless the whole share is reserved.
        """
        reserved = self.reserved
        return min(reserved, self.limit if reserved == self.share else max(0, self.limit - 1))

    @property
    def outstanding(self) -> int:
        """The prompts that it holds, and those gathered for it here."""
        return self.window.in_flight + self.batcher.gathered

    @property
    def burden(self) -> float:
        """What it is chosen by: its outstanding prompts, and the calls that have failed of late.

        Else the one that fails at once would always look the least busy, and get what the others could do.
        """
        if not self._failures:
            return self.outstanding
        return self.outstanding + self._failures_weigh(self._clock())

    @property
    def room(self) -> int:
        """How many more prompts would go without waiting for a place."""
        return max(0, self.limit - self.outstanding) if self.admits else 0

    def room_for(self, priority: int) -> int:
        """How many more prompts of that priority would go without waiting for a place."""
        return self.room if is_urgent(priority) else max(0, self.room - self.kept)

    @property
    def admits(self) -> bool:
        """Whether a prompt may be given to it now, if only to wait there for a place."""
        return self.limit > 0 and self.breaker.admits and not self.paused

    @property
    def paused(self) -> bool:
        """Whether it has asked to be left alone for a while that is not over."""
        return self._paused_until > 0 and self._clock() < self._paused_until

    @property
    def usable_in_s(self) -> float:
        """When it is worth while to look again, in seconds; 0 for now."""
        at = self._paused_until
        if self.breaker.state is BreakerState.OPEN:
            at = max(at, self.breaker.probe_at)
        return max(0.0, at - self._clock())

    def holds(self, max_in_flight: int) -> None:
        """Take what the back end says that it can hold; the settings go before it."""
        if self.settings.max_in_flight is None and max_in_flight != self._max_in_flight:
            logger.info("endpoint %s holds %d prompts at once", self.name, max_in_flight)
            self._max_in_flight = max_in_flight
            self._adaptive = AdaptiveLimit(self.share, clock=self._clock)
            self._set_limit()

    def divide(self, processes: int, place: int) -> None:
        """Take the share of the process at `place`, from 0, among `processes`; among none it is nothing."""
        if (processes, place) != (self._processes, self._place):
            self._processes, self._place = processes, place
            self._adaptive.ceiling = self.share
            self._set_limit()

    def crowded(self) -> None:
        """Its engine has a queue of its own: give it less."""
        self._adaptive.crowded()
        self._set_limit()

    def pause(self, wait_s: float) -> None:
        """Give it nothing for a while, as it has asked."""
        wait_s = min(wait_s, MAX_PAUSE_S)
        if wait_s <= 0:
            return
        until = self._clock() + wait_s
        if until <= self._paused_until:
            return
        self._paused_until = until
        if self._resume is not None:
            self._resume.cancel()
        self._resume = asyncio.get_running_loop().call_later(wait_s, self._pause_over)
        self._turn_away()
        self._changed()

    def end_pause(self) -> None:
        """Give it prompts again, whatever it has asked for."""
        if not self.paused:
            return
        self._paused_until = 0.0
        if self._resume is not None:
            self._resume.cancel()
        self._changed()

    def _pause_over(self) -> None:
        """Tell of the end of a pause. The timers of a busy event loop may be early by some milliseconds."""
        left_s = self._paused_until - self._clock()
        if left_s <= 0:
            self._resume = None
            self._changed()
        else:
            self._resume = asyncio.get_running_loop().call_later(max(left_s, EARLY_S), self._pause_over)

    # What happens to its calls: see batching.runner.CallWatcher

    def call_began(self, members: Sequence[Member] = ()) -> _Call:
        """A call goes."""
        call = _Call(self.name, self.breaker.begin(), self._clock(), self._is_full)
        if (tell := self._observers.call_began) is not None:
            settings, prompts = self.settings, [member.generation for member in members]
            tell(CallBegan(call, self.name, settings.backend, settings.base_url, prompts))
        return call

    def call_given_up(self, call: Any) -> None:
        """Nobody waits for a call any more: it says nothing about the endpoint."""
        call.given_up = True
        self._tell_of_end(call)

    @property
    def _is_full(self) -> bool:
        """Whether it holds so much that its success says that more would go well.

        Places that are kept are empty most of the time: the others being full says it, too, unless a lowered
        limit has left them next to nothing.
        """
        window = self.window
        proven = self.limit > self.reserved or 2 * window.in_flight >= self.limit
        return window.free == 0 or (window.free <= window.kept and proven)

    def call_ended(self, call: Any, prompts: int, error: WorkerError | None) -> None:
        """A call has ended, well or with an error."""
        call.error = error
        self._tell_of_end(call)
        if isinstance(error, WorkerOverloaded):
            self._adaptive.overloaded(call.began_at)
            self._set_limit()
            self.pause(self._wait_of(call, error))
        elif error is None:
            self._overloads = 0
            self._adaptive.succeeded(prompts, full=call.full)
            self._set_limit()
        ok = error is None or isinstance(error, WorkerOverloaded | RequestRejected)
        if error is not None and not ok:
            self.failed(str(error), log_text=error.log_text or error.code)
        self._weigh(error)
        self.breaker.record(call.epoch, ok=ok)
        if isinstance(error, ModelNotFound):
            self.breaker.suspect()

    def checked(self, *, well: bool) -> None:
        """It was given a prompt that is known to be good, while it was suspected or half open."""
        self.breaker.checked(well=well)
        if well:
            self._failures = 0.0  # they were the requests' fault, or are over

    def _weigh(self, error: WorkerError | None) -> None:
        """Note how a call went, for the next choice among endpoints; an overload has a pause of its own."""
        if error is None:
            self._failures = self._failures / 2 if self._failures > 1 else 0.0
        elif not isinstance(error, WorkerOverloaded):
            now, weight = self._clock(), REFUSAL_WEIGHS if isinstance(error, RequestRejected) else 1.0
            self._failures, self._failed_at = self._failures_weigh(now) + weight, now

    def _failures_weigh(self, now: float) -> float:
        return self._failures * math.pow(0.5, (now - self._failed_at) / FAILURE_HALVES_S)

    def _tell_of_end(self, call: _Call) -> None:
        if (tell := self._observers.call_ended) is not None:
            call.ended_at = self._clock()
            tell(call)

    def failed(self, words: str, *, log_text: str | None = None) -> None:
        """It has failed, for administrators in these `words`; `log_text` is what a log may have of them."""
        self.last_error = words[:MAX_ERROR_CHARS]
        self._why = (words if log_text is None else log_text)[:MAX_ERROR_CHARS]

    def _wait_of(self, call: _Call, error: WorkerOverloaded) -> float:
        """How long to leave it alone: as it says, else longer each time that it says it anew."""
        if error.retry_after_s is not None and error.retry_after_s >= 0:
            return error.retry_after_s
        if call.began_at >= self._paused_until:  # others went before it said so for the first time
            self._overloads += 1
        return random.uniform(0.5, 1.0) * min(MAX_OVERLOAD_PAUSE_S, OVERLOAD_PAUSE_S * 2.0**self._overloads)

    def describe(self) -> dict[str, Any]:
        """What administrators see of it. No key, no address."""
        return {
            "name": self.name,
            "backend": self.settings.backend,
            "in_flight": self.window.in_flight,
            "gathered": self.batcher.gathered,
            "limit": self.limit,
            "max_in_flight": self._max_in_flight,
            "reserved": self.reserved,
            "breaker": self.breaker.state.value,
            "usable_in_s": round(self.usable_in_s, 1),
            "last_error": self.last_error,
        }

    def tell(self, observers: Observers) -> None:
        """Let observers hear of its calls, batches and breaker."""
        self._observers = observers
        self.batcher.on_flush = self._flushed if observers.flushed is not None else None

    async def aclose(self) -> None:
        """Abort its calls and close its connections. Safe to call twice."""
        if self._resume is not None:
            self._resume.cancel()
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
            # A probe that fails changes nothing that is worth a line.
            logger.log(
                logging.DEBUG if self._left_alone else logging.WARNING,
                "endpoint %s is left alone for %.3g s: %s",
                self.name,
                self.usable_in_s,
                self._why,
            )
            self._left_alone = True
            self._turn_away()
        if state is BreakerState.CLOSED:
            self.last_error = self._why = ""
            self._left_alone = False
            logger.info("endpoint %s is well again", self.name)
        self._fit()
        self._changed()

    def _suspected(self) -> None:
        self.in_doubt.set()

    def _turn_away(self) -> None:
        """Let the prompts that are gathered here go elsewhere, at no cost: to send them now is of no use."""
        self.batcher.turn_away(
            WorkerUnavailable(f"endpoint {self.name} is left alone now", retry_after_s=self.usable_in_s)
        )

    def _set_limit(self) -> None:
        """Take over what has become of the adaptive limit, its ceiling, or the part that is reserved."""
        self.limit = self._adaptive.value
        if (self.limit, self.kept) == self._places:
            return
        self._fit()
        self._changed()

    def _fit(self) -> None:
        """Let the window have the limit and the places that are kept.

        Prompts that are here already must get through, even where no more shall come.
        """
        self._places = self.limit, self.kept
        self.window.limit = max(1, self.limit)
        self.window.kept = min(self.kept, self.window.limit - 1)

    def _changed(self) -> None:
        self.on_change()


def _patience(settings: EndpointSettings, *, streams: bool) -> CallPatience:
    """The limits of its calls. One that does not stream has nothing to show before it is done."""
    whole_s = settings.timeout_s
    return CallPatience(
        first_s=min(settings.first_token_timeout_s, whole_s) if streams else whole_s,
        next_s=min(settings.idle_timeout_s, whole_s),
        whole_s=whole_s,
        total_s=math.inf if settings.total_timeout_s is None else settings.total_timeout_s,
    )
