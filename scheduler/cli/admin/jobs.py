"""`prompt-scheduler admin jobs`: single jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import typer

from scheduler.admin import known_lanes, requeue
from scheduler.cli.admin.common import AsJson, Limit, Yes, breaker_text, confirm
from scheduler.cli.arguments import parse_duration, parse_priority
from scheduler.cli.output import (
    age,
    moment,
    print_fields,
    print_json,
    print_table,
    priority_text,
    remark,
    say,
    state_text,
    table,
)
from scheduler.cli.session import Session, run, session
from scheduler.model import JobInfo, JobState
from scheduler.queue.endpoint_status import summarize
from scheduler.queue.inspection.clock import read_clock_ms
from scheduler.queue.inspection.jobs import list_jobs
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.reports import WorkerInfo

JobId: TypeAlias = Annotated[str, typer.Argument(help="The job's id.", show_default=False)]

app = typer.Typer(help="Single jobs.", no_args_is_help=True)


@app.command("list")
def list_command(
    ctx: typer.Context,
    *,
    state: Annotated[
        JobState | None, typer.Option(help="Only of this state; without it all that have not ended.")
    ] = None,
    lane: Annotated[str | None, typer.Option("--lane", "--model", "-m", help="Only of this lane.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only of this tenant.")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, the waiting ones in the order of claiming."""
    jobs, now_ms = run(_jobs(session(ctx), state, lane, tenant, limit))
    if as_json:
        print_json([job.model_dump(mode="json", exclude={"history", "place"}) for job in jobs])
        return
    shown = table(
        "id",
        "state",
        "priority",
        "model",
        "tenant",
        "tries",
        "age",
        "place, worker or reason",
        right="tries age",
    )
    for job in jobs:
        shown.add_row(
            job.id,
            state_text(job.state),
            priority_text(job.priority),
            job.model,
            job.tenant,
            str(job.attempts),
            age((now_ms - job.enqueued_at_ms) / 1000),
            _remark(job, now_ms),
        )
    print_table(shown)
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


def _remark(job: JobInfo, now_ms: int) -> str:
    match job.state:
        case JobState.WAITING:
            return f"{job.position} before it"
        case JobState.HELD:
            return f"{job.position} of its tenant before it"
        case JobState.RUNNING:
            return job.worker or ""
        case JobState.DELAYED:
            return f"due in {age(max(0, (job.due_at_ms or now_ms) - now_ms) / 1000)}"
    return job.error.code if job.error else job.reason or ""


@app.command("show")
def show(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Show where a job is, why, and what has happened to it."""
    job, trouble = run(_job_and_trouble(session(ctx), job_id))
    if as_json:
        print_json(job)
    else:
        print_job(job, trouble)


def print_job(job: JobInfo, trouble: str | None = None) -> None:
    """Where a job is, why, and its history."""
    print_fields(
        [
            ("id", job.id),
            ("state", state_text(job.state)),
            ("place", job.place),
            ("trouble", trouble),
            ("model", job.model),
            ("priority", priority_text(job.priority)),
            ("tenant", job.tenant),
            ("attempts", _attempts(job)),
            ("tickets", f"{job.tickets}, {job.joined} callers joined" if job.joined else job.tickets),
            ("dedup", job.dedup.value if job.dedup else None),
            ("hits", f"{job.hits} callers got its finished answer" if job.hits else None),
            ("worker", job.worker),
            ("reason", job.reason),
            ("error", f"{job.error.code}: {job.error.message}" if job.error else None),
            ("enqueued", moment(job.enqueued_at_ms)),
            ("due", moment(job.due_at_ms)),
            ("deadline", moment(job.deadline_at_ms)),
            ("started", moment(job.started_at_ms)),
            ("ended", moment(job.ended_at_ms)),
        ]
    )
    history = table("when", "what", "attempt", "worker", "detail", right="attempt")
    for entry in job.history:
        attempt = str(entry.attempt) if entry.attempt else ""
        what = entry.what if entry.count == 1 else f"{entry.what} ({entry.count} times)"
        history.add_row(moment(entry.at_ms), what, attempt, entry.worker, entry.detail or "")
    print_table(history)


async def _job(at: Session, job_id: str) -> JobInfo:
    async with at.client() as client:
        return await client.job(job_id).info()


async def _job_and_trouble(at: Session, job_id: str) -> tuple[JobInfo, str | None]:
    async with at.client() as client:
        job = await client.job(job_id).info()
        if job.state is not JobState.WAITING:
            return job, None
        return job, _trouble(job.model, await read_workers(client.queue))


def _trouble(model: str, workers: Sequence[WorkerInfo]) -> str | None:
    """Why nobody may be at a route's jobs; None where all its endpoints are well."""
    serving = [worker for worker in workers if model in worker.routes]
    if not serving:
        return f"no live worker process serves {model!r}"
    troubled = [
        f"endpoint {one.name} is {breaker_text(one).plain}"
        for one in summarize(serving)
        if one.name.rpartition(".")[0] == model
        and (set(one.breakers) != {"closed"} or one.usable_in_s or one.permit_in_s)
    ]
    return "; ".join(troubled) or None


def _attempts(job: JobInfo) -> str:
    parts = [f"{job.attempts}", f"{job.failures} failed", f"{job.lost_leases} lost"]
    limit = f" (at most {job.max_attempts} failures)" if job.max_attempts else ""
    return ", ".join(parts) + limit


@app.command("set-priority")
def set_priority(
    ctx: typer.Context,
    job_id: JobId,
    priority: Annotated[
        int,
        typer.Argument(parser=parse_priority, metavar="0-9|NAME", help="The new one.", show_default=False),
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
            parser=parse_duration, metavar="DURATION", help="When, from now: 90s, 2h.", show_default=False
        ),
    ],
    *,
    as_json: AsJson = False,
) -> None:
    """Let a delayed job become due at another time."""
    job = run(_reschedule(session(ctx), job_id, delay_s))
    due = f"due in {age(delay_s)}" if job.state is JobState.DELAYED else job.state.value
    _show_changed(job, due, as_json=as_json)


@app.command("run-now")
def run_now(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Let a delayed job run now.

    It waits for its turn, and no longer; so does a job that waits for its retry.
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
    """Forget an ended job now.

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
    """End a job, whoever holds tickets of it."""
    at = session(ctx)
    job = run(_job(at, job_id))
    if not job.state.ended:
        callers = f" that {job.tickets} callers wait for" if job.tickets > 1 else ""
        confirm(f"Cancel {job.state.value} job {job_id}{callers}?", yes=yes)
    cancelled, state = run(_cancel(at, job_id))
    if as_json:
        print_json({"job_id": job_id, "cancelled": cancelled})
    else:
        say(f"{job_id}: {'cancelled' if cancelled else f'had ended already: {state.value}'}")


async def _cancel(at: Session, job_id: str) -> tuple[bool, JobState]:
    async with at.client() as client:
        job = client.job(job_id)
        return await job.cancel(force=True), (await job.info()).state


@app.command("requeue")
def requeue_job(ctx: typer.Context, job_id: JobId, *, as_json: AsJson = False) -> None:
    """Let a job that ended without a result run again."""
    job = run(_requeue(session(ctx), job_id))
    _show_changed(job, job.state.value, as_json=as_json)


async def _requeue(at: Session, job_id: str) -> JobInfo:
    async with at.client() as client:
        await requeue(client.queue, job_id)
        return await client.job(job_id).info()
