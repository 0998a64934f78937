"""The writer against a queue that does what a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.exceptions import ResponseError

from scheduler.events import Delta, Started, decode_event
from scheduler.model import JobState
from scheduler.queue.records import ClaimedJob, Ending, Publication, Return, WriteOutcome
from scheduler.results import job_writer
from scheduler.results import writer as writer_module
from scheduler.results.job_writer import JobWriter
from scheduler.results.writer import EventWriter
from workers.base import Piece


def seq_and_type(data: bytes) -> tuple[int, str]:
    event = decode_event(data)
    return int(event.id.partition("-")[2]), event.type


def bearing_events(
    publications: Sequence[Publication], endings: Sequence[Ending]
) -> list[Publication | Ending]:
    return [*publications, *endings]


class ScriptedQueue:
    """Keeps what is written. `errors` are raised first, `refuse` names tokens that are refused."""

    def __init__(self) -> None:
        self.writes: list[tuple[Sequence[Publication], Sequence[Return], Sequence[Ending]]] = []
        self.errors: list[Exception] = []
        self.poison: set[int] = set()
        self.refuse: set[int] = set()
        self.tries = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.active = 0

    async def write(
        self,
        *,
        publications: Sequence[Publication] = (),
        returns: Sequence[Return] = (),
        endings: Sequence[Ending] = (),
    ) -> WriteOutcome:
        self.tries += 1
        self.active += 1
        assert self.active == 1, "one write at a time"
        await self.gate.wait()
        self.active -= 1
        if self.errors:
            raise self.errors.pop(0)
        every: list[Publication | Return | Ending] = [*publications, *returns, *endings]
        if any(one.token in self.poison for one in every):
            raise ResponseError("WRONGTYPE")
        self.writes.append((publications, returns, endings))
        return WriteOutcome(frozenset((one.job_id, one.token) for one in every if one.token in self.refuse))

    def events(self, token: int = 1) -> list[tuple[int, str]]:
        """Seq and type of all events of a token, in the order of writing; ends included."""
        found: list[tuple[int, str]] = []
        for publications, returns, endings in self.writes:
            for one in bearing_events(publications, endings):
                if one.token == token:
                    for at, event in enumerate(one.events):
                        found.append((one.first_seq + at, decode_event(event).type))
            found += [seq_and_type(end.event) for end in returns if end.token == token]
            for end in endings:
                if end.token == token:
                    found.append(seq_and_type(end.head + end.value + b"}"))
                    assert found[-1][0] == end.first_seq + len(end.events)
        return found

    def text(self, token: int = 1) -> str:
        return "".join(
            event.text
            for publications, _, endings in self.writes
            for one in bearing_events(publications, endings)
            if one.token == token
            for event in map(decode_event, one.events)
            if isinstance(event, Delta)
        )


class Told:
    """What the writer told its owner."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int]] = []


@pytest.fixture
def queue() -> ScriptedQueue:
    return ScriptedQueue()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def writer(queue: ScriptedQueue, told: Told) -> AsyncIterator[EventWriter]:
    made = EventWriter(
        queue,
        on_refused=lambda *job: told.refused.append(job),
        on_ended=lambda *job: told.ended.append(job),
    )
    await made.start()
    yield made
    await made.stop(limit_s=0.1)


def claimed(token: int = 1) -> ClaimedJob:
    return ClaimedJob(
        id=f"job-{token}",
        token=token,
        attempt=1,
        failures=0,
        max_attempts=None,
        priority=5,
        lane="echo",
        tenant="default",
        waited_ms=0,
        remaining_ms=None,
        result_ttl_ms=None,
        payload=b"{}",
    )


def open_job(writer: EventWriter, token: int = 1) -> JobWriter:
    return writer.open(claimed(token), "w")


async def test_what_happens_in_one_turn_shares_one_write(queue: ScriptedQueue, writer: EventWriter) -> None:
    for token in range(1, 33):
        job = open_job(writer, token)
        job.started()
        job.piece(Piece(0, "hello"))
        job.done(b'{"text":"hello"}')
    await writer.flush()
    assert len(queue.writes) == 1
    assert all(queue.events(token) == [(1, "started"), (2, "delta"), (3, "done")] for token in range(1, 33))


