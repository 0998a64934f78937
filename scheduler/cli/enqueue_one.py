"""Enqueues one prompt, and shows its id or its answer."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from scheduler.cli.events import AnswerPrinter, JsonLinesPrinter
from scheduler.cli.output import print_json, remark, say, write_answer
from scheduler.cli.session import Session
from scheduler.client import AsyncClient, Job
from scheduler.client.request_file import add_system
from scheduler.errors import InvalidRequest, JobEnded, ResultTimeout, SchedulerError
from scheduler.events import Done, ended_error
from scheduler.model import PromptRequest
from scheduler.queue.inspection.workers import read_workers

UNSERVED_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How the answer is shown."""

    stream: bool
    """As it comes, or once it is complete."""
    wait: bool
    """Whether to wait for the answer at all."""
    timeout_s: float | None
    as_json: bool


def make_request(text: str, system: str | None, fields: dict[str, Any]) -> PromptRequest:
    """The request for a prompt; `-` reads it from standard input.

    Raises:
        InvalidRequest: a field is wrong.
    """
    prompt = _standard_input() if text == "-" else text
    fields = {"prompt": prompt, **fields}
    if system is not None:
        if not prompt.strip():
            raise InvalidRequest("prompt: is empty; give it some text", field="prompt")
        add_system(fields, system)
    return PromptRequest.parse(**fields)


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"prompt: standard input is not valid UTF-8 at byte {error.start}", field="prompt"
        ) from None


async def enqueue_one(at: Session, request: PromptRequest, options: AnswerOptions) -> None:
    """Enqueue a request, and show what was asked for."""
    async with at.client() as client:
        job = await client.enqueue(request)
        if not options.wait:
            _show_id(job, as_json=options.as_json)
            return
        hint = asyncio.create_task(warn_if_unserved(client, job))
        try:
            show = _show_stream if options.stream else _show_result
            await show(job, options.timeout_s, as_json=options.as_json)
        finally:
            hint.cancel()
            await asyncio.wait([hint])


def _show_id(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json({"job_id": job.id, "deduplicated": job.deduplicated, "channel": job.channel})
    else:
        say(job.id)


async def _show_result(job: Job, timeout_s: float | None, *, as_json: bool) -> None:
    fields: dict[str, Any] = {"job_id": job.id, "deduplicated": job.deduplicated}
    try:
        result = await job.result(timeout_s=timeout_s)
    except JobEnded as error:
        if as_json:
            reason = {"code": error.reason, "message": str(error)}
            print_json({**fields, "state": error.state, "error": reason})
        raise
    if as_json:
        print_json({**fields, "state": "done", "result": result})
    else:
        write_answer(f"{result.text}\n")


async def _show_stream(job: Job, timeout_s: float | None, *, as_json: bool) -> None:
    printer = JsonLinesPrinter() if as_json else AnswerPrinter()
    try:
        async with asyncio.timeout(timeout_s), aclosing(job.events()) as events:
            async for event in events:
                printer.show(event)
                if event.terminal and not isinstance(event, Done):
                    raise ended_error(event)  # type: ignore[arg-type]  # terminal, and not Done
    except TimeoutError:
        raise ResultTimeout.of(job.id, timeout_s) from None


async def warn_if_unserved(client: AsyncClient, job: Job) -> None:
    """After a while, warn if no worker process serves the route: the wait would never end."""
    await asyncio.sleep(UNSERVED_AFTER_S)
    try:
        workers = await read_workers(client.queue)
        model = (await job.info()).model
    except (RedisError, SchedulerError):
        return
    if not any(model in worker.routes for worker in workers):
        remark(f"[no live worker process serves {model!r}; start one: prompt-scheduler worker]")
