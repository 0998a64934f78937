from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.batching import (
    Batcher,
    BatchPolicy,
    CallPatience,
    Flush,
    FlushReason,
    Member,
    Window,
    patience,
    runner,
)
from tests.patience import SOON_S
from workers.base import (
    Capabilities,
    Completed,
    Generation,
    Health,
    MemberFailed,
    Output,
    Piece,
    TokenUsage,
)
from workers.errors import (
    ContextOverflow,
    RequestRejected,
    WorkerAuthError,
    WorkerError,
    WorkerFailed,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Call:
    """A call that the test answers: put outputs or an exception; None ends it."""

    def __init__(self, batch: Sequence[Generation]) -> None:
        self.batch = list(batch)
        self.closed = asyncio.Event()
        self._steps: asyncio.Queue[Output | BaseException | None] = asyncio.Queue()

    @property
    def prompts(self) -> list[str | None]:
        return [generation.prompt for generation in self.batch]

    def put(self, *steps: Output | BaseException | None) -> None:
        for step in steps:
            self._steps.put_nowait(step)

    def finish(self) -> None:
        self.put(*(Completed(index, "stop") for index in range(len(self.batch))), None)

    async def outputs(self) -> AsyncIterator[Output]:
        try:
            while (step := await self._steps.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            await turns()  # closing a connection takes a while
            self.closed.set()


class ScriptedWorker:
    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self.calls: list[Call] = []
        self._new: asyncio.Queue[Call] = asyncio.Queue()

    def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        call = Call(batch)
        self.calls.append(call)
        self._new.put_nowait(call)
        return call.outputs()

    async def next_call(self) -> Call:
        return await asyncio.wait_for(self._new.get(), SOON_S)

    async def health(self) -> Health:
        return Health(ready=True)

    async def capacity(self) -> int | None:
        return None

    async def load(self) -> None:
        return None

    async def aclose(self) -> None:
        return None


class Bench:
    """A batcher with a scripted worker, a clock that stands still, and a list of what was flushed."""

    def __init__(
        self,
        *,
        limit: int = 64,
        lists: bool = True,
        worker: type[ScriptedWorker] | None = None,
        patience: CallPatience | None = None,
        **policy: Any,
    ) -> None:
        self.worker = (worker or ScriptedWorker)(Capabilities(lists=lists))
        self.clock = Clock()
        self.window = Window(limit)
        self.flushes: list[Flush] = []
        self.batcher = Batcher(
            self.worker,
            BatchPolicy(**policy),
            self.window,
            clock=self.clock,
            on_flush=self.flushes.append,
            patience=patience,
        )

    def submit(self, prompt: str, **options: Any) -> Answer:
        return Answer(self, prompt, **options)

    def submit_many(self, count: int) -> list[Answer]:
        return [self.submit(f"p{index}") for index in range(count)]

    @property
    def reasons(self) -> list[tuple[FlushReason, int]]:
        return [(flush.reason, flush.size) for flush in self.flushes]

    async def occupy(self) -> Call:
        """Keep the endpoint busy with one prompt that shares with nobody."""
        self.submit("busy", model="busy")
        call = await self.worker.next_call()
        self.flushes.clear()
        return call

    def assert_empty(self) -> None:
        assert (self.batcher.gathered, self.batcher._runner.calls) == (0, 0)
        assert self.window.in_flight == 0


class Answer:
    """One prompt in the batcher, its pieces, and the task that awaits its end."""

    def __init__(
        self,
        bench: Bench,
        prompt: str,
        *,
        tokens: int = 1,
        expires_at: float | None = None,
        model: str = "m",
        deliver: Any = None,
        **fields: Any,
    ) -> None:
        self.pieces: list[Piece] = []
        generation = Generation(model=model, prompt=prompt, **fields)
        self.task = asyncio.ensure_future(
            bench.batcher.run(generation, deliver or self.pieces.append, tokens=tokens, expires_at=expires_at)
        )

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    async def end(self) -> Completed:
        return await asyncio.wait_for(asyncio.shield(self.task), SOON_S)

    async def error(self) -> BaseException:
        outcomes = await asyncio.gather(self.task, return_exceptions=True)
        assert isinstance(outcomes[0], BaseException)
        return outcomes[0]

    async def cancel(self) -> None:
        self.task.cancel()
        assert isinstance(await self.error(), asyncio.CancelledError)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# Gathering


async def test_prompts_of_one_turn_make_one_call_on_an_idle_endpoint() -> None:
    bench = Bench(max_size=64)
    answers = bench.submit_many(32)
    call = await bench.worker.next_call()
    call.finish()

    assert [(await answer.end()).finish_reason for answer in answers] == ["stop"] * 32
    assert bench.reasons == [(FlushReason.IDLE, 32)]
    assert call.prompts == [f"p{index}" for index in range(32)]
    await bench.batcher.drain()
    bench.assert_empty()


async def test_single_prompt_on_an_idle_endpoint_does_not_wait() -> None:
    bench = Bench(max_wait_ms=60_000)
    bench.submit("only")

    assert (await bench.worker.next_call()).prompts == ["only"]
    assert bench.reasons == [(FlushReason.IDLE, 1)]
    await bench.batcher.aclose()


async def test_more_than_a_call_may_hold_goes_as_several_calls_at_once() -> None:
    bench = Bench(max_size=4)
    bench.submit_many(10)

    calls = [await bench.worker.next_call() for _ in range(3)]
    assert [len(call.batch) for call in calls] == [4, 4, 2]
    assert [reason for reason, _ in bench.reasons] == [FlushReason.SIZE, FlushReason.SIZE, FlushReason.IDLE]
    await bench.batcher.aclose()


async def test_busy_endpoint_gets_a_group_only_when_it_is_old_enough() -> None:
    bench = Bench(max_wait_ms=5)
    await bench.occupy()
    bench.submit("a")
    await turns()
    bench.clock.now += 0.003
    bench.submit("b")
    await turns()
    assert len(bench.worker.calls) == 1

    bench.clock.now += 0.003
    assert (await bench.worker.next_call()).prompts == ["a", "b"]
    assert bench.reasons == [(FlushReason.AGE, 2)]
    assert bench.flushes[0].waited_s == pytest.approx(0.006)
    await bench.batcher.aclose()


async def test_group_goes_when_the_endpoint_becomes_idle() -> None:
    bench = Bench(max_wait_ms=60_000)
    busy = await bench.occupy()
    bench.submit("a")
    await turns()
    busy.finish()

    assert (await bench.worker.next_call()).prompts == ["a"]
    assert bench.reasons == [(FlushReason.IDLE, 1)]
    await bench.batcher.aclose()


async def test_group_goes_when_it_is_full() -> None:
    bench = Bench(max_size=3, max_wait_ms=60_000)
    await bench.occupy()
    bench.submit_many(2)
    await turns()
    assert bench.flushes == []

    bench.submit("last")
    assert (await bench.worker.next_call()).prompts == ["p0", "p1", "last"]
    assert bench.reasons == [(FlushReason.SIZE, 3)]
    await bench.batcher.aclose()


async def test_group_goes_at_its_token_sum() -> None:
    bench = Bench(max_tokens=100, max_wait_ms=60_000)
    await bench.occupy()
    bench.submit("a", tokens=60)
    bench.submit("b", tokens=60)

    assert (await bench.worker.next_call()).prompts == ["a"]
    assert bench.reasons == [(FlushReason.TOKENS, 1)]
    assert bench.flushes[0].tokens == 60
    assert bench.batcher.gathered == 1
    await bench.batcher.aclose()


async def test_near_deadline_makes_the_whole_group_go_sooner() -> None:
    bench = Bench(max_wait_ms=60_000)
    await bench.occupy()
    bench.submit("patient")
    await turns()
    bench.submit("urgent", expires_at=bench.clock.now + 0.05)
    await turns()
    bench.clock.now += 0.005

    assert (await bench.worker.next_call()).prompts == ["patient", "urgent"]
    assert bench.reasons == [(FlushReason.DEADLINE, 2)]
    await bench.batcher.aclose()


async def test_prompts_with_different_parameters_never_share_a_call() -> None:
    bench = Bench()
    for index in range(6):
        bench.submit(f"p{index}", params={"seed": index % 2})

    calls = [await bench.worker.next_call() for _ in range(2)]
    assert [call.prompts for call in calls] == [["p0", "p2", "p4"], ["p1", "p3", "p5"]]
    await bench.batcher.aclose()


async def test_prompts_that_cannot_share_go_at_once_one_by_one() -> None:
    bench = Bench(lists=False, max_wait_ms=60_000)
    await bench.occupy()
    bench.submit_many(3)

    assert [(await bench.worker.next_call()).prompts for _ in range(3)] == [["p0"], ["p1"], ["p2"]]
    await bench.batcher.aclose()


async def test_max_size_of_one_turns_gathering_off() -> None:
    bench = Bench(max_size=1, max_wait_ms=60_000)
    bench.submit_many(3)

    assert [(await bench.worker.next_call()).prompts for _ in range(3)] == [["p0"], ["p1"], ["p2"]]
    await bench.batcher.aclose()


# The window


async def test_short_window_takes_the_most_urgent_first() -> None:
    bench = Bench(limit=2)
    for index, priority in enumerate([1, 5, 7, 5]):
        bench.submit(f"p{index}", priority=priority)

    first = await bench.worker.next_call()
    assert first.prompts == ["p2", "p1"]
    first.finish()
    assert (await bench.worker.next_call()).prompts == ["p3", "p0"]
    await bench.batcher.aclose()


async def test_places_that_are_kept_go_to_urgent_prompts_alone() -> None:
    bench = Bench(limit=3, max_wait_ms=0)
    bench.window.kept = 2
    for index, priority in enumerate([5, 1, 7, 8, 9]):
        bench.submit(f"p{index}", priority=priority)
    urgent = await bench.worker.next_call()
    assert urgent.prompts == ["p4", "p3"], "and no other shares their call"
    await turns()
    assert (bench.window.free, bench.batcher.gathered) == (1, 3), "the last place stays free"
    urgent.finish()
    assert (await bench.worker.next_call()).prompts == ["p2"]
    bench.submit("now", priority=8)
    assert (await bench.worker.next_call()).prompts == ["now"], "while the others wait"
    await bench.batcher.aclose()


async def test_a_solo_prompt_leaves_the_kept_places_free() -> None:
    bench = Bench(limit=2, lists=False)
    bench.window.kept = 1
    bench.submit("first")
    bench.submit("second")
    bench.submit("urgent", priority=9)
    assert {(await bench.worker.next_call()).prompts[0] for _ in range(2)} == {"first", "urgent"}
    await turns()
    assert bench.batcher.gathered == 1
    await bench.batcher.aclose()


async def test_short_window_ranks_across_groups_and_prompts_of_their_own() -> None:
    bench = Bench(limit=1)
    busy = await bench.occupy()
    bench.submit("low", priority=1)
    bench.submit("chat", priority=5, response_format={"type": "json_object"})
    bench.submit("high", priority=8)
    order = []
    call = busy
    for _ in range(3):
        call.finish()
        call = await bench.worker.next_call()
        order += call.prompts

    assert order == ["high", "chat", "low"]
    await bench.batcher.aclose()


async def test_prompt_of_its_own_does_not_overtake_a_more_urgent_one_of_the_same_turn() -> None:
    bench = Bench(limit=1)
    bench.submit("urgent", priority=9)
    bench.submit("chat", priority=1, response_format={"type": "json_object"})

    assert (await bench.worker.next_call()).prompts == ["urgent"]
    await bench.batcher.aclose()


async def test_full_window_makes_everything_wait() -> None:
    bench = Bench(limit=1, lists=False)
    busy = await bench.occupy()
    answer = bench.submit("later")
    await turns()
    assert bench.batcher.gathered == 1
    assert len(bench.worker.calls) == 1

    busy.finish()
    (await bench.worker.next_call()).finish()
    await answer.end()
    await bench.batcher.drain()
    bench.assert_empty()


async def test_place_of_a_member_is_free_as_soon_as_it_has_ended() -> None:
    bench = Bench(limit=2, max_wait_ms=0)
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    waiting = bench.submit("waiting", model="other")
    call.put(Completed(0, "stop"))
    await first.end()

    (await bench.worker.next_call()).finish()
    await waiting.end()
    assert not second.task.done()
    assert bench.window.in_flight == 1
    await bench.batcher.aclose()


async def test_higher_limit_lets_waiting_prompts_go() -> None:
    bench = Bench(limit=1, max_wait_ms=0)
    await bench.occupy()
    bench.submit_many(3)
    await turns()
    bench.window.limit = 4

    assert (await bench.worker.next_call()).prompts == ["p0", "p1", "p2"]
    await bench.batcher.aclose()


async def test_batchers_that_share_a_window_make_room_for_each_other() -> None:
    bench = Bench(limit=1)
    other = Batcher(bench.worker, BatchPolicy(), bench.window)
    busy = await bench.occupy()
    waiting = asyncio.ensure_future(other.run(Generation(model="m", prompt="x"), lambda _: None, tokens=1))
    await turns()
    busy.finish()

    (await bench.worker.next_call()).finish()
    assert (await waiting).finish_reason == "stop"
    await other.aclose()
    await bench.batcher.aclose()


# Outputs


async def test_each_member_gets_its_own_pieces_numbered_as_if_alone() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    usage = TokenUsage(output_tokens=2)
    call.put(Piece(1, "b"), Piece(0, "a"), Piece(1, "B", reasoning="why", tool_calls=({"index": 0},)))
    call.put(Completed(1, "length", usage, "served"), Completed(0, "stop"), None)

    assert await second.end() == Completed(0, "length", usage, "served")
    assert await first.end() == Completed(0, "stop")
    assert first.pieces == [Piece(0, "a")]
    assert second.pieces == [Piece(0, "b"), Piece(0, "B", "why", ({"index": 0},))]


async def test_what_comes_after_the_end_of_a_member_is_ignored() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(Piece(0, "a"), Completed(0, "stop"), Piece(0, "late"), Completed(0, "length"))
    call.put(Completed(1, "stop"), None)
    await second.end()

    assert (await first.end()).finish_reason == "stop"
    assert first.text == "a"
    await bench.batcher.drain()
    bench.assert_empty()


async def test_failing_member_does_not_fail_the_others() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(MemberFailed(0, ContextOverflow("too long")), Piece(1, "fine"), Completed(1, "stop"), None)

    assert isinstance(await first.error(), ContextOverflow)
    assert (await second.end()).finish_reason == "stop"
    assert second.text == "fine"
    assert len(bench.worker.calls) == 1


async def test_deliver_that_raises_ends_only_its_own_member() -> None:
    bench = Bench()
    broken = KeyError("sink")

    def deliver(_: Piece) -> None:
        raise broken

    first = bench.submit("a", deliver=deliver)
    second = bench.submit("b")
    call = await bench.worker.next_call()
    call.put(Piece(0, "x"), Piece(0, "y"), Piece(1, "fine"))
    assert await first.error() is broken
    assert bench.window.in_flight == 2, "the engine still works on it"

    call.finish()
    assert (await second.end()).finish_reason == "stop"
    assert second.text == "fine"
    await bench.batcher.drain()
    bench.assert_empty()


async def test_call_is_aborted_when_the_last_deliver_raises() -> None:
    bench = Bench()

    def deliver(_: Piece) -> None:
        raise StopIteration

    answer = bench.submit("a", deliver=deliver)
    call = await bench.worker.next_call()
    call.put(Piece(0, "x"))

    assert isinstance(await answer.error(), RuntimeError)
    await asyncio.wait_for(call.closed.wait(), SOON_S)
    await bench.batcher.drain()
    bench.assert_empty()


# Cancelling


async def test_member_cancelled_before_dispatch_leaves_its_group() -> None:
    bench = Bench(max_wait_ms=5)
    await bench.occupy()
    gone = bench.submit("gone", expires_at=bench.clock.now + 0.001)
    stays = bench.submit("stays")
    await turns()
    await gone.cancel()
    assert bench.batcher.gathered == 1

    bench.clock.now += 0.005
    call = await bench.worker.next_call()
    assert call.prompts == ["stays"]
    assert bench.reasons == [(FlushReason.AGE, 1)]
    call.finish()
    await stays.end()
    await bench.batcher.aclose()


async def test_member_cancelled_in_the_turn_of_its_dispatch_is_not_sent() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    asyncio.get_running_loop().call_soon(first.task.cancel)

    call = await bench.worker.next_call()
    assert call.prompts == ["p1"]
    call.finish()
    await second.end()
    await bench.batcher.drain()
    bench.assert_empty()


async def test_group_whose_members_are_all_cancelled_makes_no_call() -> None:
    bench = Bench(max_wait_ms=0, limit=1)
    busy = await bench.occupy()
    answers = [*bench.submit_many(2), bench.submit("alone", response_format={"type": "json_object"})]
    await turns()
    for answer in answers:
        await answer.cancel()
    busy.finish()
    await asyncio.wait_for(bench.batcher.drain(), SOON_S)

    assert len(bench.worker.calls) == 1
    bench.assert_empty()


async def test_member_cancelled_after_dispatch_only_loses_its_sink() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    await first.cancel()
    call.put(Piece(0, "unheard"), Piece(1, "heard"))
    call.finish()
    await second.end()

    assert first.pieces == []
    assert second.text == "heard"
    await bench.batcher.drain()
    bench.assert_empty()


async def test_call_is_closed_before_the_cancel_of_its_last_member_returns() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    await turns()
    await first.cancel()
    assert not call.closed.is_set()
    await second.cancel()

    assert call.closed.is_set()
    bench.assert_empty()


async def test_call_goes_on_for_nobody_no_longer_than_its_last_listener() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    await first.cancel()
    call.put(Completed(1, "stop"))
    await second.end()

    await asyncio.wait_for(call.closed.wait(), SOON_S)
    await bench.batcher.drain()
    bench.assert_empty()


async def test_call_that_is_closed_before_its_first_step_gives_its_places_back() -> None:
    bench = Bench(lists=False)
    answer = bench.submit("a")
    await asyncio.sleep(0)
    assert bench.window.in_flight == 1
    await bench.batcher.aclose()

    assert isinstance(await answer.error(), WorkerUnavailable)
    assert bench.worker.calls == []
    bench.assert_empty()


# Failing


async def test_rejected_list_is_split_until_the_bad_member_is_alone() -> None:
    bench = Bench()
    answers = bench.submit_many(8)

    async def engine() -> None:
        while True:
            call = await bench.worker.next_call()
            if "p5" in call.prompts:
                call.put(RequestRejected("p5 has a bad token"))
            else:
                call.finish()

    task = asyncio.ensure_future(engine())
    error = await answers[5].error()
    for index, answer in enumerate(answers):
        if index != 5:
            assert (await answer.end()).finish_reason == "stop"
    task.cancel()

    assert str(error) == "p5 has a bad token"
    assert [len(call.batch) for call in bench.worker.calls] == [8, 4, 4, 2, 2, 1, 1]
    assert len(bench.flushes) == 1
    await bench.batcher.drain()
    bench.assert_empty()


async def test_list_that_fails_inside_the_engine_is_split_like_a_rejected_one() -> None:
    bench, _ = watched()
    answers = bench.submit_many(8)

    async def engine() -> None:
        while True:
            call = await bench.worker.next_call()
            if "p5" in call.prompts:
                call.put(WorkerFailed("500: template error"))
            else:
                call.finish()

    task = asyncio.ensure_future(engine())
    assert str(await answers[5].error()) == "500: template error"
    for index, answer in enumerate(answers):
        if index != 5:
            assert (await answer.end()).finish_reason == "stop", "nobody else pays for it"
    task.cancel()


async def test_list_is_not_split_at_an_endpoint_that_is_left_alone_by_then() -> None:
    bench, watcher = watched()
    answers = bench.submit_many(4)
    call = await bench.worker.next_call()
    watcher.admits = False
    call.put(WorkerFailed("500: CUDA error"))
    for answer in answers:
        assert isinstance(await answer.error(), WorkerFailed)
    assert len(bench.worker.calls) == 1


async def test_member_that_has_streamed_when_the_engine_fails_has_failed_with_it() -> None:
    bench = Bench()
    streamed, silent = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(Piece(0, "half"), WorkerFailed("500: CUDA error"))
    assert isinstance(await streamed.error(), WorkerFailed)
    (await bench.worker.next_call()).finish()
    await silent.end()


async def test_rejected_list_keeps_its_places_while_it_is_split() -> None:
    bench = Bench(limit=2)
    bench.submit_many(2)
    first = await bench.worker.next_call()
    bench.submit("third", priority=9)
    first.put(RequestRejected("one of you"))

    assert [(await bench.worker.next_call()).prompts for _ in range(2)] == [["p0"], ["p1"]]
    assert bench.window.in_flight == 2
    await bench.batcher.aclose()
    bench.assert_empty()


async def test_member_that_has_streamed_is_not_run_again_but_may_be_retried() -> None:
    bench = Bench()
    streamed, silent = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(Piece(0, "half"), RequestRejected("no more"))

    error = await streamed.error()
    assert isinstance(error, WorkerProtocolError)
    assert error.retryable, "it was perhaps another member that the engine refused"
    again = await bench.worker.next_call()
    assert again.prompts == ["p1"]
    again.finish()
    await silent.end()
    assert streamed.text == "half"


async def test_cancelled_member_is_not_run_again() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    await first.cancel()
    call.put(RequestRejected("one of you"))

    again = await bench.worker.next_call()
    assert again.prompts == ["p1"]
    again.finish()
    await second.end()
    await bench.batcher.drain()
    bench.assert_empty()


@pytest.mark.parametrize(
    "failure", [WorkerOverloaded("full", retry_after_s=3.0), WorkerAuthError("no"), WorkerUnavailable("down")]
)
async def test_failed_call_fails_every_member_without_an_end_and_is_not_repeated(
    failure: WorkerError,
) -> None:
    bench = Bench()
    first, second, third = bench.submit_many(3)
    call = await bench.worker.next_call()
    call.put(Completed(0, "stop"), failure)

    assert (await first.end()).finish_reason == "stop"
    errors = [await second.error(), await third.error()]
    assert errors[0] is not errors[1]
    for error in errors:
        assert type(error) is type(failure)
        assert str(error) == str(failure)
        assert error.retry_after_s == failure.retry_after_s
    assert len(bench.worker.calls) == 1
    await bench.batcher.drain()
    bench.assert_empty()


async def test_member_without_an_end_has_a_protocol_error() -> None:
    bench = Bench()
    first, second = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(Completed(0, "stop"), Piece(1, "half"), None)

    assert (await first.end()).finish_reason == "stop"
    assert isinstance(await second.error(), WorkerProtocolError)


@pytest.mark.parametrize("member", [-1, 2])
async def test_output_for_a_member_that_is_not_there_fails_the_call(member: int) -> None:
    bench = Bench()
    answers = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(Piece(member, "whose?"))

    for answer in answers:
        error = await answer.error()
        assert isinstance(error, WorkerProtocolError)
        assert f"member {member} of a call of 2" in str(error)
    await asyncio.wait_for(call.closed.wait(), SOON_S)


async def test_unexpected_exception_becomes_retryable_and_is_logged_once_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    answers = bench.submit_many(3)
    call = await bench.worker.next_call()
    with caplog.at_level(logging.ERROR):
        call.put(LookupError("Authorization: Bearer sk-secret"))
        errors = [await answer.error() for answer in answers]

    for error in errors:
        assert isinstance(error, WorkerError)
        assert error.retryable
        assert "LookupError" in str(error)
        assert "secret" not in str(error)
    assert caplog.text.count("LookupError") == 1
    assert "secret" not in caplog.text


async def test_generate_that_raises_at_once_is_an_error_of_the_call() -> None:
    class Broken(ScriptedWorker):
        def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
            raise WorkerUnavailable("no connection")

    window = Window(4)
    batcher = Batcher(Broken(Capabilities(lists=True)), BatchPolicy(), window)

    with pytest.raises(WorkerUnavailable, match="no connection"):
        await batcher.run(Generation(model="m", prompt="x"), lambda _: None, tokens=1)
    assert window.in_flight == 0


async def test_call_that_cancels_itself_does_not_leave_its_members_waiting() -> None:
    bench = Bench()
    answers = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(asyncio.CancelledError())

    for answer in answers:
        error = await answer.error()
        assert isinstance(error, WorkerError)
        assert error.retryable
    await bench.batcher.drain()
    bench.assert_empty()


async def test_observer_that_raises_does_not_stop_the_call(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    def observe(_: Flush) -> None:
        raise ValueError("observer")

    batcher = Batcher(bench.worker, BatchPolicy(), bench.window, on_flush=observe)
    running = asyncio.ensure_future(batcher.run(Generation(model="m", prompt="x"), lambda _: None, tokens=1))
    (await bench.worker.next_call()).finish()

    assert (await running).finish_reason == "stop"
    assert "on_flush raised" in caplog.text


# Calls that are silent for too long


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "GRACE_S", 0.0)
    monkeypatch.setattr(runner, "LOOK_S", 0.001)
    monkeypatch.setattr(runner, "LET_GO_S", 0.02)


FOR_EVER = CallPatience(first_s=1000, next_s=1000, whole_s=1000)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("limit", "stream", "said"),
    [
        ("first_s", True, False),
        ("next_s", True, True),
        ("whole_s", False, False),
        ("whole_s", False, True),
        ("total_s", True, True),
    ],
)
async def test_call_that_is_silent_for_too_long_is_ended(limit: str, stream: bool, said: bool) -> None:
    bench = Bench(patience=replace(FOR_EVER, **{limit: 0.05}))
    answer = bench.submit("a", stream=stream)
    call = await bench.worker.next_call()
    if said:
        call.put(Piece(0, "half"))
    assert isinstance(await answer.error(), WorkerTimeout)
    await asyncio.wait_for(call.closed.wait(), 5)
    await bench.batcher.drain()
    bench.assert_empty()


@pytest.mark.usefixtures("quick")
async def test_call_that_flows_is_not_ended() -> None:
    bench = Bench(patience=CallPatience(first_s=0.5, next_s=0.5, whole_s=0.5))
    answer = bench.submit("a")
    call = await bench.worker.next_call()
    for _ in range(60):
        call.put(Piece(0, "."))
        await asyncio.sleep(0.015)
    call.finish()
    await answer.end()
    assert len(answer.pieces) == 60


class DeafWorker(ScriptedWorker):
    """Ignores that its calls are cancelled, and never answers them."""

    def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        super().generate(batch)
        return self._never()

    async def _never(self) -> AsyncIterator[Output]:
        for _ in range(3):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.3)
        yield Piece(0, "too late")