async def test_a_long_piece_is_cut_into_events(
    queue: ScriptedQueue, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_writer, "EVENT_CHARS", 4)
    job = open_job(writer)
    job.piece(Piece(0, "abcdefghij", "uvwxyz", ({"index": 0},)))
    job.done(b'{"text":"abcdefghij"}')
    await writer.flush()
    (end,) = queue.writes[0][2]
    parts = [event for event in map(decode_event, end.events) if isinstance(event, Delta)]
    assert [(part.text, part.reasoning) for part in parts] == [("abcd", "uvwx"), ("efgh", "yz"), ("ij", "")]
    assert [bool(part.tool_calls) for part in parts] == [False, False, True]
    assert queue.events()[-1] == (4, "done")


async def test_the_first_delta_goes_at_once_and_later_ones_are_gathered(
    queue: ScriptedQueue, writer: EventWriter
) -> None:
    job = open_job(writer)
    job.started()
    await writer.flush()
    job.piece(Piece(0, "a"))
    for _ in range(writer_module.TURNS + 2):
        await asyncio.sleep(0)
    assert queue.text() == "a"
    for letter in "bcdef":
        job.piece(Piece(0, letter))
        await asyncio.sleep(0)
    assert queue.text() == "a"
    await writer.flush()
    assert queue.text() == "abcdef"
    assert queue.events() == [(1, "started"), (2, "delta"), (3, "delta")]


async def test_a_short_answer_is_one_write(queue: ScriptedQueue, writer: EventWriter) -> None:
    job = open_job(writer)
    job.started()
    await asyncio.sleep(0)
    job.piece(Piece(0, "a"))
    await asyncio.sleep(0)
    job.done(b'{"text":"a"}')
    await writer.flush()
    assert len(queue.writes) == 1
    assert queue.events() == [(1, "started"), (2, "delta"), (3, "done")]


