"""`run_prompt`, the arq function: enqueues a prompt and waits for its result."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine
from typing import Any

from arq import Retry as ArqRetry

from scheduler.client import AsyncClient, Job
from scheduler.errors import InvalidRequest, RedisOutOfMemory, RedisUnavailable, ResultTimeout
from scheduler.model import JobResult
from scheduler.payload import parse_request

# After a crash arq holds a job back for its longest function's timeout: wait in slices, and ask to run again.
WAIT_S = 60.0
TIMEOUT_S = 75.0
TRIES = 100_000
MAX_RUNNING = 1000


class RunPrompt:
    """Runs prompts for arq between `begin` and `leave`; at other times arq is asked to try again."""

    def __init__(self) -> None:
        self._client: AsyncClient | None = None
        self._leaving = asyncio.Event()

    def begin(self, client: AsyncClient) -> None:
        """Run prompts through this client."""
        self._client = client

    def leave(self) -> None:
        """Give all runs back to arq, for another process. Their prompts stay in the queue."""
        self._leaving.set()

    async def run_prompt(self, context: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        """The arq function: enqueue a prompt, wait for its result, return it as JSON values.

        `request` has the fields of `PromptRequest`; with `kind` "embedding" or "rerank", those of the others.
        The job's id comes from arq's job id and enqueue time, so
        that a second run of the arq job joins the job of the first. Aborting the arq job cancels the prompt.
        """
        began = time.monotonic()
        if self._client is None or self._leaving.is_set():
            raise ArqRetry(defer=1)
        job = await self._enqueue(self._client, context, request)
        try:
            return await self._unless_leaving(job.result(timeout_s=WAIT_S))
        except asyncio.CancelledError:
            # arq also cancels a run when the process leaves, and when the run has taken too long.
            if not self._leaving.is_set() and time.monotonic() - began < TIMEOUT_S:
                await job.cancel()
            raise

    async def _enqueue(self, client: AsyncClient, context: dict[str, Any], request: object) -> Job:
        if not isinstance(request, dict):
            raise InvalidRequest("request: give run_prompt one mapping with the fields of a request")
        fields = {"job_id": job_id_of(context), **request}
        try:
            await client.connect()
            return await client.enqueue(parse_request(fields))
        except (RedisUnavailable, RedisOutOfMemory):
            raise ArqRetry(defer=1) from None

    async def _unless_leaving(self, wait: Coroutine[Any, Any, JobResult]) -> dict[str, Any]:
        result = asyncio.create_task(wait)
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            await asyncio.wait({result, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                raise ArqRetry(defer=1)
            return (await result).model_dump(mode="json")
        except ResultTimeout:
            raise ArqRetry(defer=0) from None
        finally:
            leaving.cancel()
            result.cancel()


def job_id_of(context: dict[str, Any]) -> str:
    """The id of the prompt's job: the same for each run of an arq job, another if its id is used again."""
    enqueued_at = context["enqueue_time"].isoformat()
    digest = hashlib.blake2b(f"{context['job_id']}\0{enqueued_at}".encode(), digest_size=16).hexdigest()
    return f"arq-{digest}"