@pytest.mark.usefixtures("quick")
async def test_call_that_ignores_its_cancellation_is_left_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(worker=DeafWorker, patience=replace(FOR_EVER, first_s=0.05))
    answer = bench.submit("a")
    assert isinstance(await answer.error(), WorkerTimeout)
    await asyncio.wait_for(bench.batcher.drain(), 5)
    bench.assert_empty()
    assert caplog.text.count("ignores that its call was cancelled") == 1
    assert answer.pieces == []


@pytest.mark.usefixtures("quick")
async def test_cancelled_prompt_waits_for_no_worker_that_does_not_let_go() -> None:
    bench, watcher = watched(worker=DeafWorker)
    answer = bench.submit("a")
    await bench.worker.next_call()
    await asyncio.wait_for(answer.cancel(), 5)
    bench.assert_empty()
    assert (watcher.given_up, watcher.ended) == ([1], [])


@pytest.mark.usefixtures("quick")
async def test_closing_waits_for_no_worker_that_does_not_let_go() -> None:
    bench = Bench(worker=DeafWorker)
    answer = bench.submit("a")
    await bench.worker.next_call()
    await asyncio.wait_for(bench.batcher.aclose(), 5)
    assert isinstance(await answer.error(), WorkerUnavailable)
    bench.assert_empty()


