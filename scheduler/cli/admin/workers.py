"""`prompt-scheduler admin workers`: worker processes."""

from __future__ import annotations

import typer

from scheduler.cli.admin.common import AsJson
from scheduler.cli.output import (
    age,
    print_json,
    print_table,
    remark,
    table,
)
from scheduler.cli.session import Session, run, session
from scheduler.queue.inspection.clock import read_clock_ms
from scheduler.queue.inspection.workers import read_workers
from scheduler.queue.reports import WorkerInfo
from scheduler.queue.worker_report import RouteReport

app = typer.Typer(help="Worker processes.", no_args_is_help=True)


@app.command("list")
def list_workers(ctx: typer.Context, *, as_json: AsJson = False) -> None:
    """List the live worker processes and their work."""
    workers, now_ms = run(_workers(session(ctx)))
    if as_json:
        print_json(workers)
        return
    shown = table("id", "running", "up", "routes: jobs, calls in flight", "", right="running up")
    for worker in workers:
        shown.add_row(
            worker.id,
            f"{worker.running} of {worker.max_running}",
            age((now_ms - worker.started_at_ms) / 1000) if worker.started_at_ms else "",
            _routes(worker),
            " ".join(
                word for word, said in (("leader", worker.leader), ("draining", worker.draining)) if said
            ),
        )
    print_table(shown)
    if not workers:
        remark("No worker process is live; start one: prompt-scheduler worker")


async def _workers(at: Session) -> tuple[list[WorkerInfo], int]:
    async with at.client() as client:
        return await read_workers(client.queue), await read_clock_ms(client.queue)


def _routes(worker: WorkerInfo) -> str:
    return "  ".join(f"{name}: {_route(route)}" for name, route in worker.routes.items())


def _route(route: RouteReport) -> str:
    endpoints = (f"{one.name} {one.in_flight}/{one.limit}" for one in route.endpoints)
    return f"{route.running} ({', '.join(endpoints)})"
