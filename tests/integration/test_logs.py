"""What an engine says: with the ids of the job that it is about, once, and nothing a job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import orjson
import pytest

from scheduler import JobFailed
from scheduler.batching import Batcher, BatchPolicy, Window
from scheduler.engine import SettingsReloader
from scheduler.engine import attempt as attempt_module
from scheduler.engine import reload as reload_module
from scheduler.logs import IDS, IdFilter, JsonFormatter, attempt_ids, speak_of
from scheduler.payload import decode
from scheduler.queue.records import ClaimedJob
from scheduler.stages.base import PromptContext
from tests.integration.engine_room import (
    Room,
    install,
    puppet_of,
    puppet_route,
    settings_of,
    until,
)
from tests.patience import SOON_S
from tests.unit.scripted_endpoint import Worker
from workers.base import Completed, Generation, Output

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
SECRET = "a-private-matter"


class Keeping(logging.Handler):
    """A handler of a user's own, whose records have the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.addFilter(IdFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[logging.LogRecord]]:
    caplog.set_level(logging.DEBUG)
    handler = Keeping()
    logging.getLogger().addHandler(handler)
    yield handler.records
    logging.getLogger().removeHandler(handler)


def ids(record: logging.LogRecord) -> dict[str, Any]:
    fields = orjson.loads(JsonFormatter().format(record))
    return {name: fields[name] for name in IDS if name in fields}


class Talkative:
    """A stage as somebody might write it."""

    name = "talkative"

    async def run(self, context: PromptContext) -> None:
        log = logging.getLogger("somebodys.stage")
        log.info("in the stage")
        await asyncio.create_task(self.more(log))
        if context.prompt == SECRET:
            raise ValueError(f"cannot digest {context.prompt}")

    async def more(self, log: logging.Logger) -> None:
        log.info("in a task of the stage")


def talkative(monkeypatch: pytest.MonkeyPatch) -> Any:
    install(monkeypatch, "talkative_stage", Talkative=Talkative)
    stages = ["talkative_stage:Talkative", "inference", "stream"]
    return settings_of(routes={"echo": puppet_route(stages=stages)})


async def test_whatever_is_logged_within_an_attempt_has_its_ids(
    room: Room, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord]
) -> None:
    settings = talkative(monkeypatch)
    engine, client = await room.engine(settings), await room.client(settings)
    puppet = puppet_of(engine)
    generate = puppet.generate

    async def talking(batch: Sequence[Generation]) -> AsyncIterator[Output]:
        logging.getLogger("somebodys.worker").info("in the model worker")
        async for output in generate(batch):
            yield output

    puppet.generate = talking
    jobs = {}
    for prompt in ("one", "two"):
        job = await client.enqueue(prompt, tenant=f"tenant-{prompt}")
        jobs[job.id] = f"tenant-{prompt}"
    for call in [await puppet.next_call() for _ in jobs]:
        call.finish("answer")
    for id_ in jobs:
        await client.job(id_).result(timeout_s=SOON_S)
    theirs = [ids(record) for record in lines if record.name.startswith("somebodys")]
    expected = {"queue": "default", "worker": engine.id, "attempt": 1}
    assert len(theirs) == 6
    assert sorted(theirs, key=str) == sorted(
        [{**expected, "job": id_, "tenant": tenant} for id_, tenant in jobs.items() for _ in range(3)],
        key=str,
    )