@pytest.mark.usefixtures("quick")
async def test_watcher_hears_of_an_overdue_call_as_of_one_that_failed() -> None:
    for worker in (ScriptedWorker, DeafWorker):
        watcher = Watcher()
        bench = Bench(worker=worker)
        limits = replace(FOR_EVER, first_s=0.05)
        bench.batcher = Batcher(bench.worker, BatchPolicy(), bench.window, watcher=watcher, patience=limits)
        assert isinstance(await bench.submit("a").error(), WorkerTimeout)
        await bench.batcher.drain()
        ((_, prompts, error),) = watcher.ended
        assert (prompts, type(error), watcher.given_up) == (1, WorkerTimeout, [])


# The watcher


@dataclass
class Watcher:
    """Notes how calls begin and end. What it gives for a call is its number."""

    began: int = 0
    admits: bool = True
    given_up: list[int] = field(default_factory=list)
    ended: list[tuple[int, int, WorkerError | None]] = field(default_factory=list)

    def call_began(self, members: Sequence[Member]) -> int:
        self.began += 1
        return self.began

    def call_ended(self, call: int, prompts: int, error: WorkerError | None) -> None:
        self.ended.append((call, prompts, error))

    def call_given_up(self, call: int) -> None:
        self.given_up.append(call)


def watched(**bench: Any) -> tuple[Bench, Watcher]:
    made, watcher = Bench(**bench), Watcher()
    made.batcher = Batcher(made.worker, BatchPolicy(), made.window, watcher=watcher)
    return made, watcher


