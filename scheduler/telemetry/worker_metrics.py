"""The metrics of one worker process: counts of what it observed, and the state of its engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version
from time import monotonic

from prometheus_client import Metric

from scheduler.batching import FlushReason
from scheduler.engine import Engine
from scheduler.observations import (
    BreakerChanged,
    Claimed,
    EndedAttempt,
    EndedCall,
    Flushed,
    Observer,
    Outcome,
    RoundTrip,
    Ticked,
    Written,
)
from scheduler.routing import BreakerState, Endpoint
from scheduler.telemetry import catalogue
from scheduler.telemetry.tallies import Counts, Histogram, Histograms, family

# After these outcomes the job has another attempt, which is measured from the same start.
GOES_ON = (Outcome.RETRIED, Outcome.GIVEN_BACK)
DONE = Outcome.DONE  # to find a member in its enum takes 40 ns
TICK_WORK = ("promoted", "reaped", "expired", "released", "rearmed", "forgotten")
# Codes belong to error classes; a model worker of another package may make up any number.
MAX_CODES = 100
OTHER = "other"


class _Lane:
    """The counts of a lane, looked up once for each job."""

    def __init__(self, name: str, metrics: WorkerMetrics) -> None:
        self.name = name
        self.end_to_end = metrics.end_to_end.of(name)
        self.overhead = metrics.overhead.of(name)
        self.first_token = metrics.first_token.of(name)
        self.waits: dict[int, Histogram] = {}
        self.stages: dict[str, Histogram] = {}
        self.outcomes: dict[str, int] = dict.fromkeys(Outcome, 0)
        self.claimed = self.inputs = self.outputs = 0


class _Endpoint:
    """The counts of an endpoint, looked up once for each call."""

    def __init__(self, name: str, metrics: WorkerMetrics) -> None:
        self.sizes = metrics.batch_prompts.of(name)
        self.waits = metrics.batch_waits.of(name)
        self.calls = metrics.calls_s.of(name)
        self.reasons: dict[str, int] = dict.fromkeys(FlushReason, 0)
        self.results = dict.fromkeys(("ok", "failed", "given_up"), 0)
        self._at_once = 0  # the number that was taken over last

    def count_at_once(self, n: int) -> None:
        """Take over the number of prompts that went alone and at once since this endpoint was made."""
        more = n - self._at_once if n >= self._at_once else n
        self._at_once = n
        self.reasons[FlushReason.SIZE] += more
        self.sizes.observe(1, more)
        self.waits.observe(0.0, more)


class WorkerMetrics(Observer):
    """Counts what its engine reports, and reads the engine when prometheus-client collects.

    Make it before the engine, and pass the engine to `watch`.
    """

    def __init__(self) -> None:
        self.end_to_end = Histograms(catalogue.END_TO_END)
        self.overhead = Histograms(catalogue.OVERHEAD)
        self.first_token = Histograms(catalogue.FIRST_TOKEN)
        self._waits = Histograms(catalogue.WAIT)
        self._stages = Histograms(catalogue.STAGE)
        self.batch_prompts = Histograms(catalogue.BATCH_PROMPTS)
        self.batch_waits = Histograms(catalogue.BATCH_WAIT)
        self.calls_s = Histograms(catalogue.CALL)
        self._round_trips = Histograms(catalogue.ROUND_TRIP)
        self._event_lags = Histograms(catalogue.EVENT_LAG)
        self._event_lag = self._event_lags.of()
        self._errors = Counts(catalogue.ERRORS)
        self._codes: set[str] = set()
        self._breaker_changes = Counts(catalogue.BREAKER_CHANGES)
        self._tick = Counts(catalogue.TICK)
        self._lanes: dict[str, _Lane] = {}
        self._endpoints: dict[str, _Endpoint] = {}
        self._engine: Engine | None = None
        self._version = version("prompt-scheduler")

    def watch(self, engine: Engine) -> None:
        """Export the state of this engine, too."""
        self._engine = engine

    def claimed(self, seen: Claimed) -> None:
        """See `Observer`."""
        for job in seen.jobs:
            lane = self._lanes.get(job.lane) or self._lane(job.lane)
            lane.claimed += 1
            waits = lane.waits.get(job.priority)
            if waits is None:
                waits = lane.waits[job.priority] = self._waits.of(job.lane, str(job.priority))
            waits.observe(job.waited_ms / 1000)

    def attempt_ended(self, seen: EndedAttempt) -> None:
        """See `Observer`."""
        job, progress, outcome = seen.job, seen.progress, seen.outcome
        lane = self._lanes.get(job.lane) or self._lane(job.lane)
        lane.outcomes[outcome] += 1
        if seen.code:
            self._errors.add(1, job.lane, self._code(seen.code))
        if progress is None:
            return
        stages_ms = progress.stages_ms
        for stage, ms in stages_ms.items():
            if ms:  # a stage that had nothing to do was not entered
                stages = lane.stages.get(stage)
                if stages is None:
                    stages = lane.stages[stage] = self._stages.of(lane.name, stage)
                stages.observe(ms / 1000)
        if outcome is not DONE and outcome in GOES_ON:
            return
        waited_s, claimed_at = job.waited_ms / 1000, seen.claimed_at
        if progress.first_token_at is not None:
            lane.first_token.observe(waited_s + progress.first_token_at - claimed_at)
        if outcome is DONE:
            here_s = monotonic() - claimed_at
            lane.end_to_end.observe(waited_s + here_s)
            lane.overhead.observe(max(0.0, here_s - stages_ms.get("inference", 0.0) / 1000))
            completed = progress.completed
            if completed is not None and (usage := completed.usage) is not None:
                lane.inputs += usage.input_tokens or 0
                lane.outputs += usage.output_tokens or 0

    def flushed(self, seen: Flushed) -> None:
        """See `Observer`."""
        endpoint, flush = seen
        of = self._endpoints.get(endpoint) or self._endpoint(endpoint)
        of.reasons[flush.reason] += 1
        of.sizes.observe(flush.size)
        of.waits.observe(flush.waited_s)

    def call_ended(self, seen: EndedCall) -> None:
        """See `Observer`."""
        of = self._endpoints.get(seen.endpoint) or self._endpoint(seen.endpoint)
        of.results["given_up" if seen.given_up else "ok" if seen.error is None else "failed"] += 1
        of.calls.observe(seen.ended_at - seen.began_at)

    def written(self, seen: Written) -> None:
        """See `Observer`."""
        self._event_lag.observe(seen.lag_s)

    def breaker_changed(self, seen: BreakerChanged) -> None:
        """See `Observer`."""
        self._breaker_changes.add(1, seen.endpoint, seen.state)

    def round_trip(self, seen: RoundTrip) -> None:
        """See `Observer`."""
        self._round_trips.of(seen.script).observe(seen.seconds)

    def ticked(self, seen: Ticked) -> None:
        """See `Observer`."""
        for work in TICK_WORK:
            if n := getattr(seen.report, work):
                self._tick.add(n, work)

    def _lane(self, name: str) -> _Lane:
        lane = self._lanes[name] = _Lane(name, self)
        return lane

    def _endpoint(self, name: str) -> _Endpoint:
        endpoint = self._endpoints[name] = _Endpoint(name, self)
        return endpoint

    def _code(self, code: str) -> str:
        if code not in self._codes and len(self._codes) >= MAX_CODES:
            return OTHER
        self._codes.add(code)
        return code

    # For prometheus-client

    def describe(self) -> Iterator[Metric]:
        """The families without values, for when this is registered."""
        for spec in catalogue.WORKER:
            yield family(spec, ())

    def collect(self) -> Iterator[Metric]:
        """All metrics of this process."""
        if self._engine is not None:
            self._begin(self._engine)
            yield from self._process(self._engine)
            yield from self._endpoints_now(self._engine)
            yield from self._gates(self._engine)
        yield from self._counted()
        for tally in (
            *(self._errors, self._breaker_changes, self._tick),
            *(self._waits, self.first_token, self._stages, self.end_to_end, self.overhead),
            *(self.batch_prompts, self.batch_waits, self.calls_s, self._event_lags, self._round_trips),
        ):
            yield tally.collect()

    def _begin(self, engine: Engine) -> None:
        """Begin series at zero before anything is counted: rates miss the first value of a series."""
        for lane in engine.routes:
            if lane not in self._lanes:
                self._lane(lane)
        for endpoint in engine.endpoints:
            of = self._endpoints.get(endpoint.name) or self._endpoint(endpoint.name)
            of.count_at_once(endpoint.batcher.at_once)
            for state in BreakerState:
                self._breaker_changes.begin(endpoint.name, state)
        for work in TICK_WORK:
            self._tick.begin(work)

    def _counted(self) -> Iterator[Metric]:
        lanes, endpoints = self._lanes.values(), self._endpoints.items()
        yield family(catalogue.CLAIMED, [((lane.name,), lane.claimed) for lane in lanes])
        yield family(
            catalogue.ATTEMPTS,
            [((lane.name, outcome), n) for lane in lanes for outcome, n in lane.outcomes.items()],
        )
        tokens = [(lane.name, lane.inputs, lane.outputs) for lane in lanes]
        yield family(
            catalogue.TOKENS,
            [
                *(((lane, "input"), inputs) for lane, inputs, _ in tokens),
                *(((lane, "output"), outputs) for lane, _, outputs in tokens),
            ],
        )
        yield family(
            catalogue.BATCHES,
            [((name, reason), n) for name, one in endpoints for reason, n in one.reasons.items()],
        )
        yield family(
            catalogue.CALLS,
            [((name, result), n) for name, one in endpoints for result, n in one.results.items()],
        )

    def _process(self, engine: Engine) -> Iterator[Metric]:
        who = (engine.settings.queue, engine.id, self._version)
        yield family(catalogue.WORKER_INFO, [(who, 1)])
        for spec, value in (
            (catalogue.WORKER_RUNNING, engine.running),
            (catalogue.WORKER_MAX_RUNNING, engine.settings.max_running),
            (catalogue.WORKER_DRAINING, engine.draining),
            (catalogue.WORKER_LEADER, engine.leads),
            (catalogue.PENDING_BYTES, engine.pending_write_bytes),
            (catalogue.REDIS_UP, not engine.redis_is_away),
        ):
            yield family(spec, [((), value)])

    @staticmethod
    def _endpoints_now(engine: Engine) -> Iterator[Metric]:
        def of_each(spec: catalogue.Spec, value: Callable[[Endpoint], float]) -> Metric:
            return family(spec, [((one.name,), value(one)) for one in engine.endpoints])

        yield of_each(catalogue.IN_FLIGHT, lambda one: one.window.in_flight)
        yield of_each(catalogue.GATHERED, lambda one: one.batcher.gathered)
        yield of_each(catalogue.LIMIT, lambda one: one.limit)
        yield of_each(catalogue.PAUSED, lambda one: one.paused)
        states = [(one, state) for one in engine.endpoints for state in BreakerState]
        yield family(
            catalogue.BREAKER,
            [((one.name, state.value), one.breaker.state is state) for one, state in states],
        )

    @staticmethod
    def _gates(engine: Engine) -> Iterator[Metric]:
        gates = [
            ((lane, stage), gate)
            for lane, route in engine.routes.items()
            for stage, gate in route.pipeline.gates.items()
        ]
        yield family(catalogue.STAGE_RUNNING, [(labels, gate.running) for labels, gate in gates])
        yield family(catalogue.STAGE_WAITING, [(labels, gate.waiting) for labels, gate in gates])
