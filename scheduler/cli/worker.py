"""`prompt-scheduler worker`: a worker process, hosted by arq."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler.cli.session import redis_errors, session


def worker(
    ctx: typer.Context,
    *,
    burst: Annotated[bool, typer.Option("--burst", help="Exit when no jobs are left.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check the health of a running worker process and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run a worker process, as `arq scheduler.WorkerSettings` does."""
    from arq.cli import cli as arq  # noqa: PLC0415  other commands start faster without it

    at = session(ctx)
    at.export()
    flags = {"--burst": burst, "--check": check, "--verbose": verbose}
    given = [flag for flag, wanted in flags.items() if wanted]
    with redis_errors(at.settings.redis_url.get_secret_value()):
        arq.main(["scheduler.WorkerSettings", *given], prog_name="prompt-scheduler worker")