async def test_watcher_hears_of_each_call_with_what_it_gave_for_it() -> None:
    bench, watcher = watched(lists=False)
    answers = bench.submit_many(2)
    first, second = [await bench.worker.next_call() for _ in range(2)]
    assert (watcher.began, watcher.ended) == (2, [])
    second.finish()
    await answers[1].end()
    first.finish()
    await bench.batcher.drain()
    assert watcher.ended == [(2, 1, None), (1, 1, None)]


async def test_watcher_hears_once_of_a_list() -> None:
    bench, watcher = watched()
    bench.submit_many(3)
    (await bench.worker.next_call()).finish()
    await bench.batcher.drain()
    assert watcher.ended == [(1, 3, None)]


@pytest.mark.parametrize("failure", [WorkerUnavailable("gone"), WorkerOverloaded("full", retry_after_s=2.0)])
async def test_watcher_hears_why_a_call_failed_before_its_prompts_do(failure: WorkerError) -> None:
    bench, watcher = watched()
    answers = bench.submit_many(2)
    (await bench.worker.next_call()).put(Piece(0, "half"), failure)
    await answers[0].error()
    assert watcher.ended == [(1, 2, failure)]


async def test_watcher_hears_of_what_an_adapter_must_not_raise_as_of_a_failure() -> None:
    bench, watcher = watched()
    (answer,) = bench.submit_many(1)
    (await bench.worker.next_call()).put(KeyError("x"))
    await answer.error()
    assert [(prompts, type(error)) for _, prompts, error in watcher.ended] == [(1, WorkerError)]


