"""What the measurements should reach: a bound for each, and the figure that is held against it.

An aim's figure is a pure function of the rows; it is None where a run has not measured what it needs.
Where an aim can be read in two ways, both are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.harness import OURS, Row

TIMES = "\N{MULTIPLICATION SIGN}"
PYTHON_PEERS = ("arq", "saq", "taskiq-list", "taskiq-stream", "streaq", "dramatiq", "celery")

Figure = Callable[[Sequence[Row]], float | None]


@dataclass(frozen=True, slots=True)
class Aim:
    """A bound, in `unit`, and how the figure to hold against it is found."""

    what: str
    sense: Literal["≥", "≤"]
    bound: float
    unit: str
    figure: Figure

    def judge(self, rows: Sequence[Row]) -> Verdict:
        """Hold the rows against it."""
        return Verdict(self, self.figure(rows))


@dataclass(frozen=True, slots=True)
class Verdict:
    """An aim, and what was got; None if that was not measured."""

    aim: Aim
    got: float | None

    @property
    def met(self) -> bool | None:
        """Whether the figure is on the right side of the bound; None if there is no figure."""
        if self.got is None:
            return None
        return self.got >= self.aim.bound if self.aim.sense == "≥" else self.got <= self.aim.bound


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Hold the rows against all aims."""
    return [aim.judge(rows) for aim in AIMS]


def median(measure: str, case: str, what: str) -> Figure:
    """The median of one row."""

    def figure(rows: Sequence[Row]) -> float | None:
        wanted = (measure, case, what)
        return next((row.median for row in rows if (row.measure, row.case, row.what) == wanted), None)

    return figure


def highest(measure: str, what: str, cases: Sequence[str] = ()) -> Figure:
    """The highest median of these cases, or of all if none is named; of those that were measured."""

    def figure(rows: Sequence[Row]) -> float | None:
        found = [row for row in rows if (row.measure, row.what) == (measure, what)]
        return max((row.median for row in found if not cases or row.case in cases), default=None)

    return figure


def waiting_job(server: str, what: str) -> Figure:
    """Bytes beyond its payload that a waiting job takes, on a server whose name and version begin so."""

    def figure(rows: Sequence[Row]) -> float | None:
        found = [row for row in rows if (row.measure, row.what) == ("memory, waiting job", what)]
        return next((row.median for row in found if row.case.startswith(server)), None)

    return figure


def ratio(upper: Figure, lower: Figure) -> Figure:
    """One figure as a multiple of another."""

    def figure(rows: Sequence[Row]) -> float | None:
        above, below = upper(rows), lower(rows)
        return None if above is None or not below else above / below

    return figure


def drained(case: str) -> Figure:
    """Jobs a second through one process."""
    return median("drain, one process", case, "rate")


def grown(what: str) -> Figure:
    """The cost with a million waiting, as a multiple of that with a thousand."""
    return ratio(median("scale", "1,000,000 waiting", what), median("scale", "1,000 waiting", what))


def looked_on(case: str) -> Figure:
    """Jobs a second through one process that is looked on in some way."""
    return median("telemetry, drain", case, "rate")


AIMS = (
    Aim("drain ÷ arq", "≥", 5, TIMES, ratio(drained(OURS), drained("arq"))),
    Aim(
        "drain ÷ the fastest Python peer measured",
        "≥",
        3,
        TIMES,
        ratio(drained(OURS), highest("drain, one process", "rate", PYTHON_PEERS)),
    ),
    Aim("drain ÷ BullMQ", "≥", 1, TIMES, ratio(drained(OURS), drained("bullmq"))),
    Aim("drain ÷ the bare loop", "≥", 0.5, TIMES, ratio(drained(OURS), drained("bare loop"))),
    Aim("idle, enqueue → done, p50", "≤", 2, "ms", median("latency, idle", OURS, "done p50")),
    Aim("idle, enqueue → done, p99", "≤", 8, "ms", median("latency, idle", OURS, "done p99")),
    Aim(
        "urgent, enqueue → started, p50: 100,000 waiting ÷ none",
        "≤",
        1.2,
        TIMES,
        ratio(
            median("latency, urgent", "100,000 waiting", "started p50"),
            median("latency, urgent", "idle", "started p50"),
        ),
    ),
    Aim("enqueue: 1,000,000 waiting ÷ 1,000 waiting", "≤", 1.5, TIMES, grown("enqueue")),
    Aim("claim: 1,000,000 waiting ÷ 1,000 waiting", "≤", 1.5, TIMES, grown("claim")),
    *(
        Aim(
            f"a waiting job {what}, beyond its payload, {server}",
            "≤",
            bytes_,
            "bytes",
            waiting_job(server, what),
        )
        for server, bytes_ in (("Redis 7.0", 700), ("Valkey", 500))
        for what in ("with a key", "with a key and a deadline")
    ),
    Aim("50 idle workers: commands sent", "≤", 100, "/s", median("idle workers", "50 idle", "commands sent")),
    Aim(
        "50 idle workers: commands executed, in scripts too",
        "≤",
        100,
        "/s",
        median("idle workers", "50 idle", "commands executed"),
    ),
    Aim("bulk enqueue, dedup and bound on", "≥", 25_000, "/s", median("enqueue, bulk", OURS, "rate")),
    Aim(
        "claim: 20 lanes ÷ one lane",
        "≤",
        1.5,
        TIMES,
        ratio(median("scale, lanes", "20 lanes", "claim"), median("scale, lanes", "one lane", "claim")),
    ),
    Aim(
        "tokens through one worker, the best of the loads",
        "≥",
        40_000,
        "/s",
        highest("token events", "tokens"),
    ),
    Aim(
        "events with tokens through one worker, the best of the loads",
        "≥",
        40_000,
        "/s",
        highest("token events", "deltas"),
    ),
    Aim(
        "added to a first token, p50, the worst of the loads",
        "≤",
        5,
        "ms",
        highest("latency added to a token", "first token, p50"),
    ),
    Aim(
        "added to a later token, p50, the worst of the loads",
        "≤",
        5,
        "ms",
        highest("latency added to a token", "later tokens, p50"),
    ),
    Aim(
        "memory of a worker process with 1,000 jobs in flight",
        "≤",
        120,
        "MB",
        median("memory, worker process", OURS, "1,000 in flight"),
    ),
    Aim("drain with metrics ÷ without", "≥", 0.95, TIMES, ratio(looked_on("with metrics"), looked_on(OURS))),
    Aim(
        "drain with traces, one in ten sampled ÷ without",
        "≥",
        0.9,
        TIMES,
        ratio(looked_on("with traces"), looked_on(OURS)),
    ),
)
"""In the order of the report."""
