"""Many prompts from a file: read, enqueued as the queue has room, answered in the order of the file."""

from __future__ import annotations

import asyncio
import codecs
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

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
from scheduler.model import MAX_REQUEST_BYTES, PromptRequest

STDIN = Path("-")
CHUNK = 64
IN_FLIGHT = 1024
"""How many jobs are followed, and results kept, at once; as they are told more of the file is enqueued."""
MAX_LINE_BYTES = 8 * MAX_REQUEST_BYTES
"""JSON may write one byte of a request as six."""

Outcome: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RequestFile:
    """The requests of a JSON Lines file: an object with the fields of a request, or a string, in each line.

    Iterating reads from the start, a line at a time. `defaults` are for what a line does not say, `system`
    for one without a system message.
    """

    lines: BinaryIO
    name: str
    defaults: dict[str, Any]
    system: str | None

    def __iter__(self) -> Iterator[PromptRequest]:
        self.lines.seek(0)
        number = 0
        while line := self.lines.readline(MAX_LINE_BYTES):
            number += 1
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)  # some editors write one
            if line.strip():
                yield self._request(number, line)

    def check(self) -> int:
        """Look at every line, and count the requests.

        Raises:
            InvalidRequest: naming the line at fault.
        """
        count = sum(1 for _ in self)
        if not count:
            raise InvalidRequest(f"--file: {self.name} has no request in it", field="file")
        return count

    def _request(self, number: int, line: bytes) -> PromptRequest:
        try:
            if len(line) == MAX_LINE_BYTES:
                raise InvalidRequest(f"is longer than {MAX_LINE_BYTES:,} bytes")
            fields = orjson.loads(line)
            if isinstance(fields, str):
                fields = {"prompt": fields}
            if not isinstance(fields, dict):
                raise InvalidRequest("give an object with the fields of a request, or a string")
            return PromptRequest.parse(**_completed(fields, self.defaults, self.system))
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"{self.name}, line {number}: is not JSON: {error.msg}") from None
        except InvalidRequest as error:
            raise InvalidRequest(f"{self.name}, line {number}: {error}", field=error.field) from None


@contextmanager
def open_requests(path: Path, defaults: dict[str, Any], system: str | None) -> Iterator[RequestFile]:
    """Open a file of requests, `-` for standard input. What comes through a pipe goes to a temporary file.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        lines = _seekable(path)
    except OSError as error:
        raise InvalidRequest(f"--file: {path} cannot be read: {error.strerror}", field="file") from None
    with lines:
        yield RequestFile(lines, "standard input" if path == STDIN else str(path), defaults, system)


def _seekable(path: Path) -> BinaryIO:
    if path != STDIN and path.is_file():
        return path.open("rb")
    kept = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  its reader closes it
    try:
        if path == STDIN:
            shutil.copyfileobj(sys.stdin.buffer, kept)
        else:
            with path.open("rb") as pipe:
                shutil.copyfileobj(pipe, kept)
    except BaseException:
        kept.close()
        raise
    return kept


def _completed(fields: dict[str, Any], defaults: dict[str, Any], system: str | None) -> dict[str, Any]:
    said = {**defaults, **fields}
    for name in ("params", "metadata"):
        if isinstance(fields.get(name), dict) and name in defaults:
            said[name] = {**defaults[name], **fields[name]}
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
    """Sends requests and tells what became of each, in the order of the requests.

    `tell` gets one outcome a request: `index` (from 0), `job_id`, `state`, then `text` and `result`, or
    `error`. When the run is cut short, what has ended by then is told without what had not.
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
        self._ended: dict[int, Outcome] = {}
        self._next = 0
        self.states: Counter[str] = Counter()

    async def send(self, requests: Iterable[PromptRequest]) -> None:
        """Send all of them, and wait for their results where that is asked for.

        Raises:
            RedisError: Redis cannot take them.
        """
        try:
            await self._send(requests)
        except asyncio.CancelledError:
            self._tell_the_rest()
            raise
        except BaseExceptionGroup as group:
            # One follower's trouble, such as a pipe that nobody reads any more, ends them all.
            first = group.exceptions[0]
            if isinstance(first, SchedulerError):
                self._tell_the_rest()
            raise first from None

    async def _send(self, requests: Iterable[PromptRequest]) -> None:
        numbered = enumerate(requests)
        async with asyncio.TaskGroup() as followers:
            while chunk := dict(islice(numbered, CHUNK)):
                for index, outcome in (await self._enqueue(chunk)).items():
                    await self._room.acquire()
                    if isinstance(outcome, SchedulerError):
                        self._end(_failure(index, None, "refused", outcome))
                    elif self._wait:
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
        said: Outcome = {"index": index, "job_id": job.id}
        try:
            result = await job.result(timeout_s=self._timeout_s)
            self._end({**said, "state": "done", "text": result.text, "result": result})
        except JobEnded as error:
            self._end(_failure(index, job.id, error.state, error))
        except ResultTimeout as error:
            self._end(_failure(index, job.id, "timeout", error))
        except JobNotFound as error:
            self._end(_failure(index, job.id, "lost", error))

    def _end(self, outcome: Outcome) -> None:
        self._ended[outcome["index"]] = outcome
        while (following := self._ended.pop(self._next, None)) is not None:
            self._next += 1
            self._room.release()
            self._count_and_tell(following)

    def _tell_the_rest(self) -> None:
        for index in sorted(self._ended):
            self._count_and_tell(self._ended.pop(index))

    def _count_and_tell(self, outcome: Outcome) -> None:
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
