"""`prompt-scheduler enqueue`: one prompt, or a file of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scheduler.cli.arguments import PriorityOption, TenantOption, parse_duration, parse_pairs
from scheduler.cli.enqueue_file import FileOptions, enqueue_file, open_requests, refuse_same_file
from scheduler.cli.enqueue_one import AnswerOptions, enqueue_one, make_request
from scheduler.cli.session import Session, run, session
from scheduler.model import DedupMode


def enqueue(
    ctx: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(metavar="TEXT", help="The prompt; - reads standard input.", show_default=False),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="JSON Lines file of requests or prompts; - reads standard input."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --file: write the results to this file, as JSON Lines."),
    ] = None,
    skip: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="With --file: skip N requests, append to --output."),
    ] = 0,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Route to use; required if there are several.")
    ] = None,
    priority: PriorityOption = None,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    dedup_key: Annotated[
        str | None, typer.Option(help="Identifies equal work; auto derives it from the content.")
    ] = None,
    dedup: Annotated[DedupMode | None, typer.Option(help="What to do with a duplicate.")] = None,
    tenant: TenantOption = None,
    session_name: Annotated[
        str | None, typer.Option("--session", help="Conversation that the prompt belongs to.")
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="Let the job expire after 30s, 5m, 2h."),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="Start the job after this time at the earliest."
        ),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help="Failures after which the job has failed for good.")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option(help="An id of your own; enqueuing it again gives you the same job.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum length of the answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus sampling: sample from this probability mass.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed, for a repeatable answer.")] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End the answer here; may be repeated."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Stored with the job; may be repeated.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", "-s", help="Show the answer as it comes.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the result, or print the job's id.")
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="DURATION",
            help="Stop waiting then; the job is unaffected.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON; with --stream, one event per line.")] = False,
) -> None:
    """Enqueue a prompt, or a file of them, and show the answer."""
    _check_source(text, file)
    _check_options(file, output=output, skip=skip, job_id=job_id, stream=stream, wait=wait)
    params = _given(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop or None)
    fields = _given(
        model=model,
        priority=priority,
        dedup_key=dedup_key,
        dedup=dedup,
        tenant=tenant,
        session=session_name,
        deadline_s=deadline,
        delay_s=delay,
        max_attempts=max_attempts,
        job_id=job_id,
        params=params or None,
        metadata=parse_pairs(metadata or ()) or None,
    )
    at = session(ctx)
    if file is not None:
        file_options = FileOptions(output, skip, wait, timeout, as_json)
        _run_file(at, file, fields, system, file_options)
    else:
        request = make_request(text or "", system, fields)
        run(enqueue_one(at, request, AnswerOptions(stream, wait, timeout, as_json)))


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _check_source(text: str | None, file: Path | None) -> None:
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a prompt, - for standard input, or --file")


def _check_options(
    file: Path | None, *, output: Path | None, skip: int, job_id: str | None, stream: bool, wait: bool
) -> None:
    """Refuse options that contradict each other.

    Raises:
        typer.BadParameter: two of them do.
    """
    if stream and not wait:
        raise typer.BadParameter("--stream waits for the answer: leave out --no-wait")
    if file is not None:
        if stream or job_id:
            raise typer.BadParameter("--stream and --job-id are for one prompt: leave out --file")
        refuse_same_file(file, output)
    elif skip:
        raise typer.BadParameter("--skip is for --file")
    elif output is not None:
        raise typer.BadParameter("--output is for --file: redirect standard output instead")


def _run_file(
    at: Session, file: Path, fields: dict[str, Any], system: str | None, options: FileOptions
) -> None:
    with open_requests(file, fields, system) as requests:
        run(enqueue_file(at, requests, options))
