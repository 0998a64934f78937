"""Many prompts from a file: read, enqueued as the queue has room, answered as they end."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from scheduler.client import AsyncClient, Job
from scheduler.errors import (
    InvalidRequest,
    JobEnded,
    JobNotFound,
    QueueFull,
    ResultTimeout,
    SchedulerError,
)
from scheduler.model import PromptRequest

STDIN = Path("-")
CHUNK = 64
IN_FLIGHT = 1024
"""How many jobs are followed at once; more of the file is enqueued as these end."""

Outcome: TypeAlias = dict[str, Any]


def read_requests(path: Path, defaults: dict[str, Any], system: str | None) -> list[PromptRequest]:
    """The requests of a JSON Lines file: an object with the fields of a request, or a string, in each line.

    `defaults` are for what a line does not say, `system` for one without a system message. The whole file is
    checked before anything is enqueued.

    Raises:
        InvalidRequest: naming the line at fault.
    """
    try:
        data = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"--file: {path} cannot be read: {error.strerror}", field="file") from None
    requests = [_request(path, number, line, defaults, system) for number, line in _lines(data)]
    if not requests:
        raise InvalidRequest(f"--file: {path} has no request in it", field="file")
    return requests


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield number, line


def _request(
    path: Path, number: int, line: bytes, defaults: dict[str, Any], system: str | None
) -> PromptRequest:
    try:
        fields = orjson.loads(line)
        if isinstance(fields, str):
            fields = {"prompt": fields}
        if not isinstance(fields, dict):
            raise InvalidRequest("give an object with the fields of a request, or a string")
        return PromptRequest.parse(**_completed(fields, defaults, system))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{path}, line {number}: is not JSON: {error.msg}") from None
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}, line {number}: {error}", field=error.field) from None


def _completed(fields: dict[str, Any], defaults: dict[str, Any], system: str | None) -> dict[str, Any]:
    said = {**defaults, **fields}
    if isinstance(fields.get("params"), dict) and "params" in defaults:
        said["params"] = {**defaults["params"], **fields["params"]}
    if system is not None:
        message = {"role": "system", "content": system}
        if isinstance(said.get("prompt"), str):
            said["messages"] = [message, {"role": "user", "content": said.pop("prompt")}]
        elif isinstance(said.get("messages"), list) and not _has_system(said["messages"]):
            said["messages"] = [message, *said["messages"]]
    return said


def _has_system(messages: list[Any]) -> bool:
    return any(isinstance(one, dict) and one.get("role") in ("system", "developer") for one in messages)


class BulkRun:
    """Sends requests and tells what became of each, in the order in which they end.

    `tell` gets one outcome a request: `index` (from 0), `job_id`, `state`, and `result` or `error`.
    """

    def __init__(
        self,
        client: AsyncClient,
        tell: Callable[[Outcome], None],
        *,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> None:
        self._client = client
        self._tell = tell
        self._wait = wait
        self._timeout_s = timeout_s
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self.states: Counter[str] = Counter()

    async def send(self, requests: Sequence[PromptRequest]) -> None:
        """Send all of them, and wait for their results where that is asked for.

        Raises:
            RedisError: Redis cannot take them.
        """
        try:
            await self._send(requests)
        except BaseExceptionGroup as group:
            # One follower's trouble, such as a pipe that nobody reads any more, ends them all.
            raise group.exceptions[0] from None

    async def _send(self, requests: Sequence[PromptRequest]) -> None:
        async with asyncio.TaskGroup() as followers:
            for start in range(0, len(requests), CHUNK):
                chunk = dict(enumerate(requests[start : start + CHUNK], start))
                for index, outcome in (await self._enqueue(chunk)).items():
                    if isinstance(outcome, SchedulerError):
                        self._end(_failure(index, None, "refused", outcome))
                    elif self._wait:
                        await self._room.acquire()
                        followers.create_task(self._follow(index, outcome))
                    else:
                        self._end(
                            {
                                "index": index,
                                "job_id": outcome.id,
                                "state": "enqueued",
                                "deduplicated": outcome.deduplicated,
                            }
                        )

    async def _enqueue(self, requests: dict[int, PromptRequest]) -> dict[int, Job | SchedulerError]:
        """Enqueue a chunk; what finds no room comes again when there is likely some."""
        outcomes: dict[int, Job | SchedulerError] = {}
        while requests:
            replies = await self._client.enqueue_many(list(requests.values()))
            outcomes |= dict(zip(requests, replies, strict=True))
            full = [(at, reply) for at, reply in outcomes.items() if isinstance(reply, QueueFull)]
            requests = {at: requests[at] for at, _ in full}
            if full:
                await asyncio.sleep(max(reply.retry_after_s for _, reply in full))
        return dict(sorted(outcomes.items()))

    async def _follow(self, index: int, job: Job) -> None:
        try:
            result = await job.result(timeout_s=self._timeout_s)
            self._end({"index": index, "job_id": job.id, "state": "done", "result": result})
        except JobEnded as error:
            self._end(_failure(index, job.id, error.state, error))
        except ResultTimeout as error:
            self._end(_failure(index, job.id, "timeout", error))
        except JobNotFound as error:
            self._end(_failure(index, job.id, "lost", error))
        finally:
            self._room.release()

    def _end(self, outcome: Outcome) -> None:
        self.states[outcome["state"]] += 1
        self._tell(outcome)


def _failure(index: int, job_id: str | None, state: str, error: SchedulerError) -> Outcome:
    code = error.reason if isinstance(error, JobEnded) else error.code
    return {
        "index": index,
        "job_id": job_id,
        "state": state,
        "error": {"code": code, "message": str(error)},
    }
