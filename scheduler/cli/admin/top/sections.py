"""The parts of the picture below its head: lanes, endpoints, worker processes, dead letters. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from rich.text import Text

from scheduler.cli.admin.common import breaker_text
from scheduler.cli.admin.top.columns import Cell, Column, Section
from scheduler.cli.admin.top.marks import bar, count
from scheduler.cli.admin.top.snapshot import Snapshot, Waits
from scheduler.cli.output import PRIORITY_STYLES, age
from scheduler.model import JobInfo
from scheduler.queue.reports import EndpointStatus, LaneStatus, WorkerInfo

NAME_WIDTH = 28
LEAST_NAME_WIDTH = 8
BAR_WIDTH = 40
SHORT_BAR_WIDTH = 16
LEAST_BAR_WIDTH = 6
ERROR_WIDTH = 200
LEAST_ERROR_WIDTH = 20
SHORT_ID = 12
LONG_LINE = 120


def sections(snapshot: Snapshot, *, width: int) -> list[Section]:
    """The sections that have content, the most important first."""
    parts = [_lanes(snapshot), _workers(snapshot)]
    if snapshot.status.endpoints:
        parts.insert(1, _endpoints(snapshot))
    if snapshot.dead:
        parts.append(_dead(snapshot, width=width))
    return parts


# Lanes


def _lanes(snapshot: Snapshot) -> Section:
    lanes = snapshot.status.lanes
    if not lanes:
        return _nothing(
            "LANE", Text("no lane yet: there have been no worker processes and no prompts", "bright_black")
        )
    levels = sorted({level for lane in lanes for level in lane.by_priority}, reverse=True)
    most = max(lane.waiting for lane in lanes)
    columns = [
        Column("LANE", least=LEAST_NAME_WIDTH, most=NAME_WIDTH, style="bold"),
        Column("WAITING", right=True),
        Column("", least=LEAST_BAR_WIDTH, most=BAR_WIDTH, rank=4),
        *(Column(str(level), right=True, rank=9 - level, style=PRIORITY_STYLES[level]) for level in levels),
        Column("OLDEST", right=True),
        Column("WAITED", right=True, rank=2),
        Column("DELAYED", right=True, rank=3),
        Column("HELD", right=True, rank=1),
        Column("", rank=1, style="yellow"),
    ]
    return Section(
        columns,
        [_lane(lane, levels, snapshot.waits_by_lane.get(lane.name), most) for lane in lanes],
        weights=[lane.waiting for lane in lanes],
        foot=_waited(snapshot.waits_by_priority, levels) if levels and snapshot.waits_by_priority else None,
    )


def _lane(lane: LaneStatus, levels: list[int], waits: Waits | None, most: int) -> list[Cell]:
    parts = [(float(lane.by_priority.get(level, 0)), PRIORITY_STYLES[level]) for level in levels]
    return [
        lane.name,
        f"{lane.waiting:,}",
        partial(_bar, parts, float(most)),
        *(count(lane.by_priority[level]) if level in lane.by_priority else "" for level in levels),
        age(lane.oldest_s),
        age(waits.median_s if waits else None),
        _unless_zero(lane.delayed),
        _unless_zero(lane.held),
        ", ".join(
            text
            for text, true in (("paused", lane.paused), (f"{lane.suspects:,} suspects", lane.suspects))
            if true
        ),
    ]


def _waited(waits: Mapping[int, Waits], levels: list[int]) -> list[Cell]:
    """The median wait of each level, below the numbers of waiting jobs."""
    shown = [Text(age(waits[level].median_s), "bright_black") if level in waits else "" for level in levels]
    return [Text("waited", "bright_black"), "", Text(), *shown, "", "", "", "", ""]


def _unless_zero(number: int) -> str | Text:
    return f"{number:,}" if number else Text("0", "bright_black")


def _nothing(title: str, text: Text) -> Section:
    """A section without rows, and the reason."""
    return Section([Column(title, least=LEAST_NAME_WIDTH)], [[text]])


def _bar(parts: list[tuple[float, str]], of: float, width: int) -> Text:
    return bar(parts, of=of, width=width)


def _load(used: int, of: int) -> Callable[[int], Text]:
    # A full bar is normal: no alarming colour.
    return partial(_bar, [(float(used), "cyan")], float(max(of, used)))


# Endpoints


def _endpoints(snapshot: Snapshot) -> Section:
    endpoints = snapshot.status.endpoints
    columns = [
        Column("ENDPOINT", least=LEAST_NAME_WIDTH, most=NAME_WIDTH, style="bold"),
        Column("BACKEND", rank=3),
        Column("IN FLIGHT", right=True),
        Column("", least=LEAST_BAR_WIDTH, most=SHORT_BAR_WIDTH, rank=2),
        Column("BREAKER"),
        Column("LAST ERROR", least=LEAST_ERROR_WIDTH, most=ERROR_WIDTH, rank=1, style="red"),
    ]
    return Section(
        columns, [_endpoint(one) for one in endpoints], weights=[_trouble(one) for one in endpoints]
    )


def _endpoint(one: EndpointStatus) -> list[Cell]:
    most = f" (of {one.max_in_flight:,})" if one.max_in_flight and one.limit < one.max_in_flight else ""
    return [
        one.name,
        one.backend,
        f"{one.in_flight:,} of {one.limit:,}{most}",
        _load(one.in_flight, one.limit),
        breaker_text(one),
        one.last_error,
    ]


def _trouble(one: EndpointStatus) -> float:
    """Endpoints that take no work weigh more than busy ones."""
    troubled = set(one.breakers) != {"closed"} or one.usable_in_s > 0 or one.permit_in_s > 0
    return (2.0 if troubled else 0.0) + min(1.0, one.in_flight / max(1, one.limit))


# Worker processes


def _workers(snapshot: Snapshot) -> Section:
    if not snapshot.workers:
        text = "no worker process is live; start one: prompt-scheduler worker"
        return _nothing("WORKER", Text(text, "bold red"))
    columns = [
        Column("WORKER", least=LEAST_NAME_WIDTH, most=2 * NAME_WIDTH, style="bold"),
        Column("HOST", least=LEAST_NAME_WIDTH, most=NAME_WIDTH, rank=2),
        Column("RUNNING", right=True),
        Column("", least=LEAST_BAR_WIDTH, most=SHORT_BAR_WIDTH, rank=1),
        Column("UP", right=True),
        Column(""),
    ]
    return Section(columns, [_worker(one, snapshot.status.at_ms) for one in snapshot.workers])


def _worker(one: WorkerInfo, now_ms: int) -> list[Cell]:
    up_s = max(0, now_ms - one.started_at_ms) / 1000 if one.started_at_ms else None
    text = Text(" ").join(
        Text(word, style)
        for word, style, true in (("leader", "cyan", one.leader), ("draining", "yellow", one.draining))
        if true
    )
    return [
        one.id,
        one.host,
        f"{one.running:,} of {one.max_running:,}",
        _load(one.running, one.max_running),
        age(up_s),
        text,
    ]


# Dead letters


def _dead(snapshot: Snapshot, *, width: int) -> Section:
    columns = [
        Column("DEAD LETTER", rank=2, style="bright_black"),
        Column("FAILED", right=True),
        Column("ROUTE", least=LEAST_NAME_WIDTH, most=NAME_WIDTH, style="bold"),
        Column("CODE", least=LEAST_NAME_WIDTH, rank=1),
        Column("MESSAGE", least=LEAST_ERROR_WIDTH, most=ERROR_WIDTH, style="red"),
    ]
    return Section(
        columns, [_letter(job, snapshot.status.at_ms, whole=width >= LONG_LINE) for job in snapshot.dead]
    )


def _letter(job: JobInfo, now_ms: int, *, whole: bool) -> list[Cell]:
    """Ids differ at their ends; a whole id is shown if there is space."""
    ended_at_ms = job.ended_at_ms or now_ms
    return [
        job.id if whole or len(job.id) <= SHORT_ID else f"…{job.id[-SHORT_ID + 1 :]}",
        age(max(0, now_ms - ended_at_ms) / 1000),
        job.model,
        job.error.code if job.error else job.reason or "",
        job.error.message if job.error else "",
    ]
