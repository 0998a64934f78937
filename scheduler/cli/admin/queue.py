"""`prompt-scheduler admin queue`: the queue and its lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer
from rich.table import Table
from rich.text import Text

from scheduler.admin import known_lanes, purge, purge_delayed
from scheduler.cli.admin.common import AsJson, Yes, breaker_text, confirm
from scheduler.cli.arguments import parse_priority
from scheduler.cli.output import (
    age,
    print_fields,
    print_json,
    print_table,
    say,
    table,
)
from scheduler.cli.session import Session, run, session
from scheduler.queue.inspection.status import read_status
from scheduler.queue.reports import EndpointStatus, LaneStatus, LimitedTenant, QueueStatus

LIMITED_SHOWN = 20

LaneName: TypeAlias = Annotated[
    str | None, typer.Argument(metavar="[LANE]", help="The lane, named after its route.", show_default=False)
]
AllLanes: TypeAlias = Annotated[bool, typer.Option("--all", help="Every lane.")]

app = typer.Typer(help="The queue and its lanes.", no_args_is_help=True)


@app.command("status")
def status(ctx: typer.Context, *, as_json: AsJson = False) -> None:
    """Show waiting jobs by lane and priority, and running ones."""
    status = run(_status(session(ctx)))
    if as_json:
        print_json(status)
        return
    _show_status(status)


async def _status(at: Session) -> QueueStatus:
    async with at.client() as client:
        return await read_status(client.queue)


def _show_status(status: QueueStatus) -> None:
    unclaimed = status.waiting + status.delayed + status.held
    rate = "unknown" if status.ended_per_s is None else f"{status.ended_per_s:g} jobs ended a second"
    print_fields(
        [
            ("queue", status.queue),
            ("waiting", f"{status.waiting:,}"),
            ("delayed", f"{status.delayed:,}"),
            ("held", f"{status.held:,}"),
            ("bound", f"{unclaimed:,} of at most {status.max_waiting:,}, then {status.when_full}"),
            ("running", f"{status.running:,}"),
            ("workers", f"{status.workers:,}"),
            ("rate", rate),
            ("dead", f"{status.dead:,}"),
            ("garbage", f"{status.garbage:,}" if status.garbage else None),
            ("totals", ", ".join(f"{n:,} {what}" for what, n in status.totals.items()) or "none"),
        ]
    )
    lanes = table(
        "lane", "waiting", "by priority", "delayed", "held", "oldest", "", right="waiting delayed held oldest"
    )
    for lane in status.lanes:
        levels = "  ".join(f"{p}: {n:,}" for p, n in lane.by_priority.items())
        bound = f" of {lane.max_waiting:,}" if lane.max_waiting else ""
        lanes.add_row(
            lane.name,
            f"{lane.waiting:,}{bound}",
            levels,
            f"{lane.delayed:,}",
            f"{lane.held:,}",
            age(lane.oldest_s),
            Text(_remark(lane), "yellow"),
        )
    print_table(lanes)
    if status.limited:
        print_table(_limited(status.limited))
    if status.endpoints:
        print_table(_endpoints(status.endpoints))


def _remark(lane: LaneStatus) -> str:
    suspects = f"{lane.suspects:,} suspected of killing workers" if lane.suspects else ""
    return ", ".join(filter(None, ["paused" if lane.paused else "", suspects]))


def _limited(limited: Sequence[LimitedTenant]) -> Table:
    shown = table("limited tenant", "lane", "held", "next in", right="held")
    for one in limited[:LIMITED_SHOWN]:
        shown.add_row(one.tenant, one.lane, f"{one.held:,}", age(one.next_in_s))
    if len(limited) > LIMITED_SHOWN:
        shown.add_row("…", f"{len(limited) - LIMITED_SHOWN:,} more; see --json", "", "")
    return shown


def _endpoints(endpoints: Sequence[EndpointStatus]) -> Table:
    shown = table("endpoint", "backend", "prompts", "limit", "breaker", "last error", right="prompts limit")
    for one in endpoints:
        most = "" if one.max_in_flight is None else f" of {one.max_in_flight:,}"
        reserved = f", {one.reserved:,} reserved" if one.reserved else ""
        shown.add_row(
            one.name,
            one.backend,
            f"{one.in_flight:,}",
            f"{one.limit:,}{most}{reserved}",
            breaker_text(one),
            one.last_error,
        )
    return shown


@app.command("pause")
def pause(
    ctx: typer.Context, lane: LaneName = None, *, every: AllLanes = False, as_json: AsJson = False
) -> None:
    """Stop claiming from a lane.

    Prompts can still be enqueued; running jobs finish.
    """
    changed = run(_switch(session(ctx), _lane_or_all(lane, every=every), paused=True))
    _show_switched(changed, "paused", "had been paused already", as_json=as_json)


@app.command("resume")
def resume(
    ctx: typer.Context, lane: LaneName = None, *, every: AllLanes = False, as_json: AsJson = False
) -> None:
    """Claim from a paused lane again."""
    changed = run(_switch(session(ctx), _lane_or_all(lane, every=every), paused=False))
    _show_switched(changed, "resumed", "was not paused", as_json=as_json)


def _lane_or_all(lane: str | None, *, every: bool) -> str | None:
    if (lane is None) != every:
        raise typer.BadParameter("give a lane, or --all")
    return lane


async def _switch(at: Session, lane: str | None, *, paused: bool) -> dict[str, bool]:
    async with at.client() as client:
        switch = client.queue.pause if paused else client.queue.resume
        return {one: await switch(one) for one in await known_lanes(client.queue, lane)}


def _show_switched(changed: dict[str, bool], done: str, had: str, *, as_json: bool) -> None:
    if as_json:
        print_json([{"lane": lane, "changed": was_changed} for lane, was_changed in changed.items()])
        return
    for lane, was_changed in changed.items():
        say(f"{lane}: {done if was_changed else had}")


@app.command("purge")
def purge_lane(
    ctx: typer.Context,
    lane: Annotated[str, typer.Argument(help="The lane.", show_default=False)],
    *,
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority", "-p", parser=parse_priority, metavar="0-9|NAME", help="Only this priority."
        ),
    ] = None,
    delayed: Annotated[bool, typer.Option("--delayed", help="Cancel delayed jobs as well.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Cancel the waiting jobs of a lane.

    Their callers get an error. Held jobs are cancelled as well, delayed ones with --delayed; running ones are
    not.
    """
    at = session(ctx)
    counts = run(_unclaimed(at, lane, priority, delayed=delayed))
    confirm(f"Cancel {_of_each(counts)} of lane {lane!r}?", yes=yes)
    purged = run(_purge(at, lane, priority, delayed=delayed))
    if as_json:
        print_json({"lane": lane, "priority": priority, "purged": purged})
    else:
        say(f"{lane}: {purged:,} jobs cancelled")


def _of_each(counts: dict[str, int]) -> str:
    """The counts as text: "7 waiting jobs and up to 2 held ones"."""
    others = "".join(
        f" and up to {n:,} {state} ones" for state, n in counts.items() if n and state != "waiting"
    )
    return f"{counts['waiting']:,} waiting jobs{others}"


async def _unclaimed(at: Session, lane: str, priority: int | None, *, delayed: bool) -> dict[str, int]:
    """The counts of waiting jobs at that priority, and of held and optionally delayed ones at any."""
    async with at.client() as client:
        await known_lanes(client.queue, lane)
        status = await read_status(client.queue)
    found = next((one for one in status.lanes if one.name == lane), None)
    if found is None:
        return {"waiting": 0}
    waiting = found.waiting if priority is None else found.by_priority.get(priority, 0)
    return {"waiting": waiting, "held": found.held, "delayed": found.delayed if delayed else 0}


async def _purge(at: Session, lane: str, priority: int | None, *, delayed: bool) -> int:
    async with at.client() as client:
        purged = sum([chunk async for chunk in purge(client.queue, lane, priority)])
        if delayed:
            purged += sum([chunk async for chunk in purge_delayed(client.queue, lane, priority)])
        return purged
