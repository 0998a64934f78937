"""`prompt-scheduler admin jobs`: single jobs."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from scheduler.admin import known_lanes, requeue
from scheduler.cli.admin.common import AsJson, Limit, Yes, confirm
from scheduler.cli.admin.job_text import print_job, print_jobs, trouble_of
from scheduler.cli.arguments import parse_duration, parse_priority
from scheduler.cli.output import age, print_json, priority_text, remark, say
from scheduler.cli.session import Session, run, session
from scheduler.model import JobInfo, JobState
from scheduler.queue.inspection.clock import read_clock_ms
from scheduler.queue.inspection.jobs import list_jobs
from scheduler.queue.inspection.workers import read_workers

JobId: TypeAlias = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]

app = typer.Typer(help="Single jobs.", no_args_is_help=True)


@app.command("list")
def list_command(
    ctx: typer.Context,
    *,
    state: Annotated[
        JobState | None, typer.Option(help="Only jobs in this state. Default: all that have not ended.")
    ] = None,
    lane: Annotated[str | None, typer.Option("--lane", "--model", "-m", help="Only of this lane.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the waiting ones in the order in which they are claimed."""
    jobs, now_ms = run(_jobs(session(ctx), state, lane, tenant, limit))
    if as_json:
        print_json([job.model_dump(mode="json", exclude={"history", "place"}) for job in jobs])
        return
    print_jobs(jobs, now_ms)
    if len(jobs) == limit:
        remark(f"These are the first {limit:,}; --limit shows more.")


async def _jobs(
    at: Session, state: JobState | None, lane: str | None, tenant: str | None, limit: int
) -> tuple[list[JobInfo], int]:
    async with at.client() as client:
        jobs = await list_jobs(client.queue, state=state, lane=lane, tenant=tenant, limit=limit)
        if not jobs and lane is not None:
            await known_lanes(client.queue, lane)
        return jobs, await read_clock_ms(client.queue)


@app.command("show")
def show(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Show where a job is, why, and its history."""
    job, trouble = run(_job_and_trouble(session(ctx), job_id))
    if as_json:
        print_json(job)
    else:
        print_job(job, trouble)


async def _job(at: Session, job_id: str) -> JobInfo:
    async with at.client() as client:
        return await client.job(job_id).info()


async def _job_and_trouble(at: Session, job_id: str) -> tuple[JobInfo, str | None]:
    async with at.client() as client:
        job = await client.job(job_id).info()
        if job.state is not JobState.WAITING:
            return job, None
        return job, trouble_of(job.model, await read_workers(client.queue))


@app.command("set-priority")
def set_priority(
    ctx: typer.Context,
    job_id: JobId,
    priority: Annotated[
        int,
        typer.Argument(parser=parse_priority, metavar="0-9|NAME", help="New priority.", show_default=False),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Change the priority of a job; it keeps its enqueue time."""
    job = run(_set_priority(session(ctx), job_id, priority))
    _show_changed(job, f"priority {priority_text(job.priority)}", as_json=as_json)


def _show_changed(job: JobInfo, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        say(f"{job.id}: {what}" + (f"; {job.place}" if job.place else ""))


async def _set_priority(at: Session, job_id: str, priority: int) -> JobInfo:
    async with at.client() as client:
        job = client.job(job_id)
        await job.set_priority(priority)
        return await job.info()


@app.command("reschedule")
def reschedule(
    ctx: typer.Context,
    job_id: JobId,
    delay_s: Annotated[
        float,
        typer.Argument(
            parser=parse_duration, metavar="DURATION", help="Time from now: 90s, 2h.", show_default=False
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Change the time at which a delayed job becomes due."""
    job = run(_reschedule(session(ctx), job_id, delay_s))
    due = f"due in {age(delay_s)}" if job.state is JobState.DELAYED else job.state.value
    _show_changed(job, due, as_json=as_json)


@app.command("run-now")
def run_now(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Run a delayed job as soon as it is its turn.

    Works for jobs that wait for a retry as well.
    """
    job = run(_reschedule(session(ctx), job_id, 0))
    _show_changed(job, job.state.value, as_json=as_json)


async def _reschedule(at: Session, job_id: str, delay_s: float) -> JobInfo:
    async with at.client() as client:
        job = client.job(job_id)
        await job.reschedule(delay_s)
        return await job.info()


@app.command("delete")
def delete(ctx: typer.Context, job_id: JobId, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Delete an ended job now.

    Its request, its answer, its events and its record are deleted.
    """
    at = session(ctx)
    job = run(_job(at, job_id))
    confirm(f"Delete {job.state.value} job {job_id} and its text?", yes=yes)
    run(_delete(at, job_id))
    if as_json:
        print_json({"job_id": job_id, "deleted": True})
    else:
        say(f"{job_id}: deleted")


async def _delete(at: Session, job_id: str) -> None:
    async with at.client() as client:
        await client.job(job_id).delete()


@app.command("cancel")
def cancel(ctx: typer.Context, job_id: JobId, *, yes: Yes = False, as_json: AsJson = False) -> None:
    """Cancel a job for all of its callers."""
    at = session(ctx)
    job = run(_job(at, job_id))
    if not job.state.ended:
        callers = f" of {job.tickets} callers" if job.tickets > 1 else ""
        confirm(f"Cancel {job.state.value} job {job_id}{callers}?", yes=yes)
    cancelled, state = run(_cancel(at, job_id))
    if as_json:
        print_json({"job_id": job_id, "cancelled": cancelled})
    else:
        say(f"{job_id}: {'cancelled' if cancelled else f'has ended already: {state.value}'}")


async def _cancel(at: Session, job_id: str) -> tuple[bool, JobState]:
    async with at.client() as client:
        job = client.job(job_id)
        return await job.cancel(force=True), (await job.info()).state


@app.command("requeue")
def requeue_job(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Run a job that ended without a result again."""
    job = run(_requeue(session(ctx), job_id))
    _show_changed(job, job.state.value, as_json=as_json)


async def _requeue(at: Session, job_id: str) -> JobInfo:
    async with at.client() as client:
        await requeue(client.queue, job_id)
        return await client.job(job_id).info()
