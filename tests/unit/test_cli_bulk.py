"""A file of prompts: how it is read, and how its outcomes come out."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from scheduler.cli import bulk
from scheduler.cli.bulk import BulkRun, RequestFile, open_requests
from scheduler.errors import InvalidRequest, JobFailed, QueueFull, SchedulerError
from scheduler.model import JobResult, PromptRequest


def read(
    path: Path, defaults: dict[str, Any] | None = None, system: str | None = None
) -> list[PromptRequest]:
    with open_requests(path, defaults or {}, system) as requests:
        count, made = requests.check(), list(requests)
    assert len(made) == count
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


def test_lines_of_a_file_are_requests_with_the_options_as_defaults(path: Path) -> None:
    path.write_text(
        '"one"\n\n{"prompt": "two", "priority": 9, "params": {"seed": 1}, "metadata": {"b": 2}}\n'
        '{"messages": [{"role": "system", "content": "rhyme"}, {"role": "user", "content": "three"}]}\n'
    )
    defaults = {"priority": 3, "params": {"max_tokens": 5}, "metadata": {"a": "1"}}
    one, two, _ = read(path, defaults)
    assert (one.prompt, one.priority, one.params.max_tokens, one.metadata) == ("one", 3, 5, {"a": "1"})
    assert (two.priority, two.params.max_tokens, two.params.seed) == (9, 5, 1)
    assert two.metadata == {"a": "1", "b": 2}


def test_a_system_message_goes_before_what_has_none(path: Path) -> None:
    path.write_text(
        '"one"\n'
        '{"messages": [{"role": "system", "content": "rhyme"}, {"role": "user", "content": "two"}]}\n'
        '{"messages": [{"role": "user", "content": "three"}]}\n'
    )
    said = [[message.content for message in one.messages or ()] for one in read(path, system="be brief")]
    assert said == [["be brief", "one"], ["rhyme", "two"], ["be brief", "three"]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("7", "line 2: give an object"),
        ('{"prompt": "x", "priority": 10}', "line 2: priority: "),
        ('{"prompt": "x", "colour": 1}', "line 2: colour: no such field"),
        ('"' + "x" * 100 + '"', "line 2: is longer than 64 bytes"),
    ],
)
def test_a_wrong_line_is_named(path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str) -> None:
    monkeypatch.setattr(bulk, "MAX_LINE_BYTES", 64)
    path.write_text(f'"fine"\n{line}\n"fine"\n')
    with pytest.raises(InvalidRequest, match=said):
        read(path)


def test_a_file_without_a_request_is_a_mistake(path: Path) -> None:
    path.write_text("\n\n")
    with pytest.raises(InvalidRequest, match="no request in it"):
        read(path)


def test_a_byte_order_mark_is_no_part_of_the_first_line(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf"one"\r\n"two"\r\n')
    assert [one.prompt for one in read(path)] == ["one", "two"]


def test_what_comes_through_a_pipe_can_be_read_twice(path: Path) -> None:
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=('"one"\n"two"\n',))
    writer.start()
    assert [one.prompt for one in read(path)] == ["one", "two"]
    writer.join()


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
                assert request.prompt
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


def start(client: _Client, count: int, **options: Any) -> tuple[asyncio.Task[None], list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    run = BulkRun(client, told.append, **options)  # type: ignore[arg-type]  # stands in for the real one
    return asyncio.create_task(run.send(prompts(count))), told


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
    assert [(one["index"], one["job_id"], one["state"]) for one in told] == [
        (0, "0", "done"),
        (1, "1", "failed"),
        (2, "2", "done"),
    ]
    assert told[0]["text"] == told[0]["result"].text == "answer to 0"
    assert told[1]["error"] == {"code": "boom", "message": "no luck"}


async def test_a_long_file_is_read_no_further_than_its_results_can_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "IN_FLIGHT", 4)
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
    assert [one["index"] for one in told] == [0, 1, 2, 3]
    while not sending.done():
        for job in client.jobs.values():
            if not job.ended.done():
                job.end()
        await asyncio.sleep(0)
    assert [one["index"] for one in told] == list(range(100))


async def test_what_had_ended_is_told_when_the_run_is_cut_short() -> None:
    client = _Client()
    sending, told = start(client, 3)
    await client.has(3)
    client.jobs["2"].end()
    await settle()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [(one["index"], one["job_id"], one["state"]) for one in told] == [
        (0, "0", "enqueued"),
        (1, "1", "enqueued"),
        (2, "2", "done"),
    ]


async def test_what_ends_is_counted_at_once_whatever_its_place_in_the_file() -> None:
    client, counts = _Client(), []
    run = BulkRun(client, lambda _: None, changed=lambda: counts.append((run.ended, run.failed)))  # type: ignore[arg-type]  # a double
    sending = asyncio.create_task(run.send(prompts(3)))
    await client.has(3)
    client.jobs["2"].end()
    await settle()
    client.jobs["1"].end(JobFailed("no luck", job_id="1", reason="boom"))
    await settle()
    assert counts == [(1, 0), (2, 1)]
    client.jobs["0"].end()
    await sending
    assert counts[-1] == (3, 1)


async def test_a_run_that_is_cut_short_hears_what_became_of_what_it_was_sending() -> None:
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
    assert [(one["job_id"], one["state"]) for one in told] == [("0", "enqueued"), ("1", "enqueued")]


async def test_what_found_no_room_before_the_run_was_cut_short_was_not_sent() -> None:
    client = _Client(QueueFull("full", retry_after_s=60))
    sending, told = start(client, 2)
    await client.has(1)
    await settle()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert [one["state"] for one in told] == ["not_sent", "enqueued"]


async def test_a_run_can_begin_further_on() -> None:
    client = _Client()
    sending, told = start(client, 2, first=5)
    await client.has(2)
    for job in client.jobs.values():
        job.end()
    await sending
    assert [one["index"] for one in told] == [5, 6]


async def test_an_output_that_cannot_be_written_ends_the_run() -> None:
    client = _Client()

    def tell(outcome: dict[str, Any]) -> None:
        raise OSError(28, "No space left on device")

    sending = asyncio.create_task(BulkRun(client, tell).send(prompts(3)))  # type: ignore[arg-type]  # stands in for the real one
    await client.has(3)
    client.jobs["0"].end()
    with pytest.raises(OSError, match="No space left"):
        await sending


async def test_what_finds_no_room_is_sent_again_and_what_is_refused_is_told() -> None:
    client = _Client(InvalidRequest("model: no route"), QueueFull("full", retry_after_s=0.001))
    sending, told = start(client, 3, wait=False)
    await sending
    assert sorted(client.jobs) == ["1", "2"]
    assert [one["state"] for one in told] == ["refused", "enqueued", "enqueued"]
    assert told[0]["error"] == {"code": "invalid_request", "message": "model: no route"}


def test_a_request_file_is_read_from_the_start_each_time(path: Path) -> None:
    path.write_bytes(orjson.dumps("one") + b"\n")
    with path.open("rb") as lines:
        requests = RequestFile(lines, "x", {}, None)
        assert [one.prompt for one in requests] == [one.prompt for one in requests] == ["one"]
