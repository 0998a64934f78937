"""`prompt-scheduler embed` and `rerank`: the other kinds of work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import orjson
import typer

from scheduler.cli.arguments import PriorityOption, TenantOption, parse_duration
from scheduler.cli.enqueue_one import warn_if_unserved
from scheduler.cli.output import print_json, say
from scheduler.cli.session import Session, run, session
from scheduler.errors import InvalidRequest
from scheduler.model import EmbeddingRequest, Embeddings, JobRequest, JobResult, Ranking, RerankRequest
from scheduler.printable import one_line

ResultT = TypeVar("ResultT", bound=JobResult)

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Route to use; required if several do this kind of work.")
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(parser=parse_duration, metavar="DURATION", help="Stop waiting then; the job is unaffected."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="The whole result, as one JSON document.")]


def embed(
    ctx: typer.Context,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="The texts; - reads standard input, a text a line.")
    ],
    *,
    model: ModelOption = None,
    dimensions: Annotated[
        int | None, typer.Option(help="Length of the vectors, where the model can shorten them.")
    ] = None,
    priority: PriorityOption = None,
    tenant: TenantOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Embed texts, and show a vector a line."""
    fields = _given(model=model, dimensions=dimensions, priority=priority, tenant=tenant)
    request = EmbeddingRequest.parse(input=_lines(texts), **fields)
    result = run(_result(session(ctx), Embeddings, request, timeout))
    if as_json:
        print_json({**result.model_dump(exclude=_NOT_SHOWN), "vectors": result.vectors})
        return
    for vector in result.vectors:
        say(orjson.dumps(vector).decode())


def rerank(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    documents: Annotated[
        list[str],
        typer.Argument(
            metavar="DOCUMENT...", help="The documents; - reads standard input, a document a line."
        ),
    ],
    *,
    model: ModelOption = None,
    top_n: Annotated[int | None, typer.Option(help="How many of the best to show; all without it.")] = None,
    priority: PriorityOption = None,
    tenant: TenantOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Order documents by their relevance to a query, and show score, number and text of each."""
    fields = _given(model=model, top_n=top_n, priority=priority, tenant=tenant)
    request = RerankRequest.parse(query=query, documents=_lines(documents), return_documents=True, **fields)
    result = run(_result(session(ctx), Ranking, request, timeout))
    if as_json:
        print_json(result.model_dump(exclude=_NOT_SHOWN))
        return
    for one in result.results:
        say(f"{one.score:.4f}  {one.index}  {one_line(one.document or '')}")


_NOT_SHOWN = {"text", "message", "tool_calls", "reasoning", "choices", "embeddings", "sources", "logprobs"}


async def _result(at: Session, cls: type[ResultT], request: JobRequest, timeout_s: float | None) -> ResultT:
    async with at.client() as client:
        job = await client.enqueue(request)
        hint = asyncio.create_task(warn_if_unserved(client, job))
        try:
            result = await job.result(timeout_s=timeout_s)
        finally:
            hint.cancel()
            await asyncio.wait([hint])
    assert isinstance(result, cls)  # noqa: S101  the route was checked, and the job has no id of the user's
    return result


def _lines(texts: Sequence[str]) -> list[str]:
    """The texts, or for a single `-` the lines of standard input that are not empty."""
    if list(texts) != ["-"]:
        return list(texts)
    try:
        lines = sys.stdin.buffer.read().decode().splitlines()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is not valid UTF-8 at byte {error.start}") from None
    return [line for line in lines if line.strip()]


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
