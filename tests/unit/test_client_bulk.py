"""A run over many requests: what is sent when, and in which order the outcomes come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest

from scheduler.client import AsyncClient, bulk
from scheduler.client.bulk import BulkOutcome, BulkRun
from scheduler.errors import InvalidRequest, JobFailed, QueueFull, RedisUnavailable, SchedulerError
from scheduler.model import JobResult, PromptRequest


class _Job:
    def __init__(self, name: str) -> None:
        self.id = name
        self.deduplicated = False
        self.ended: asyncio.Future[JobResult] = asyncio.get_running_loop().create_future()

    async def result(self, *, timeout_s: float | None = None) -> JobResult:
        return await self.ended

    def end(self, error: Exception | None = None) -> None:
        if error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(JobResult(text=f"answer to {self.id}"))


class _Client:
    """Takes prompts; what it does not take it refuses with the errors it was given."""

    def __init__(self, *errors: SchedulerError) -> None:
        self.errors = list(errors)
        self.jobs: dict[str, _Job] = {}
        self.came = asyncio.Event()

    async def enqueue_many(self, requests: list[PromptRequest]) -> list[_Job | SchedulerError]:
        outcomes: list[_Job | SchedulerError] = []
        for request in requests:
            if self.errors:
                outcomes.append(self.errors.pop(0))
            else:
                assert isinstance(request.prompt, str)
                self.jobs[request.prompt] = _Job(request.prompt)
                outcomes.append(self.jobs[request.prompt])
        self.came.set()
        return outcomes

    async def has(self, count: int) -> None:
        while len(self.jobs) < count:
            self.came.clear()
            await self.came.wait()


def prompts(count: int) -> Iterator[PromptRequest]:
    return (PromptRequest(prompt=str(n)) for n in range(count))


def make_run(client: _Client, **options: Any) -> BulkRun:
    return BulkRun(cast("AsyncClient", client), **options)


async def collect(run: BulkRun, count: int, into: list[BulkOutcome]) -> None:
    try:
        async with aclosing(run.outcomes(prompts(count))) as outcomes:
            async for outcome in outcomes:
                into.append(outcome)
    except asyncio.CancelledError:
        into += run.unfinished()
        raise


def start(client: _Client, count: int, **options: Any) -> tuple[asyncio.Task[None], list[BulkOutcome]]:
    told: list[BulkOutcome] = []
    return asyncio.create_task(collect(make_run(client, **options), count, told)), told


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_outcomes_come_in_the_order_of_the_requests() -> None:
    client = _Client()
    sending, told = start(client, 3)
    await client.has(3)
    client.jobs["2"].end()
    client.jobs["1"].end(JobFailed("no luck", job_id="1", reason="boom"))
    await settle()
    assert told == []
    client.jobs["0"].end()
    await sending
    assert [(one.index, one.job_id, one.state) for one in told] == [
        (0, "0", "done"),
        (1, "1", "failed"),
        (2, "2", "done"),
    ]
    assert told[0].result is not None
    assert told[0].result.text == "answer to 0"
    assert isinstance(told[1].error, JobFailed)


async def test_a_long_file_is_read_no_further_than_its_results_can_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "WINDOW", 4)
    monkeypatch.setattr(bulk, "CHUNK", 2)
    client = _Client()
    sending, told = start(client, 100)
    await client.has(6)
    for name in ("1", "2", "3"):
        client.jobs[name].end()
    await settle()
    assert len(client.jobs) == 6, "the first has not ended, so there is no room"
    client.jobs["0"].end()
    await client.has(8)
    assert [one.index for one in told] == [0, 1, 2, 3]
    while not sending.done():
        for job in client.jobs.values():
            if not job.ended.done():
                job.end()
        await asyncio.sleep(0)
    assert [one.index for one in told] == list(range(100))


async def test_what_had_ended_is_told_when_the_run_is_cut_short() -> None:
    client = _Client()
    sending, told = start(client, 3)
    await client.has(3)
    client.jobs["2"].end()
    await settle()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [(one.index, one.job_id, one.state) for one in told] == [
        (0, "0", "enqueued"),
        (1, "1", "enqueued"),
        (2, "2", "done"),
    ]


async def test_what_ends_is_counted_at_once_whatever_its_place_in_the_file() -> None:
    client, counts = _Client(), list[tuple[int, int]]()
    run: BulkRun = make_run(client, on_end=lambda: counts.append((run.ended, run.failed)))
    sending = asyncio.create_task(collect(run, 3, []))
    await client.has(3)
    client.jobs["2"].end()
    await settle()
    client.jobs["1"].end(JobFailed("no luck", job_id="1", reason="boom"))
    await settle()
    assert counts == [(1, 0), (2, 1)]
    client.jobs["0"].end()
    await sending
    assert counts[-1] == (3, 1)


async def test_a_run_that_is_cut_short_learns_what_became_of_what_it_was_sending() -> None:
    client = _Client()
    answer, taking = asyncio.Event(), client.enqueue_many

    async def enqueue_slowly(requests: list[PromptRequest]) -> list[_Job | SchedulerError]:
        taken = await taking(requests)
        await answer.wait()
        return taken

    client.enqueue_many = enqueue_slowly
    sending, told = start(client, 2)
    await client.has(2)
    sending.cancel()
    await settle()
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [(one.job_id, one.state) for one in told] == [("0", "enqueued"), ("1", "enqueued")]


async def test_what_found_no_room_before_the_run_was_cut_short_was_not_sent() -> None:
    client = _Client(QueueFull("full", retry_after_s=60))
    sending, told = start(client, 2)
    await client.has(1)
    await settle()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [one.state for one in told] == ["not_sent", "enqueued"]


async def test_a_run_can_begin_further_on() -> None:
    client = _Client()
    sending, told = start(client, 2, first=5)
    await client.has(2)
    for job in client.jobs.values():
        job.end()
    await sending
    assert [one.index for one in told] == [5, 6]


async def test_a_reader_that_leaves_ends_the_run() -> None:
    client = _Client()
    run = make_run(client)

    async def write() -> None:
        async with aclosing(run.outcomes(prompts(3))) as outcomes:
            async for _ in outcomes:
                raise OSError(28, "No space left on device")

    writing = asyncio.create_task(write())
    await client.has(3)
    client.jobs["0"].end()
    with pytest.raises(OSError, match="No space left"):
        await writing
    assert [(one.index, one.state) for one in run.unfinished()] == [(1, "enqueued"), (2, "enqueued")]
    assert len(asyncio.all_tasks()) == 1, "nothing is left behind"


async def test_an_error_of_redis_ends_the_run_and_its_other_jobs_are_still_known() -> None:
    client = _Client()
    run = make_run(client)
    told: list[BulkOutcome] = []
    sending = asyncio.create_task(collect(run, 2, told))
    await client.has(2)
    client.jobs["1"].end(RedisUnavailable("gone"))
    with pytest.raises(RedisUnavailable):
        await sending
    assert [(one.index, one.state) for one in run.unfinished()] == [(0, "enqueued"), (1, "enqueued")]


async def test_what_finds_no_room_is_sent_again_and_what_is_refused_is_told() -> None:
    client = _Client(InvalidRequest("model: no route"), QueueFull("full", retry_after_s=0.001))
    sending, told = start(client, 3, wait=False)
    await sending
    assert sorted(client.jobs) == ["1", "2"]
    assert [one.state for one in told] == ["refused", "enqueued", "enqueued"]
    assert isinstance(told[0].error, InvalidRequest)
