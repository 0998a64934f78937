"""`prompt-scheduler enqueue`: one prompt, or a file of them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import aclosing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from redis.exceptions import RedisError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scheduler.cli.arguments import parse_duration, parse_pairs, parse_priority
from scheduler.cli.bulk import STDIN, BulkRun, Outcome, RequestFile, open_requests
from scheduler.cli.events import AnswerPrinter, JsonLinesPrinter
from scheduler.cli.output import console, json_line, print_json, remark, say, write_answer
from scheduler.cli.session import Session, run, session
from scheduler.client import AsyncClient, Job
from scheduler.errors import InvalidRequest, JobEnded, ResultTimeout, SchedulerError
from scheduler.events import Done, ended_error
from scheduler.model import DedupMode, PromptRequest
from scheduler.queue.inspection.workers import read_workers

SAY_UNSERVED_AFTER_S = 2.0


def enqueue(
    ctx: typer.Context,
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT", help="The prompt; - reads it from standard input.", show_default=False
        ),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="JSON Lines file of requests or prompts; - reads standard input."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="With --file: write the results here, as JSON Lines."),
    ] = None,
    skip: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="With --file: skip the first N requests, append to --output."),
    ] = 0,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Route to ask; required if there are several.")
    ] = None,
    priority: Annotated[
        int | None,
        typer.Option(
            "--priority",
            "-p",
            parser=parse_priority,
            metavar="0-9|NAME",
            help="Higher is more urgent: background, low, normal, high, critical, or 0 to 9.",
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message before the prompt.")] = None,
    dedup_key: Annotated[
        str | None, typer.Option(help="Identifies equal work; auto derives it from the content.")
    ] = None,
    dedup: Annotated[DedupMode | None, typer.Option(help="What to do with a duplicate.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant that the job belongs to.")] = None,
    session_name: Annotated[
        str | None, typer.Option("--session", help="Conversation that the prompt belongs to.")
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(parser=parse_duration, metavar="DURATION", help="Let it expire after 30s, 5m, 2h."),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="Do not start it before this has passed."
        ),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option(help="Failures after which it has failed for good.")
    ] = None,
    job_id: Annotated[
        str | None, typer.Option(help="Your own id; enqueuing it again gives you the same job.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum length of the answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Nucleus sampling: sample from this probability mass.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed, for a repeatable answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this; may be repeated.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Kept with the job; may be repeated.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", "-s", help="Show the answer as it comes.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the result, or print the job's id.")
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration, metavar="DURATION", help="Stop waiting after this; the job goes on."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON; with --stream an event a line.")] = False,
) -> None:
    """Enqueue a prompt, or a file of them, and show the answer."""
    params = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
    }
    fields = _given(
        {
            "model": model,
            "priority": priority,
            "dedup_key": dedup_key,
            "dedup": dedup,
            "tenant": tenant,
            "session": session_name,
            "deadline_s": deadline,
            "delay_s": delay,
            "max_attempts": max_attempts,
            "params": _given(params) or None,
            "metadata": parse_pairs(metadata or []) or None,
        }
    )
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a prompt, - for standard input, or --file")
    if stream and not wait:
        raise typer.BadParameter("--stream waits for the answer: leave out --no-wait")
    if file is not None:
        if stream or job_id:
            raise typer.BadParameter("--stream and --job-id are for one prompt: leave out --file")
        _refuse_same_file(file, output)
        with open_requests(file, fields, system) as requests:
            sending = _enqueue_file(
                session(ctx), requests, output, skip=skip, wait=wait, timeout_s=timeout, as_json=as_json
            )
            run(sending)
        return
    if skip:
        raise typer.BadParameter("--skip is for --file")
    if output is not None:
        raise typer.BadParameter("--output is for --file: redirect standard output instead")
    prompt = _standard_input() if text == "-" else text or ""
    request = _request(prompt, system, fields | _given({"job_id": job_id}))
    run(_enqueue_one(session(ctx), request, stream=stream, wait=wait, timeout_s=timeout, as_json=as_json))


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"prompt: standard input is not valid UTF-8 at byte {error.start}", field="prompt"
        ) from None


def _refuse_same_file(file: Path, output: Path | None) -> None:
    if output is not None and file != STDIN and file.exists() and output.exists() and file.samefile(output):
        raise typer.BadParameter("--output is the file of --file, which would be lost: give another one")


def _request(prompt: str, system: str | None, fields: dict[str, Any]) -> PromptRequest:
    if system is None:
        return PromptRequest.parse(prompt=prompt, **fields)
    if not prompt.strip():
        raise InvalidRequest("prompt: is empty; give it some text", field="prompt")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    return PromptRequest.parse(messages=messages, **fields)


async def _enqueue_one(
    at: Session,
    request: PromptRequest,
    *,
    stream: bool,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    async with at.client() as client:
        job = await client.enqueue(request)
        if not wait:
            _show_id(job, as_json=as_json)
            return
        hint = asyncio.create_task(_say_if_unserved(client, job))
        try:
            if stream:
                await _show_stream(job, timeout_s, as_json=as_json)
            else:
                await _show_result(job, timeout_s, as_json=as_json)
        finally:
            hint.cancel()
            await asyncio.wait([hint])


def _show_id(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json({"job_id": job.id, "deduplicated": job.deduplicated, "channel": job.channel})
    else:
        say(job.id)


async def _show_result(job: Job, timeout_s: float | None, *, as_json: bool) -> None:
    said: dict[str, Any] = {"job_id": job.id, "deduplicated": job.deduplicated}
    try:
        result = await job.result(timeout_s=timeout_s)
    except JobEnded as error:
        if as_json:
            print_json({**said, "state": error.state, "error": {"code": error.reason, "message": str(error)}})
        raise
    if as_json:
        print_json({**said, "state": "done", "result": result})
    else:
        write_answer(f"{result.text}\n")


async def _show_stream(job: Job, timeout_s: float | None, *, as_json: bool) -> None:
    printer = JsonLinesPrinter() if as_json else AnswerPrinter()
    try:
        async with asyncio.timeout(timeout_s), aclosing(job.events()) as events:
            async for event in events:
                printer.show(event)
                if event.terminal and not isinstance(event, Done):
                    raise ended_error(event)  # type: ignore[arg-type]
    except TimeoutError:
        raise ResultTimeout(
            f"job {job.id} had not ended after {timeout_s:g} s; the job is unaffected"
        ) from None


async def _say_if_unserved(client: AsyncClient, job: Job) -> None:
    """Say so where nothing would ever come of waiting, because nobody serves the route."""
    await asyncio.sleep(SAY_UNSERVED_AFTER_S)
    try:
        workers = await read_workers(client.queue)
        model = (await job.info()).model
    except (RedisError, SchedulerError):
        return
    if not any(model in worker.routes for worker in workers):
        remark(f"[no live worker process serves {model!r}; start one: prompt-scheduler worker]")


async def _enqueue_file(
    at: Session,
    requests: RequestFile,
    output: Path | None,
    *,
    skip: int,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> None:
    """The whole file is checked before anything is enqueued, and read again to be sent."""
    total = requests.check()
    if skip >= total:
        raise InvalidRequest(f"--skip: {requests.name} has {total:,} requests; nothing is left", field="skip")
    with _lines_to(output, append=bool(skip)) as lines, _progress() as progress:
        bar = progress.add_task("answering" if wait else "sending", total=total - skip, failed="")

        def tell(outcome: Outcome) -> None:
            plain_id = not wait and not as_json and output is None and outcome["job_id"]
            lines.write(plain_id.encode() if plain_id else json_line(outcome))
            lines.write(b"\n")
            lines.flush()

        def show_counts() -> None:
            failed = f"{bulk.failed:,} failed" if bulk.failed else ""
            progress.update(bar, completed=bulk.ended, failed=failed)

        async with at.client() as client:
            bulk = BulkRun(client, tell, wait=wait, timeout_s=timeout_s, first=skip, changed=show_counts)
            try:
                await bulk.send(islice(requests, skip, None))
            except (asyncio.CancelledError, SchedulerError, RedisError):
                progress.stop()
                _say_how_to_go_on(bulk, total)
                raise
    remark(f"{total - skip:,} requests: {_counted(bulk.states)}")
    if bulk.failed:
        raise typer.Exit(1)


def _say_how_to_go_on(bulk: BulkRun, total: int) -> None:
    ended = f"{bulk.ended:,} have ended ({_counted(bulk.states)})" if bulk.ended else "none has ended"
    remark(f"Stopped: {bulk.taken:,} of {total:,} requests were sent; {ended}.")
    if bulk.at_work:
        remark(
            f"{bulk.at_work:,} are in the queue and go on; their lines say enqueued, and "
            "`prompt-scheduler subscribe JOB_ID` shows what becomes of one."
        )
    if bulk.taken < total:
        remark(f"To send the others: the same command with --skip {bulk.taken}")


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in sorted(states.items()))


@contextmanager
def _lines_to(output: Path | None, *, append: bool) -> Iterator[BinaryIO]:
    if output is None:
        yield sys.stdout.buffer
        return
    try:
        lines = output.open("ab" if append else "wb")
    except OSError as error:
        raise InvalidRequest(f"--output: {output} cannot be written: {error.strerror}") from None
    with lines:
        yield lines


def _progress() -> Progress:
    """A bar on standard error; nothing at all where that is no terminal."""
    shown = console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=max(4, min(40, shown.width - 46))),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}", style="red", markup=False),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=shown, disable=not shown.is_terminal, transient=True)
