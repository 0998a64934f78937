"""`prompt-scheduler admin tenants` and `admin endpoints`: what rate limits have run up."""

from __future__ import annotations

from typing import Annotated

import typer

from scheduler import admin
from scheduler.cli.admin.common import AsJson
from scheduler.cli.output import print_json, say
from scheduler.cli.session import Session, run, session

tenants = typer.Typer(help="Tenants and what they may use.", no_args_is_help=True)
endpoints = typer.Typer(help="Endpoints and what they may use.", no_args_is_help=True)


@tenants.command("forgive")
def forgive_tenant(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Let a tenant have again all that its rate limits give: its debt of tokens is gone."""
    had_used = run(_tenant(session(ctx), tenant))
    _tell("tenant", tenant, had_used, as_json=as_json)


@endpoints.command("forgive")
def forgive_endpoint(
    ctx: typer.Context,
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="As chat.0.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Let an endpoint have again all that its rate limits give, and end a pause that it has asked for."""
    had_used = run(_endpoint(session(ctx), endpoint))
    _tell("endpoint", endpoint, had_used, as_json=as_json)


def _tell(kind: str, name: str, had_used: bool, *, as_json: bool) -> None:
    if as_json:
        print_json({"forgiven": name, "had_used": had_used})
    elif had_used:
        say(f"{kind} {name} has all again that its limits give")
    else:
        say(f"{kind} {name} had used nothing of its limits")


async def _tenant(at: Session, tenant: str) -> bool:
    async with at.client() as client:
        return await admin.forgive_tenant(client.queue, tenant)


async def _endpoint(at: Session, endpoint: str) -> bool:
    async with at.client() as client:
        return await admin.forgive_endpoint(client.queue, endpoint)
