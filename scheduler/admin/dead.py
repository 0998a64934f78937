"""Dead letters: failed jobs that are kept, to be looked at, run again or forgotten."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import orjson

from scheduler.admin.jobs import requeue
from scheduler.errors import InvalidRequest, InvalidTransition, JobNotFound, SchedulerError
from scheduler.model import JobInfo, JobState, PromptRequest
from scheduler.payload import REQUEST_FIELDS, TRACE_FIELDS, check_kind, encode, payload_of, peek
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.clock import read_clock_ms
from scheduler.queue.inspection.jobs import jobs_in_state, read_job

DISCARD_CHUNK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Which dead letters: those that all of this is true of. `error` is the code of the last error."""

    lane: str | None = None
    tenant: str | None = None
    error: str | None = None
    older_than_s: float | None = None

    def takes(self, job: JobInfo, now_ms: int) -> bool:
        """Whether a job that has failed is one of them."""
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
    """Those that are kept, the latest first, without their histories; read page by page."""
    now_ms = await read_clock_ms(queue)
    async with aclosing(jobs_in_state(queue, JobState.FAILED)) as failed:
        async for job in failed:
            if which.takes(job, now_ms):
                yield job


async def dead_letter_ids(queue: PromptQueue, which: DeadFilter = EVERY_DEAD) -> list[str]:
    """Their ids, the oldest first."""
    # One that fails meanwhile moves those behind it to the next page: they are seen twice.
    async with aclosing(dead_letters(queue, which)) as found:
        ids = list(dict.fromkeys([job.id async for job in found]))
    return ids[::-1]


async def read_dead_letter(queue: PromptQueue, job_id: str) -> tuple[JobInfo, dict[str, Any] | None]:
    """A dead letter with its history, and its request; None where that has gone or is damaged.

    Raises:
        JobNotFound: no job has this id, or its record has expired.
        InvalidTransition: it has not failed.
    """
    job = await read_job(queue, job_id)
    if job is None:
        raise JobNotFound(f"no job {job_id} in queue {queue.name!r}: unknown, or its record has expired")
    if job.state is not JobState.FAILED:
        raise InvalidTransition(f"job {job_id} is {job.state.value}, and no dead letter")
    return job, peek(await queue.request(job_id))


async def requeue_dead_letter(
    queue: PromptQueue, job_id: str, changes: Mapping[str, Any] | None = None
) -> None:
    """Let a dead letter run again, its failures forgotten; with `changes` of its request, if there are some.

    `changes` has values by field, as `prompt` or `params.max_tokens`; None takes a field out. With a changed
    request the job gives its dedup key up, for that stands for the old one.

    Raises:
        JobNotFound, InvalidTransition: it is no dead letter any more.
        InvalidRequest: there is no such field, or a value is wrong.
        SchedulerError: the stored request has gone.
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
    _check_names(changes)
    check_kind(request)
    fields = copy.deepcopy(dict(request))
    fields.pop("kind", None)
    trace = {name: fields.pop(name) for name in sorted(TRACE_FIELDS) if name in fields}
    for path, value in changes.items():
        _put(fields, path, value)
    changed = payload_of(PromptRequest.parse(**fields, model=model))
    return encode(changed, trace=orjson.dumps(trace) if trace else b"")


def _check_names(paths: Iterable[str]) -> None:
    for path in paths:
        if path.split(".")[0] not in REQUEST_FIELDS:
            known = ", ".join(sorted(REQUEST_FIELDS))
            raise InvalidRequest(f"{path}: is nothing that can be changed; there are {known}", field=path)


def _put(fields: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    place = fields
    for name in parents:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise InvalidRequest(f"{path}: {name} holds no fields of its own", field=path)
    if value is None:
        place.pop(last, None)
    else:
        place[last] = value


@dataclass(frozen=True, slots=True)
class Requeued:
    """What became of dead letters that were to run again. `refused` has why, for each that cannot."""

    requeued: Sequence[str]
    refused: Mapping[str, str]


async def requeue_dead_letters(
    queue: PromptQueue, job_ids: Iterable[str], changes: Mapping[str, Any] | None = None
) -> Requeued:
    """Let many run again, in this order. Those that somebody else was faster with are left out.

    Raises:
        InvalidRequest: there is no such field as `changes` names.
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
    """Forget them for good. Returns how many were there."""
    chunks = (job_ids[at : at + DISCARD_CHUNK] for at in range(0, len(job_ids), DISCARD_CHUNK))
    return sum([await queue.discard(chunk) for chunk in chunks])