@pytest.mark.parametrize("one_is_good", [True, False])
async def test_list_has_failed_for_the_watcher_when_all_its_members_have(one_is_good: bool) -> None:
    bench, watcher = watched()
    bench.submit_many(2)
    bad = WorkerUnavailable("gone")
    last = Completed(1, "stop") if one_is_good else MemberFailed(1, bad)
    (await bench.worker.next_call()).put(MemberFailed(0, bad), last, None)
    await bench.batcher.drain()
    assert watcher.ended == [(1, 2, None if one_is_good else bad)]


async def test_watcher_hears_of_a_refused_list_and_of_the_calls_that_follow_it() -> None:
    bench, watcher = watched()
    answers = bench.submit_many(2)
    refusal = RequestRejected("one of you")
    (await bench.worker.next_call()).put(refusal)
    for _ in range(2):
        (await bench.worker.next_call()).finish()
    for answer in answers:
        await answer.end()
    await bench.batcher.drain()
    assert watcher.ended == [(1, 2, refusal), (2, 1, None), (3, 1, None)]


async def test_answer_that_its_reader_ends_went_well_for_the_watcher() -> None:
    bench, watcher = watched()

    def enough(_: Piece) -> None:
        raise KeyError("enough")

    answer = bench.submit("a", deliver=enough)
    call = await bench.worker.next_call()
    call.put(Piece(0, "half"))
    assert isinstance(await answer.error(), KeyError)
    await bench.batcher.drain()
    assert watcher.ended == [(1, 1, None)]


