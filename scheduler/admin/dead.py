"""Dead letters, the failed jobs that are kept: read them, run them again, delete them."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from scheduler.admin.jobs import requeue
from scheduler.errors import InvalidRequest, InvalidTransition, JobNotFound, SchedulerError
from scheduler.model import JobInfo, JobState
from scheduler.payload import REQUEST_FIELDS, TRACE_FIELDS, encode, payload_of, peek, request_type
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.clock import read_clock_ms
from scheduler.queue.inspection.jobs import jobs_in_state, read_job

DISCARD_CHUNK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Selects dead letters. Those that match every given field are selected."""

    lane: str | None = None
    tenant: str | None = None
    error: str | None = None
    """The code of the last error."""
    older_than_s: float | None = None
    """The shortest time since the job failed, in seconds."""

    def takes(self, job: JobInfo, now_ms: int) -> bool:
        """Whether it selects a failed job."""
        code = job.error.code if job.error else None
        failed_s = (now_ms - (job.ended_at_ms or now_ms)) / 1000
        return (
            self.lane in (None, job.model)
            and self.tenant in (None, job.tenant)
            and self.error in (None, code)
            and (self.older_than_s is None or failed_s > self.older_than_s)
        )


EVERY_DEAD = DeadFilter()


async def dead_letters(queue: PromptQueue, which: DeadFilter = EVERY_DEAD) -> AsyncGenerator[JobInfo, None]:
    """The selected dead letters, the latest first, without histories. They are read page by page."""
    now_ms = await read_clock_ms(queue)
    async with aclosing(jobs_in_state(queue, JobState.FAILED)) as failed:
        async for job in failed:
            if which.takes(job, now_ms):
                yield job


async def dead_letter_ids(queue: PromptQueue, which: DeadFilter = EVERY_DEAD) -> list[str]:
    """The ids of the selected dead letters, the oldest first."""
    # A job that fails meanwhile moves others to the next page, so that they are seen twice.
    async with aclosing(dead_letters(queue, which)) as found:
        ids = list(dict.fromkeys([job.id async for job in found]))
    return ids[::-1]


async def read_dead_letter(queue: PromptQueue, job_id: str) -> tuple[JobInfo, dict[str, Any] | None]:
    """A dead letter with its history, and its stored request; None if that is gone or damaged.

    Raises:
        JobNotFound: no job has this id, or its record has expired.
        InvalidTransition: the job has not failed.
    """
    job = await read_job(queue, job_id)
    if job is None:
        raise JobNotFound(f"no job {job_id} in queue {queue.name!r}: unknown, or its record has expired")
    if job.state is not JobState.FAILED:
        raise InvalidTransition(f"job {job_id} is {job.state.value}, not a dead letter")
    return job, peek(await queue.request(job_id))


async def requeue_dead_letter(
    queue: PromptQueue, job_id: str, changes: Mapping[str, Any] | None = None
) -> None:
    """Run a dead letter again, with its failures reset and optional changes to its request.

    `changes` maps fields, such as `prompt` or `params.max_tokens`, to new values; None removes a field. With
    a changed request the job gives up its dedup key, which stands for the old one.

    Raises:
        JobNotFound, InvalidTransition: it is not a dead letter any more.
        InvalidRequest: there is no such field, or a value is wrong.
        UnknownKind: the job asks for a kind of work that this version does not do.
        SchedulerError: the stored request is gone.
    """
    job, request = await read_dead_letter(queue, job_id)
    if not changes or request is None:
        await requeue(queue, job_id)
    else:
        await requeue(queue, job_id, changed_request(request, changes, model=job.model))


def changed_request(request: Mapping[str, Any], changes: Mapping[str, Any], *, model: str) -> bytes:
    """A stored request with some fields changed, checked like one from a client.

    Raises:
        InvalidRequest: there is no such field, or a value is wrong.
        UnknownKind: the job asks for a kind of work that this version does not do.
    """
    kind = request_type(request)
    _check_names(changes, REQUEST_FIELDS & kind.model_fields.keys())
    fields = copy.deepcopy(dict(request))
    fields.pop("kind", None)
    trace = {name: fields.pop(name) for name in sorted(TRACE_FIELDS) if name in fields}
    for path, value in changes.items():
        _put(fields, path, value)
    changed = payload_of(kind.parse(**fields, model=model))
    return encode(changed, trace=orjson.dumps(trace) if trace else b"")


def _check_names(paths: Iterable[str], known: Collection[str] = REQUEST_FIELDS) -> None:
    for path in paths:
        if path.split(".")[0] not in known:
            these = ", ".join(sorted(known))
            raise InvalidRequest(f"{path}: cannot be changed; these can: {these}", field=path)


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    parent = fields
    for name in parents:
        parent = parent.setdefault(name, {})
        if not isinstance(parent, dict):
            raise InvalidRequest(f"{path}: {name} has no fields", field=path)
    if value is None:
        parent.pop(last, None)
    else:
        parent[last] = value


@dataclass(frozen=True, slots=True)
class Requeued:
    """The outcome of requeuing many dead letters."""

    requeued: Sequence[str]
    """The ids of the jobs that run again."""
    refused: Mapping[str, str]
    """Why the others cannot run again, by id."""


async def requeue_dead_letters(
    queue: PromptQueue, job_ids: Iterable[str], changes: Mapping[str, Any] | None = None
) -> Requeued:
    """Run many dead letters again, in this order. Those that are not dead letters any more are left out.

    Raises:
        InvalidRequest: `changes` names a field that does not exist.
    """
    _check_names(changes or ())
    done, refused = [], {}
    for job_id in job_ids:
        try:
            await requeue_dead_letter(queue, job_id, changes)
        except (JobNotFound, InvalidTransition):
            continue
        except SchedulerError as error:
            refused[job_id] = str(error)
        else:
            done.append(job_id)
    return Requeued(done, refused)


async def purge_dead_letters(queue: PromptQueue, job_ids: Sequence[str]) -> int:
    """Delete dead letters for good. Returns how many there were."""
    chunks = (job_ids[at : at + DISCARD_CHUNK] for at in range(0, len(job_ids), DISCARD_CHUNK))
    return sum([await queue.discard(chunk) for chunk in chunks])
