"""The demo's client process: sends all prompts, waits for all results, and writes down what it got.

usage: python -m scheduler.cli.demo.client REDIS_URL MODEL PARAMS_JSON REPORT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson

from scheduler.cli.demo.plan import make_plan
from scheduler.client import AsyncClient, Job
from scheduler.errors import SchedulerError
from scheduler.model import PromptRequest


async def send_all(url: str, requests: list[PromptRequest]) -> list[dict[str, Any]]:
    """Send the prompts and wait; what became of each, in order."""
    async with AsyncClient(url) as client:
        outcomes = await client.enqueue_many(requests)
        pairs = zip(requests, outcomes, strict=True)
        return await asyncio.gather(*(_answer(request, outcome) for request, outcome in pairs))


async def _answer(request: PromptRequest, outcome: Job | SchedulerError) -> dict[str, Any]:
    try:
        if isinstance(outcome, SchedulerError):
            raise outcome
        result = await outcome.result()
    except SchedulerError as error:
        return {"prompt": request.prompt, "error": f"{error.code}: {error}"}
    return {
        "prompt": request.prompt,
        "job_id": outcome.id,
        "deduplicated": outcome.deduplicated,
        "text": result.text,
        "output_tokens": result.usage.output_tokens or 0,
    }


def main() -> None:
    """Run the client process."""
    url, model, params, report = sys.argv[1:]
    answers = asyncio.run(send_all(url, make_plan(model, orjson.loads(params))))
    Path(report).write_bytes(orjson.dumps(answers))


if __name__ == "__main__":
    main()
