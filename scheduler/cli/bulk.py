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
LAST_ANSWER_S = 2.0
"""How long to wait, after Ctrl-C, for the answer to what is being sent."""
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

    `tell` gets one outcome a request: `index` (from `first`), `job_id`, `state`, then `text` and `result`, or
    `error`. When the run is cut short, a job that has not ended is told as `enqueued`, a request that found
    no room as `not_sent`, one whose answer had not come as `unknown`. `changed` is called at each count.
    """

    def __init__(
        self,
        client: AsyncClient,
        tell: Callable[[Outcome], None],
        *,
        wait: bool = True,
        timeout_s: float | None = None,
        first: int = 0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._tell = tell
        self._wait = wait
        self._timeout_s = timeout_s
        self._changed = changed
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._at_work: dict[int, Outcome] = {}
        self._ended: dict[int, Outcome] = {}
        self._next = first
        # Of the file, those before `first` included.
        self.taken = first
        self.states: Counter[str] = Counter()

    @property
    def ended(self) -> int:
        """How many have come to an end."""
        return self.states.total()

    @property
    def failed(self) -> int:
        """How many of them came to another end than they were to."""
        return self.ended - self.states["done" if self._wait else "enqueued"]

    @property
    def at_work(self) -> int:
        """How many have been sent and have not ended."""
        return sum(one["state"] == "enqueued" for one in self._at_work.values())

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
        numbered = enumerate(requests, self._next)
        async with asyncio.TaskGroup() as followers:
            while chunk := dict(islice(numbered, CHUNK)):
                self.taken += len(chunk)
                for index, outcome in (await self._enqueue(chunk)).items():
                    await self._room.acquire()
                    if isinstance(outcome, SchedulerError):
                        self._end(_failure(index, None, "refused", outcome))
                    elif self._wait:
                        followers.create_task(self._follow(index, outcome))
                    else:
                        self._end(_enqueued(index, outcome) | {"deduplicated": outcome.deduplicated})

    async def _enqueue(self, requests: dict[int, PromptRequest]) -> dict[int, Job | SchedulerError]:
        """Enqueue a chunk; what finds no room comes again when there is likely some."""
        outcomes: dict[int, Job | SchedulerError] = {}
        self._at_work |= _lines(requests, "not_sent")
        while requests:
            replies = await self._enqueue_once(requests)
            outcomes |= replies
            full = [(at, reply) for at, reply in outcomes.items() if isinstance(reply, QueueFull)]
            requests = {at: requests[at] for at, _ in full}
            if full:
                await asyncio.sleep(max(reply.retry_after_s for _, reply in full))
        return dict(sorted(outcomes.items()))

    async def _enqueue_once(self, requests: dict[int, PromptRequest]) -> dict[int, Job | SchedulerError]:
        """Enqueue, and learn what became of it also when the run is cut short meanwhile."""
        self._at_work |= _lines(requests, "unknown")
        sending = asyncio.create_task(self._client.enqueue_many(list(requests.values())))
        try:
            await asyncio.wait([sending])
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=LAST_ANSWER_S)
            sending.cancel()
            raise
        finally:
            if sending.done() and not sending.cancelled() and sending.exception() is None:
                replies = dict(zip(requests, sending.result(), strict=True))
                self._at_work |= _lines(requests, "not_sent")
                self._at_work |= {
                    at: _enqueued(at, one)
                    for at, one in replies.items()
                    if not isinstance(one, SchedulerError)
                }
        sending.result()
        return replies

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
        self.states[outcome["state"]] += 1
        self._changed()
        self._at_work.pop(outcome["index"], None)
        self._ended[outcome["index"]] = outcome
        while (following := self._ended.pop(self._next, None)) is not None:
            self._next += 1
            self._room.release()
            self._tell(following)

    def _tell_the_rest(self) -> None:
        rest = self._at_work | self._ended
        self._ended = {}
        for index in sorted(rest):
            self._tell(rest[index])


def _lines(indexes: Iterable[int], state: str) -> dict[int, Outcome]:
    return {at: {"index": at, "job_id": None, "state": state} for at in indexes}


def _enqueued(index: int, job: Job) -> Outcome:
    return {"index": index, "job_id": job.id, "state": "enqueued"}


def _failure(index: int, job_id: str | None, state: str, error: SchedulerError) -> Outcome:
    code = error.reason if isinstance(error, JobEnded) else error.code
    return {
        "index": index,
        "job_id": job_id,
        "state": state,
        "error": {"code": code, "message": str(error)},
    }
