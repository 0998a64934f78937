"""Shows jobs to people: a table of many, or everything about one."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.cli.admin.common import breaker_text
from scheduler.cli.output import age, moment, print_fields, print_table, priority_text, state_text, table
from scheduler.model import HistoryEntry, JobInfo, JobState
from scheduler.queue.endpoint_status import summarize
from scheduler.queue.reports import EndpointStatus, WorkerInfo

LIST_COLUMNS = ("id", "state", "priority", "model", "tenant", "tries", "age", "position, worker or reason")


def print_jobs(jobs: Sequence[JobInfo], now_ms: int) -> None:
    """Print a table of jobs. `now_ms` is Redis' time."""
    shown = table(*LIST_COLUMNS, right="tries age")
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


def print_job(job: JobInfo, trouble: str | None = None) -> None:
    """Print everything about a job, and its history. `trouble`: why it may not run."""
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
            ("hits", f"{job.hits} callers reused its answer" if job.hits else None),
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
    _print_history(job.history)


def _attempts(job: JobInfo) -> str:
    limit = f" (at most {job.max_attempts} failures)" if job.max_attempts else ""
    return f"{job.attempts}, {job.failures} failed, {job.lost_leases} lost{limit}"


def _print_history(history: Sequence[HistoryEntry]) -> None:
    shown = table("when", "what", "attempt", "worker", "detail", right="attempt")
    for entry in history:
        attempt = str(entry.attempt) if entry.attempt else ""
        what = entry.what if entry.count == 1 else f"{entry.what} ({entry.count} times)"
        shown.add_row(moment(entry.at_ms), what, attempt, entry.worker, entry.detail or "")
    print_table(shown)


def trouble_of(model: str, workers: Sequence[WorkerInfo]) -> str | None:
    """Why a route's jobs may not run; None if all its endpoints are well."""
    serving = [worker for worker in workers if model in worker.routes]
    if not serving:
        return f"no live worker process serves {model!r}"
    endpoints = (one for one in summarize(serving) if one.name.rpartition(".")[0] == model)
    troubled = [f"endpoint {one.name} is {breaker_text(one).plain}" for one in endpoints if _is_troubled(one)]
    return "; ".join(troubled) or None


def _is_troubled(one: EndpointStatus) -> bool:
    return set(one.breakers) != {"closed"} or one.usable_in_s > 0 or one.permit_in_s > 0
