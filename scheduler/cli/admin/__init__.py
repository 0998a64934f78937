"""`prompt-scheduler admin`: see and change the queue."""

from __future__ import annotations

import typer

from scheduler.cli.admin import audit, dead, dedup, jobs, limits, queue, workers
from scheduler.cli.admin.top import top

app = typer.Typer(help="See and change what is in the queue.", no_args_is_help=True)
app.add_typer(queue.app, name="queue")
app.add_typer(jobs.app, name="jobs")
app.add_typer(dedup.app, name="dedup")
app.add_typer(dead.app, name="dead")
app.add_typer(workers.app, name="workers")
app.add_typer(limits.tenants, name="tenants")
app.add_typer(limits.endpoints, name="endpoints")
app.command("audit")(audit.audit)
app.command("top")(top)

__all__ = ["app"]