async def test_error_in_a_stage_is_one_line_with_the_ids_and_without_the_words(
    room: Room,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[logging.LogRecord],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    settings = talkative(monkeypatch)
    engine, client = await room.engine(settings), await room.client(settings)
    job = await client.enqueue(SECRET, max_attempts=1, dedup_key=SECRET, tenant="acme")
    with pytest.raises(JobFailed):
        await job.result(timeout_s=SOON_S)
    (error,) = [record for record in lines if record.levelno >= logging.WARNING]
    assert ids(error) == {
        "queue": "default",
        "worker": engine.id,
        "job": job.id,
        "tenant": "acme",
        "attempt": 1,
    }
    said = orjson.loads(JsonFormatter(words=True).format(error))["error"]
    assert said["type"] == "ValueError"
    assert "Talkative.run" in said["frames"][-1]
    assert SECRET not in caplog.text
    assert SECRET not in JsonFormatter(words=True).format(error)


def claimed(id_: str) -> ClaimedJob:
    return ClaimedJob(id_, 1, 1, 0, None, 5, "echo", "acme", 0, None, None, b"")


@pytest.mark.parametrize(("max_size", "expected"), [(2, [None]), (1, ["job-0", "job-1"])])
async def test_call_for_several_jobs_has_the_ids_of_none(max_size: int, expected: list[str | None]) -> None:
    seen: list[str | None] = []

    class Asking(Worker):
        async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
            found = attempt_ids()
            seen.append(found.job if found else None)
            for member in range(len(batch)):
                yield Completed(member, "stop")

    # Room for one: the other is sent from the end of the first, if they go one by one.
    batcher = Batcher(Asking(), BatchPolicy(max_size=max_size, max_wait_ms=60_000), Window(max_size))

    async def attempt(at: int) -> None:
        speak_of(claimed(f"job-{at}"))
        generation = Generation(model="m", prompt="p", messages=None)
        await batcher.run(generation, lambda _: None, tokens=1)

    async with asyncio.timeout(SOON_S):
        await asyncio.gather(*(attempt(at) for at in range(2)))
    await batcher.aclose()
    assert seen == expected


async def test_line_of_the_writer_has_the_job_that_it_is_about(
    room: Room, lines: list[logging.LogRecord]
) -> None:
    engine, client = await room.engine(), await room.client()
    job = await client.enqueue("one", tenant="acme")
    call = await puppet_of(engine).next_call()
    await job.cancel()
    await call.aborted.wait()
    await until(lambda: any("not ours any more" in record.getMessage() for record in lines))
    (said,) = [record for record in lines if "not ours any more" in record.getMessage()]
    assert said.levelno == logging.DEBUG, "to cancel a job is no event of the process"
    assert {"job": job.id, "tenant": "acme", "attempt": 1}.items() <= ids(said).items()


async def test_jobs_that_come_and_go_say_nothing(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    engine, client = await room.engine(), await room.client()
    before = len(caplog.records)
    jobs = [await client.enqueue(f"prompt {n}", max_attempts=1) for n in range(5)]
    for number, call in enumerate([await puppet_of(engine).next_call() for _ in jobs]):
        call.finish("answer") if number else await jobs[0].cancel()
    for job in jobs[1:]:
        await job.result(timeout_s=SOON_S)
    ours = [record for record in caplog.records[before:] if record.name.startswith(("scheduler", "workers"))]
    assert ours == []


@pytest.mark.parametrize("given_back", [0, 1])
async def test_drain_is_told_at_its_begin_and_its_end(
    room: Room, caplog: pytest.LogCaptureFixture, given_back: int
) -> None:
    caplog.set_level(logging.INFO)
    engine, client = await room.engine(), await room.client()
    for n in range(2):
        await client.enqueue(f"prompt {n}")
    calls = [await puppet_of(engine).next_call() for _ in range(2)]
    before = len(caplog.records)
    stopping = asyncio.create_task(engine.stop(drain_s=0.2 if given_back else SOON_S))
    await until(lambda: len(caplog.records) > before)
    for call in calls[given_back:]:
        call.finish("in time")
    await stopping
    begin, end, stopped = caplog.records[before:]
    assert begin.getMessage().startswith("draining: 2 job(s) in flight have ")
    ended, level = 2 - given_back, logging.WARNING if given_back else logging.INFO
    assert end.getMessage().endswith(f" s: {ended} job(s) have ended, {given_back} given back")
    assert end.getMessage().startswith("drained in ")
    assert (end.levelno, begin.levelno) == (level, logging.INFO)
    assert stopped.getMessage() == f"worker {engine.id} has stopped"


async def test_level_changes_when_settings_are_reloaded(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[str] = []
    monkeypatch.setattr(reload_module, "change_level", changed.append)
    engine = await room.engine()
    settings = iter([settings_of(log_level="debug"), settings_of(log_level="debug", max_attempts=7)])
    reloader = SettingsReloader(engine, lambda: next(settings), None)
    for _ in range(2):
        await reloader._reload()
    assert changed == ["debug"]
    assert engine.settings.max_attempts == 7


async def test_request_with_a_trace_has_it_in_its_lines(
    room: Room, monkeypatch: pytest.MonkeyPatch, lines: list[logging.LogRecord]
) -> None:
    settings = talkative(monkeypatch)
    engine, client = await room.engine(settings), await room.client(settings)

    def with_trace(payload: bytes) -> Any:
        return {**decode(payload), "traceparent": f"00-{TRACE}-{SPAN}-01"}

    monkeypatch.setattr(attempt_module, "decode", with_trace)
    job = await client.enqueue("one")
    (await puppet_of(engine).next_call()).finish("answer")
    await job.result(timeout_s=SOON_S)
    theirs = [ids(record) for record in lines if record.name == "somebodys.stage"]
    assert [(one["job"], one["trace_id"], one["span_id"]) for one in theirs] == [(job.id, TRACE, SPAN)] * 2