async def test_watcher_hears_of_a_call_that_is_given_up_as_of_no_other_end() -> None:
    bench, watcher = watched()
    answers = bench.submit_many(2)
    call = await bench.worker.next_call()
    call.put(Piece(0, "half"))
    for answer in answers:
        await answer.cancel()
    await bench.batcher.drain()
    assert (watcher.began, watcher.ended, watcher.given_up) == (1, [], [1])


async def test_watcher_hears_of_calls_that_closing_ends_as_given_up() -> None:
    bench, watcher = watched()
    bench.submit("a")
    await bench.worker.next_call()
    await bench.batcher.aclose()
    assert (watcher.ended, watcher.given_up) == ([], [1])


# Ending


async def test_drain_sends_what_is_gathered_and_waits_for_it() -> None:
    bench = Bench(max_wait_ms=60_000)
    busy = await bench.occupy()
    answer = bench.submit("a")
    await turns()
    drains = [asyncio.ensure_future(bench.batcher.drain()) for _ in range(2)]
    call = await bench.worker.next_call()
    assert bench.reasons == [(FlushReason.DRAIN, 1)]
    call.finish()
    await answer.end()
    await turns()
    assert not any(drain.done() for drain in drains)

    busy.finish()
    await asyncio.wait_for(asyncio.gather(*drains), SOON_S)
    bench.assert_empty()


