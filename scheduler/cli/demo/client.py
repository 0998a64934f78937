"""The demo's client process: sends all prompts, reads all answers as they stream, and writes a report.

usage: python -m scheduler.cli.demo.client REDIS_URL MODEL PARAMS_JSON PROMPTS REPORT
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from scheduler.cli.demo.plan import Sending, make_plan
from scheduler.client import AsyncClient, Job
from scheduler.errors import SchedulerError
from scheduler.events import Cancelled, Delta, Done, Expired, Failed, Retrying, Shed, ended_error
from scheduler.model import PromptRequest


class _Answered:
    """The prompts that have ended. Others can wait until there are enough."""

    def __init__(self) -> None:
        self._prompts: set[str | None] = set()
        self._changed = asyncio.Condition()

    async def add(self, prompt: str | None) -> None:
        async with self._changed:
            self._prompts.add(prompt)
            self._changed.notify_all()

    async def reach(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._prompts) >= count)


async def send_all(url: str, plan: Sequence[Sending]) -> list[dict[str, Any]]:
    """Send each prompt when it is due, and wait for the answers. Returns what became of each, in order."""
    answered = _Answered()
    reading: list[asyncio.Task[dict[str, Any]]] = []
    async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
        for after, sendings in groupby(plan, key=lambda sending: sending.after):
            await answered.reach(after)
            requests = [sending.request for sending in sendings]
            outcomes = await client.enqueue_many(requests)
            for request, outcome in zip(requests, outcomes, strict=True):
                reading.append(group.create_task(_answer(request, outcome, answered)))
        return [await task for task in reading]


async def _answer(
    request: PromptRequest, outcome: Job | SchedulerError, answered: _Answered
) -> dict[str, Any]:
    try:
        if isinstance(outcome, SchedulerError):
            raise outcome
        return {"prompt": request.prompt, "deduplicated": outcome.deduplicated, **await _read(outcome)}
    except SchedulerError as error:
        return {"prompt": request.prompt, "error": f"{error.code}: {error}"}
    finally:
        await answered.add(str(request.prompt))


async def _read(job: Job) -> dict[str, Any]:
    """Follow a job to its end. Returns its result, and the text that was streamed."""
    pieces: list[str] = []
    async for event in job.events():
        if isinstance(event, Delta):
            pieces.append(event.text)
        elif isinstance(event, Retrying):
            pieces.clear()
        elif isinstance(event, Done):
            return {
                "job_id": job.id,
                "text": event.result.text,
                "output_tokens": event.result.usage.output_tokens or 0,
                "streamed": "".join(pieces),
                "pieces": len(pieces),
            }
        elif isinstance(event, Failed | Cancelled | Expired | Shed):
            raise ended_error(event)
    raise SchedulerError(f"job {job.id}: its events ended without a terminal event")


def main() -> None:
    """Run the client process."""
    url, model, params, prompts, report = sys.argv[1:]
    plan = make_plan(model, orjson.loads(params), prompts=int(prompts))
    Path(report).write_bytes(orjson.dumps(asyncio.run(send_all(url, plan))))


if __name__ == "__main__":
    main()
