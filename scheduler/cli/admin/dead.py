"""`prompt-scheduler admin dead`: dead letters, the failed jobs that are kept."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from typing import Annotated, Any, TypeAlias

import orjson
import typer

from scheduler.admin import (
    DeadFilter,
    dead_letter_ids,
    dead_letters,
    known_lanes,
    purge_dead_letters,
    read_dead_letter,
    requeue_dead_letters,
)
from scheduler.admin.dead import Requeued
from scheduler.cli.admin.common import AsJson, Limit, Yes, confirm
from scheduler.cli.admin.job_text import print_job
from scheduler.cli.arguments import parse_duration, parse_pairs
from scheduler.cli.output import age, complain, print_json, print_table, remark, say, table
from scheduler.cli.session import Session, run, session
from scheduler.model import JobInfo
from scheduler.queue.inspection.clock import read_clock_ms

JobIds: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="JOB_ID", help="Ids of jobs.", show_default=False)
]
Every: TypeAlias = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
Lane: TypeAlias = Annotated[
    str | None, typer.Option("--lane", "--model", "-m", help="Only of this lane.", show_default=False)
]
Tenant: TypeAlias = Annotated[str | None, typer.Option(help="Only of this tenant.", show_default=False)]
ErrorCode: TypeAlias = Annotated[
    str | None, typer.Option("--error", metavar="CODE", help="Only with this last error.", show_default=False)
]
OlderThan: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--older-than",
        parser=parse_duration,
        metavar="DURATION",
        help="Only jobs that failed longer ago.",
        show_default=False,
    ),
]

app = typer.Typer(help="Dead letters: failed jobs that are kept.", no_args_is_help=True)


@app.command("list")
def list_dead(
    ctx: typer.Context,
    *,
    lane: Lane = None,
    tenant: Tenant = None,
    error: ErrorCode = None,
    older_than: OlderThan = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the latest first."""
    which = DeadFilter(lane=lane, tenant=tenant, error=error, older_than_s=older_than)
    jobs, now_ms = run(_dead(session(ctx), which, limit))
    if as_json:
        print_json([job.model_dump(mode="json", exclude={"history", "place"}) for job in jobs])
        return
    shown = table("id", "model", "tenant", "tries", "failed", "error", "", right="tries failed")
    for job in jobs:
        shown.add_row(
            job.id,
            job.model,
            job.tenant,
            str(job.attempts),
            age((now_ms - (job.ended_at_ms or now_ms)) / 1000),
            job.error.code if job.error else job.reason or "",
            job.error.message if job.error else "",
        )
    print_table(shown)
    if len(jobs) == limit:
        remark(f"These are the latest {limit:,}; --limit shows more.")


async def _dead(at: Session, which: DeadFilter, limit: int) -> tuple[list[JobInfo], int]:
    async with at.client() as client:
        found: list[JobInfo] = []
        async with aclosing(dead_letters(client.queue, which)) as jobs:
            async for job in jobs:
                found.append(job)
                if len(found) == limit:
                    break
        if not found and which.lane is not None:
            await known_lanes(client.queue, which.lane)
        return found, await read_clock_ms(client.queue)


@app.command("show")
def show(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB_ID", help="The job.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Show a dead letter: every attempt's error, and the request."""
    job, request = run(_read(session(ctx), job_id))
    if as_json:
        print_json({**job.model_dump(mode="json"), "request": request})
        return
    print_job(job)
    if request is None:
        say("the stored request is gone, or damaged")
    else:
        print_json(request)


async def _read(at: Session, job_id: str) -> tuple[JobInfo, dict[str, Any] | None]:
    async with at.client() as client:
        return await read_dead_letter(client.queue, job_id)


@app.command("requeue")
def requeue(
    ctx: typer.Context,
    job_ids: JobIds = None,
    *,
    every: Every = False,
    lane: Lane = None,
    tenant: Tenant = None,
    error: ErrorCode = None,
    older_than: OlderThan = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Change the request: params.max_tokens=100. JSON or text; null removes it.",
            show_default=False,
        ),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Run dead letters again.

    The oldest go first, and their failures are reset. A job whose request is changed loses its dedup key.
    """
    at = session(ctx)
    which = DeadFilter(lane=lane, tenant=tenant, error=error, older_than_s=older_than)
    edit = {path: _value(text) for path, text in parse_pairs(changes or ()).items()}
    ids = _chosen(at, job_ids, which, every=every)
    if not job_ids and ids:
        confirm(f"Run {len(ids):,} failed jobs again?", yes=yes)
    outcome = run(_requeue(at, ids, edit))
    left_out = len(ids) - len(outcome.requeued) - len(outcome.refused)
    if as_json:
        print_json({"requeued": outcome.requeued, "refused": outcome.refused, "left_out": left_out})
    else:
        gone = f"; {left_out:,} are not dead letters (any more)" if left_out else ""
        say(f"{len(outcome.requeued):,} run again{gone}")
        for job_id, why in outcome.refused.items():
            complain(f"{job_id}: {why}")
    if outcome.refused or (job_ids and left_out):
        raise typer.Exit(1)


async def _requeue(at: Session, job_ids: Iterable[str], edit: dict[str, Any]) -> Requeued:
    async with at.client() as client:
        return await requeue_dead_letters(client.queue, job_ids, edit)


@app.command("purge")
def purge(
    ctx: typer.Context,
    job_ids: JobIds = None,
    *,
    every: Every = False,
    lane: Lane = None,
    tenant: Tenant = None,
    error: ErrorCode = None,
    older_than: OlderThan = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good."""
    at = session(ctx)
    which = DeadFilter(lane=lane, tenant=tenant, error=error, older_than_s=older_than)
    ids = _chosen(at, job_ids, which, every=every)
    if ids:
        confirm(f"Delete {len(ids):,} failed jobs for good?", yes=yes)
    purged = run(_purge(at, ids))
    if as_json:
        print_json({"purged": purged})
    else:
        say(f"{purged:,} deleted")
    if job_ids and purged < len(ids):
        raise typer.Exit(1)


async def _purge(at: Session, job_ids: list[str]) -> int:
    async with at.client() as client:
        return await purge_dead_letters(client.queue, job_ids)


def _chosen(at: Session, job_ids: list[str] | None, which: DeadFilter, *, every: bool) -> list[str]:
    """The jobs that are named, or those that a filter selects. Exactly one of the ways must be used."""
    if sum((bool(job_ids), which != DeadFilter(), every)) != 1:
        raise typer.BadParameter("give job ids, or --lane, --tenant, --error, --older-than, or --all")
    return list(dict.fromkeys(job_ids)) if job_ids else run(_ids(at, which))


async def _ids(at: Session, which: DeadFilter) -> list[str]:
    async with at.client() as client:
        found = await dead_letter_ids(client.queue, which)
        if not found and which.lane is not None:
            await known_lanes(client.queue, which.lane)
        return found


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