@pytest.mark.parametrize("room_comes_first", [True, False])
async def test_drain_ends_when_what_it_waits_for_is_cancelled(room_comes_first: bool) -> None:
    bench = Bench(limit=1)
    bench.window.acquire()
    answer = bench.submit("a")
    await turns()
    drain = asyncio.ensure_future(bench.batcher.drain())
    await turns()
    if room_comes_first:
        bench.window.release()
    answer.task.cancel()

    await asyncio.wait_for(drain, SOON_S)
    assert bench.worker.calls == []


async def test_drain_of_an_empty_batcher_returns_and_it_stays_usable() -> None:
    bench = Bench()
    await bench.batcher.drain()
    answer = bench.submit("a")
    (await bench.worker.next_call()).finish()

    assert (await answer.end()).finish_reason == "stop"


async def test_gathered_prompts_that_are_turned_away_fail_and_others_go_on() -> None:
    bench = Bench(limit=1)
    busy = bench.submit("busy")
    call = await bench.worker.next_call()
    gathered = bench.submit_many(2)
    await turns()
    reason = WorkerUnavailable("left alone", retry_after_s=3.0)
    bench.batcher.turn_away(reason)
    errors = [await answer.error() for answer in gathered]
    assert [(str(error), vars(error)["retry_after_s"]) for error in errors] == [("left alone", 3.0)] * 2
    assert len({id(error) for error in [reason, *errors]}) == 3

    call.finish()
    assert (await busy.end()).finish_reason == "stop"
    later = bench.submit("later")
    (await bench.worker.next_call()).finish()
    await later.end()
    await bench.batcher.drain()
    bench.assert_empty()


async def test_drain_ends_when_what_it_waits_for_is_turned_away() -> None:
    bench = Bench(limit=1)
    bench.window.acquire()
    answer = bench.submit("a")
    await turns()
    drain = asyncio.ensure_future(bench.batcher.drain())
    await turns()
    bench.batcher.turn_away(WorkerUnavailable("left alone"))
    await asyncio.wait_for(drain, SOON_S)
    assert isinstance(await answer.error(), WorkerUnavailable)


async def test_close_fails_the_gathered_and_the_running_with_a_retryable_error() -> None:
    bench = Bench(max_wait_ms=60_000)
    running = bench.submit("running")
    call = await bench.worker.next_call()
    gathered = bench.submit("gathered")
    await turns()
    await bench.batcher.aclose()
    await bench.batcher.aclose()

    assert call.closed.is_set()
    for answer in (running, gathered, bench.submit("late")):
        error = await answer.error()
        assert isinstance(error, WorkerUnavailable)
        assert error.retryable
    assert len(bench.worker.calls) == 1
    assert bench.window.on_room == []
    bench.assert_empty()


async def test_close_tries_nothing_again_when_the_engine_rejects_meanwhile() -> None:
    class Sulking(ScriptedWorker):
        async def outputs(self, call: Call) -> AsyncIterator[Output]:
            try:
                async for output in call.outputs():
                    yield output
            except asyncio.CancelledError:
                raise RequestRejected("if you say so") from None

        def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
            super().generate(batch)
            return self.outputs(self.calls[-1])

    bench = Bench(worker=Sulking)
    answers = bench.submit_many(2)
    await bench.worker.next_call()
    await turns()
    await bench.batcher.aclose()

    for answer in answers:
        assert isinstance(await answer.error(), WorkerProtocolError)
    assert len(bench.worker.calls) == 1
    bench.assert_empty()