async def test_a_delta_after_a_silence_goes_with_the_next_tick(
    queue: ScriptedQueue, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = open_job(writer)
    job.piece(Piece(0, "a"))
    await writer.flush()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(job, "_taken_at", loop.time() - 2 * job_writer.COALESCE_S)
    job.piece(Piece(0, "b"))
    assert job.due is not None
    assert job.due * writer_module.TICK_S - loop.time() <= writer_module.TICK_S


async def test_an_end_takes_gathered_deltas_along_before_it(
    queue: ScriptedQueue, writer: EventWriter
) -> None:
    job = open_job(writer)
    job.piece(Piece(0, "a"))
    await writer.flush()
    job.piece(Piece(0, "b", "thinking"))
    job.failed("code", "words")
    await writer.flush()
    assert queue.events() == [(1, "delta"), (2, "delta"), (3, "failed")]
    _, _, endings = queue.writes[-1]
    assert endings[0].state is JobState.FAILED
    assert endings[0].reason == "code"


async def test_nothing_is_taken_after_an_end(queue: ScriptedQueue, writer: EventWriter, told: Told) -> None:
    job = open_job(writer)
    job.done(b'{"text":""}')
    job.piece(Piece(0, "late"))
    job.failed("late", "late")
    job.retry("late", "late", delay_ms=0, counts=True)
    await writer.flush()
    assert queue.events() == [(1, "done")]
    assert writer.pending_bytes == 0
    assert told.ended == [("job-1", 1)]


async def test_while_a_write_is_under_way_the_next_gathers(queue: ScriptedQueue, writer: EventWriter) -> None:
    queue.gate.clear()
    open_job(writer, 1).done(b'{"text":""}')
    while not queue.tries:
        await asyncio.sleep(0)
    for token in range(2, 50):
        open_job(writer, token).done(b'{"text":""}')
        await asyncio.sleep(0)
    queue.gate.set()
    await writer.flush()
    assert [len(endings) for _, _, endings in queue.writes] == [1, 48]


async def test_a_refused_write_is_told_once(queue: ScriptedQueue, writer: EventWriter, told: Told) -> None:
    queue.refuse = {1}
    job, other = open_job(writer, 1), open_job(writer, 2)
    job.started()
    other.started()
    await writer.flush()
    assert told.refused == [("job-1", 1)]
    job.piece(Piece(0, "late"))
    assert writer.pending_bytes == 0, "nothing of it is kept"
    job.done(b'{"text":""}')
    other.done(b'{"text":""}')
    await writer.flush()
    assert told.ended == [("job-2", 2)]


async def test_one_bad_write_does_not_take_the_others_along(
    queue: ScriptedQueue, writer: EventWriter, told: Told
) -> None:
    queue.poison = {3}
    for token in range(1, 6):
        job = open_job(writer, token)
        job.started()
        job.done(b'{"text":""}')
    await writer.flush()
    assert told.ended == [(f"job-{token}", token) for token in (1, 2, 4, 5)]
    assert told.refused == [("job-3", 3)]
    assert all(queue.events(token) == [(1, "started"), (2, "done")] for token in (1, 2, 4, 5))


async def test_after_a_refusal_nothing_more_is_written_and_an_end_is_answered(
    queue: ScriptedQueue, writer: EventWriter, told: Told
) -> None:
    queue.refuse = {1}
    job = open_job(writer)
    job.started()
    await writer.flush()
    job.piece(Piece(0, "lost"))
    job.done(b'{"text":"lost"}')
    await writer.flush()
    assert len(queue.writes) == 1
    assert told.refused == [("job-1", 1)] * 2
    assert told.ended == []
    assert writer.pending_bytes == 0


async def test_a_piece_that_is_no_json_stops_no_other_job(
    queue: ScriptedQueue, writer: EventWriter, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    nested: dict[str, object] = {}
    nested["itself"] = nested
    job = open_job(writer, 1)
    job.piece(Piece(0, "secret words", tool_calls=(nested,)))
    await writer.flush()
    job.failed("code", "words")
    open_job(writer, 2).done(b'{"text":""}')
    await writer.flush()
    assert told.ended == [("job-1", 1), ("job-2", 2)]
    assert queue.events(1) == [(1, "failed")]
    assert "is left out" in caplog.text
    assert "secret" not in caplog.text


async def test_an_owner_that_fails_when_told_does_not_stop_the_writer(queue: ScriptedQueue) -> None:
    def fail(job_id: str, token: int) -> None:
        raise RuntimeError("a bug")

    writer = EventWriter(queue, on_refused=fail, on_ended=fail)
    await writer.start()
    for token in (1, 2):
        open_job(writer, token).done(b'{"text":""}')
        async with asyncio.timeout(2):
            await writer.flush()
    await writer.stop()
    assert [queue.events(token) for token in (1, 2)] == [[(1, "done")]] * 2


async def test_flush_does_not_wait_for_what_comes_after_it(queue: ScriptedQueue, writer: EventWriter) -> None:
    job = open_job(writer)

    async def talk() -> None:
        while True:
            job.piece(Piece(0, "x"))
            await asyncio.sleep(0)

    talking = asyncio.create_task(talk())
    while not queue.tries:
        await asyncio.sleep(0)
    try:
        async with asyncio.timeout(2):
            await writer.flush()
    finally:
        talking.cancel()
        await asyncio.wait([talking])


async def test_flush_does_not_wait_for_gathered_deltas_to_be_due(
    queue: ScriptedQueue, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_writer, "COALESCE_S", 3600.0)
    job = open_job(writer)
    job.piece(Piece(0, "a"))
    await writer.flush()
    job.piece(Piece(0, "b"))
    async with asyncio.timeout(2):
        await writer.flush()
    assert queue.text() == "ab"


async def test_gathered_deltas_go_by_themselves_when_they_are_due(
    queue: ScriptedQueue, writer: EventWriter
) -> None:
    job = open_job(writer)
    job.piece(Piece(0, "a"))
    await writer.flush()
    job.piece(Piece(0, "b"))
    job.piece(Piece(0, "c"))
    async with asyncio.timeout(2):
        while queue.text() != "abc":
            await asyncio.sleep(0.001)
    assert queue.events() == [(1, "delta"), (2, "delta")]


async def test_a_return_says_whether_it_counts(queue: ScriptedQueue, writer: EventWriter, told: Told) -> None:
    open_job(writer).retry("worker_timeout", "too slow", delay_ms=1500, counts=True)
    await writer.flush()
    _, returns, _ = queue.writes[0]
    assert (returns[0].delay_ms, returns[0].counts) == (1500, True)
    assert told.ended == [("job-1", 1)]


async def test_a_batch_is_bounded_in_jobs_and_bytes(queue: ScriptedQueue, writer: EventWriter) -> None:
    for token in range(1, 601):
        open_job(writer, token).done(b'{"text":""}')
    for token in range(601, 605):
        open_job(writer, token).done(b'{"text":"%s"}' % (b"x" * 700_000))
    await writer.flush()
    sizes = [len(endings) for _, _, endings in queue.writes]
    assert sum(sizes) == 604
    assert max(sizes) == writer_module.BATCH_JOBS
    big = [sum(len(end.value) > 1000 for end in endings) for _, _, endings in queue.writes]
    assert (sum(big), max(big)) == (4, 2)


async def test_text_counts_for_the_bytes_of_a_batch(queue: ScriptedQueue, writer: EventWriter) -> None:
    for token in range(1, 5):
        open_job(writer, token).piece(Piece(0, "x" * 700_000))
    await writer.flush()
    assert [len(publications) for publications, _, _ in queue.writes] == [2, 2]


async def test_a_long_stream_is_written_less_and_less_often(
    queue: ScriptedQueue, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    def wake_at_once(job: JobWriter, at: float) -> None:
        delays.append(round(at - job._taken_at, 6))
        writer.wake(job)

    monkeypatch.setattr(writer, "wake_at", wake_at_once)
    monkeypatch.setattr(job_writer, "EVENTS_A_DOUBLING", 10)
    job = open_job(writer)
    for _ in range(35):
        job.piece(Piece(0, "x"))
        await writer.flush()
    assert delays[0] == job_writer.COALESCE_S
    assert delays[-1] == job_writer.COALESCE_S * 8
    assert delays == sorted(delays)
    assert queue.text() == "x" * 35


async def test_pending_bytes_hold_new_jobs_back_until_they_are_written(
    queue: ScriptedQueue, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "PENDING_BYTES", 100)
    queue.gate.clear()
    first = open_job(writer)
    first.started()
    while not queue.tries:
        await asyncio.sleep(0)
    first.piece(Piece(0, "x" * 200))
    room = asyncio.create_task(writer.wait_for_memory())
    await asyncio.sleep(0)
    assert not room.done()
    queue.gate.set()
    await room
    await writer.flush()
    assert writer.pending_bytes == 0


async def test_stop_writes_what_is_pending_and_bears_being_called_twice(
    queue: ScriptedQueue, writer: EventWriter
) -> None:
    job = open_job(writer)
    job.started()
    job.piece(Piece(0, "a"))
    await writer.flush()
    job.piece(Piece(0, "b"))
    await writer.stop()
    await writer.stop()
    assert queue.text() == "ab"
    assert isinstance(decode_event(queue.writes[0][0][0].events[0]), Started)


async def test_stop_gives_up_after_its_limit(queue: ScriptedQueue, writer: EventWriter) -> None:
    queue.gate.clear()
    open_job(writer).done(b'{"text":""}')
    async with asyncio.timeout(2):
        await writer.stop(limit_s=0.05)
    queue.gate.set()
    assert queue.writes == []


async def test_a_result_is_kept_as_long_as_its_job_asks_for(queue: ScriptedQueue) -> None:
    writer = EventWriter(queue, on_refused=lambda *_: None, on_ended=lambda *_: None, result_ttl_ms=5000)
    await writer.start()
    writer.open(claimed(1)._replace(result_ttl_ms=700), "w").done(b'{"text":""}')
    open_job(writer, 2).done(b'{"text":""}')
    await writer.stop()
    kept_ms = {end.token: end.result_ttl_ms for _, _, endings in queue.writes for end in endings}
    assert kept_ms == {1: 700, 2: 5000}


async def test_what_has_gone_before_its_tick_is_not_woken_by_it(
    queue: ScriptedQueue, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_writer, "COALESCE_S", 3600.0)
    job = open_job(writer)
    job.piece(Piece(0, "a"))
    await writer.flush()
    job.piece(Piece(0, "b"))
    tick = job.due
    assert tick is not None
    job.started()  # goes at once, and takes the text along
    while queue.text() != "ab":
        await asyncio.sleep(0)
    monkeypatch.setattr(job_writer, "COALESCE_S", 7200.0)
    job.piece(Piece(0, "c"))
    writer._tick_over(tick)
    assert not job.queued
    await writer.flush()
    assert queue.text() == "abc"