# Everything at once


@dataclass(frozen=True)
class Plan:
    """What becomes of one prompt: its group, how the engine treats it, when its caller gives up."""

    model: str
    kind: str
    priority: int
    tokens: int
    after_turns: int
    cancel_after_turns: int | None


PLANS = st.builds(
    Plan,
    model=st.sampled_from(["a", "b"]),
    kind=st.sampled_from(
        ["good"] * 4 + ["rejected", "member_failed", "overloaded", "crash", "endless", "bad_sink", "solo"]
    ),
    priority=st.integers(0, 9),
    tokens=st.integers(0, 60),
    after_turns=st.integers(0, 6),
    cancel_after_turns=st.none() | st.integers(0, 25),
)


@dataclass
class Engine:
    """Answers by the plan that each prompt names, and notes what it was sent."""

    plans: Sequence[Plan]
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(lists=True))
    batches: list[list[int]] = field(default_factory=list)

    async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        numbers = [int(generation.prompt or "") for generation in batch]
        self.batches.append(numbers)
        kinds = [self.plans[number].kind for number in numbers]
        await turns(1)
        if "rejected" in kinds:
            raise RequestRejected(f"{numbers[kinds.index('rejected')]} is bad")
        if "overloaded" in kinds:
            raise WorkerOverloaded("full")
        for index, number in enumerate(numbers):
            await turns(number % 3)
            yield Piece(index, f"{number}")
        if "crash" in kinds:
            raise ZeroDivisionError
        for index, kind in enumerate(kinds):
            if kind == "member_failed":
                yield MemberFailed(index, ContextOverflow("too long"))
            elif kind != "endless":
                yield Completed(index, "stop")
            await turns(1)


@settings(max_examples=150, deadline=None)
@given(
    plans=st.lists(PLANS, min_size=1, max_size=24),
    limit=st.integers(1, 12),
    max_size=st.integers(1, 8),
    max_tokens=st.integers(1, 120),
    max_wait_ms=st.sampled_from([0.0, 0.2]),
)
def test_every_prompt_has_one_outcome_and_every_place_is_given_back(
    plans: list[Plan], limit: int, max_size: int, max_tokens: int, max_wait_ms: float
) -> None:
    asyncio.run(_everything(plans, limit, BatchPolicy(max_size, max_wait_ms, max_tokens)))


async def _everything(plans: list[Plan], limit: int, policy: BatchPolicy) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    engine = Engine(plans)
    window = Window(limit)
    most = 0

    def note(_: Flush) -> None:
        nonlocal most
        most = max(most, window.in_flight)

    batcher = Batcher(engine, policy, window, on_flush=note)  # type: ignore[arg-type]  # stands in for the real one
    texts = [""] * len(plans)

    async def one(number: int, plan: Plan) -> Completed:
        def deliver(piece: Piece) -> None:
            if plan.kind == "bad_sink":
                raise KeyError(number)
            texts[number] += piece.text

        await turns(plan.after_turns)
        shape: dict[str, Any] = {"response_format": {"type": "json_object"}} if plan.kind == "solo" else {}
        generation = Generation(plan.model, str(number), priority=plan.priority, **shape)
        return await batcher.run(generation, deliver, tokens=plan.tokens)

    async def cancel(task: asyncio.Task[Completed], plan: Plan) -> None:
        if plan.cancel_after_turns is not None:
            await turns(plan.cancel_after_turns)
            task.cancel()

    tasks = [asyncio.ensure_future(one(number, plan)) for number, plan in enumerate(plans)]
    await asyncio.gather(*(cancel(task, plan) for task, plan in zip(tasks, plans, strict=True)))
    outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON_S)
    await asyncio.wait_for(batcher.drain(), SOON_S)

    for number, (plan, outcome) in enumerate(zip(plans, outcomes, strict=True)):
        _check_outcome(number, plan, outcome, texts[number], engine)
    for batch in engine.batches:
        assert len(batch) <= policy.max_size
        assert len(batch) == 1 or sum(plans[number].tokens for number in batch) <= policy.max_tokens
        assert len({plans[number].model for number in batch}) == 1
        assert len(batch) == 1 or all(plans[number].kind != "solo" for number in batch)
    assert most <= limit
    assert window.in_flight == 0
    assert (batcher.gathered, batcher._runner.calls) == (0, 0)
    assert len(asyncio.all_tasks()) == 1, "only this test's own task is left"
    await batcher.aclose()
    assert complaints == []


def _check_outcome(number: int, plan: Plan, outcome: object, text: str, engine: Engine) -> None:
    if isinstance(outcome, asyncio.CancelledError):
        assert plan.cancel_after_turns is not None
        return
    company = {engine.plans[mate].kind for batch in engine.batches if number in batch for mate in batch}
    if isinstance(outcome, Completed):
        assert plan.kind in {"good", "solo"}
        assert outcome.member == 0
        assert text == str(number)
    elif plan.kind == "rejected":
        assert isinstance(outcome, RequestRejected | WorkerOverloaded)
        assert isinstance(outcome, WorkerOverloaded) or str(outcome) == f"{number} is bad"
    elif plan.kind in {"good", "solo"}:
        assert isinstance(outcome, WorkerError)
        assert company & {"overloaded", "crash"}, "failed without a reason in its calls"
    else:
        assert isinstance(outcome, WorkerError | KeyError)
