"""The contract suite itself: an honest worker passes; a worker that breaks a promise fails its test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import cycle, islice
from typing import Any

import pytest

from workers.base import (
    Capabilities,
    Completed,
    Generation,
    GenerationWorker,
    Health,
    Load,
    MemberFailed,
    Output,
    Piece,
    TokenUsage,
)
from workers.contract import GenerationContract, start
from workers.errors import RequestRejected, WorkerTimeout, WorkerUnavailable

REFUSED = "say nothing"


class Honest:
    """Says the prompt's words again and again, `max_tokens` of them, one in a turn of the loop."""

    away = False

    def __init__(self) -> None:
        self.running = 0
        self.calls = 0
        self.closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(lists=True)

    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        if self.away:
            raise WorkerUnavailable("nobody listens")
        self.running += 1
        self.calls += 1
        try:
            for member, generation in enumerate(batch):
                async for output in self.answer(member, generation):
                    yield output
        finally:
            self.running -= 1

    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        text = generation.prompt or str((generation.messages or ())[-1]["content"])
        if text == REFUSED:
            yield MemberFailed(member, RequestRejected("it says nothing"))
            return
        count = generation.params["max_tokens"]
        words = [f"{word} " for word in islice(cycle(text.split()), count)]
        for said in words if generation.stream else ["".join(words)]:
            await asyncio.sleep(0)
            yield Piece(member, said)
        yield Completed(member, "length", TokenUsage(len(text.split()), count))

    async def health(self) -> Health:
        return Health(ready=not self.away, detail="nobody listens" if self.away else "")

    async def capacity(self) -> int | None:
        return None if self.away else 8

    async def load(self) -> Load | None:
        return None if self.away else Load(self.running, 0)

    async def aclose(self) -> None:
        self.closed = True


class HonestContract(GenerationContract):
    """The suite, as a user would set it up for `Honest`."""

    stop_within_s = 0.05

    def refused(self) -> Generation:
        return self.generation(REFUSED)

    async def generating(self, worker: GenerationWorker) -> int:
        assert isinstance(worker, Honest)
        return worker.running


class TestHonestWorker(HonestContract):
    @pytest.fixture
    def worker(self) -> Honest:
        return Honest()

    @pytest.fixture
    def silent_worker(self) -> Silent:
        return Silent()

    @pytest.fixture
    def unreachable_worker(self) -> Honest:
        worker = Honest()
        worker.away = True
        return worker


class Silent(Honest):
    """Its back end never answers; it keeps its time limit."""

    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        await asyncio.sleep(0.01)
        yield MemberFailed(member, WorkerTimeout("no answer within timeout_s = 0.01"))


class NoEnd(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            if isinstance(output, Piece):
                yield output


class TwoEnds(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            yield output
        yield Completed(member, "length")


class PieceAfterTheEnd(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            yield output
        yield Piece(member, "more")


class EmptyPiece(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        yield Piece(member)
        async for output in super().answer(member, generation):
            yield output


class MemberOutOfRange(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member + 1, generation):
            yield output


class OwnFinishReason(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        yield Piece(member, "word")
        yield Completed(member, "eos")


class ForeignError(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            if isinstance(output, MemberFailed):
                raise ValueError("400 Bad Request")
            yield output


class RefusalToBeRetried(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            refused = isinstance(output, MemberFailed)
            yield MemberFailed(member, WorkerUnavailable("again")) if refused else output


class NotStreaming(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        outputs = [output async for output in super().answer(member, generation)]
        yield Piece(member, "".join(output.text for output in outputs if isinstance(output, Piece)))
        yield outputs[-1]


class OtherwiseUnstreamed(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        if not generation.stream:
            yield Piece(member, "well: ")
        async for output in super().answer(member, generation):
            yield output


class OneTokenTooMany(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            if isinstance(output, Completed):
                yield Piece(member, "more")
                used = TokenUsage(output.usage.input_tokens, (output.usage.output_tokens or 0) + 1)
                output = Completed(member, "length", used)  # noqa: PLW2901  this wrong one replaces it
            yield output


class CutIsCalledStop(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            yield Completed(member, "stop", output.usage) if isinstance(output, Completed) else output


class MembersMixedUp(Honest):
    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        async for output in super().generate(batch[::-1]):
            yield output


class UsageOfTheWholeList(Honest):
    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        words = sum(len((one.prompt or "").split()) for one in batch)
        async for output in super().generate(batch):
            ended = isinstance(output, Completed)
            yield Completed(output.member, "length", TokenUsage(words, 6)) if ended else output


class NoUsageInLists(Honest):
    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        async for output in super().generate(batch):
            yield Completed(output.member, "length") if isinstance(output, Completed) else output


class SilentInChat(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        async for output in super().answer(member, generation):
            if generation.messages is None or isinstance(output, Completed):
                yield output


class LastCallAnswersAll(Honest):
    """Keeps the prompt of a call where another call finds it."""

    said: Generation

    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        self.said = batch[0]
        await asyncio.sleep(0)
        async for output in super().generate([self.said]):
            yield output


class GoesOnAfterItIsClosed(Honest):
    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        self.running += 1
        async for output in super().generate(batch):
            yield output
        self.running -= 1


class UnusableAfterACancel(Honest):
    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        if self.calls and self.closed:
            raise WorkerUnavailable("the connection has gone")
        whole = False
        try:
            async for output in super().generate(batch):
                yield output
            whole = True
        finally:
            self.closed = not whole


class SwallowsTheCancellation(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        try:
            async for output in super().answer(member, generation):
                yield output
        except asyncio.CancelledError:
            yield Completed(member, "stop")


class EndsBeforeItCanBeCancelled(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        yield Completed(member, "length")


class NoGenerator(Honest):
    def generate(self, batch: Sequence[Generation]) -> Any:
        class Iterator:
            def __aiter__(self) -> Iterator:
                return self

        return Iterator()


class HealthRaises(Honest):
    async def health(self) -> Health:
        raise OSError("no route to host")


class NeverReady(Honest):
    async def health(self) -> Health:
        return Health(ready=False, detail="it says nothing of itself")


class EmptyWarning(Honest):
    async def health(self) -> Health:
        return Health(ready=True, warnings=("",))


class HoldsNothing(Honest):
    async def capacity(self) -> int | None:
        return 0


class LoadBelowZero(Honest):
    async def load(self) -> Load | None:
        return Load(0, -1)


class ClosesOnce(Honest):
    async def aclose(self) -> None:
        if self.closed:
            raise RuntimeError("closed")
        self.closed = True


LISTS = "test_members_of_a_list_get_their_own_answers_and_usage"
ENDS = "test_answer_is_text_and_then_one_good_end"
CANCELS = "test_cancelling_the_reader_stops_the_back_end"
CLOSES = "test_closing_the_iterator_stops_the_back_end"


@pytest.mark.parametrize(
    ("cheat", "test", "said"),
    [
        (NoEnd, ENDS, "has no end"),
        (TwoEnds, ENDS, "output after its end"),
        (PieceAfterTheEnd, ENDS, "output after its end"),
        (EmptyPiece, ENDS, "a piece with nothing in it"),
        (MemberOutOfRange, ENDS, "there is no member 1"),
        (OwnFinishReason, ENDS, "eos"),
        (ForeignError, "test_refused_request_is_a_final_error", "400 Bad Request"),
        (RefusalToBeRetried, "test_refused_request_is_a_final_error", "retryable"),
        (NotStreaming, "test_streaming_brings_the_answer_in_several_pieces", "pieces"),
        (OtherwiseUnstreamed, "test_streamed_or_whole_the_answer_is_the_same", "well: "),
        (OneTokenTooMany, "test_max_tokens_ends_the_answer_with_reason_length", "7"),
        (CutIsCalledStop, "test_max_tokens_ends_the_answer_with_reason_length", "'stop' == 'length'"),
        (MembersMixedUp, LISTS, "assert"),
        (UsageOfTheWholeList, LISTS, "assert"),
        (NoUsageInLists, LISTS, "each member's own tokens"),
        (SilentInChat, "test_chat_is_answered", "assert"),
        (LastCallAnswersAll, "test_concurrent_calls_do_not_mix", "assert"),
        (GoesOnAfterItIsClosed, CLOSES, ""),
        (UnusableAfterACancel, CLOSES, "the connection has gone"),
        (UnusableAfterACancel, CANCELS, "the connection has gone"),
        (SwallowsTheCancellation, CANCELS, "swallowed the cancellation"),
        (EndsBeforeItCanBeCancelled, CANCELS, "ended before it could be cancelled"),
        (NoGenerator, "test_an_iterator_that_was_never_read_can_be_closed", "can be closed"),
        (HealthRaises, "test_health_is_ready", "no route to host"),
        (NeverReady, "test_health_is_ready", "ready"),
        (EmptyWarning, "test_health_is_ready", "a warning says something"),
        (HoldsNothing, "test_capacity_is_unknown_or_some", "0"),
        (LoadBelowZero, "test_load_is_unknown_or_counts", "-1"),
        (ClosesOnce, "test_closing_twice_is_safe", "closed"),
    ],
)
async def test_a_broken_promise_is_found(cheat: type[Honest], test: str, said: str) -> None:
    assert said in await failure_of(test, worker=cheat())


class Away(Honest):
    away = True


class AwayWithABug(Away):
    async def generate(self, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
        raise ConnectionRefusedError
        yield


class AwayAndReady(Away):
    async def health(self) -> Health:
        return Health(ready=True)


class AwayWithoutAWord(Away):
    async def health(self) -> Health:
        return Health(ready=False)


class AwayWithRoom(Away):
    async def capacity(self) -> int | None:
        return 1


class AwayWithLoad(Away):
    async def load(self) -> Load | None:
        return Load(0, 0)


class SilentForEver(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        await asyncio.Event().wait()
        yield Completed(member, "stop")


class SilentAndAway(Honest):
    async def answer(self, member: int, generation: Generation) -> AsyncGenerator[Output, None]:
        yield MemberFailed(member, WorkerUnavailable("nobody answers"))


@pytest.mark.parametrize(
    ("cheat", "said"), [(SilentForEver, "does not keep timeout_s"), (SilentAndAway, "nobody answers")]
)
async def test_worker_that_waits_for_ever_is_found(cheat: type[Honest], said: str) -> None:
    assert said in await failure_of("test_back_end_that_never_answers_is_a_timeout", silent_worker=cheat())


async def test_wrong_error_of_a_worker_that_is_away_is_found() -> None:
    await failure_of("test_back_end_that_is_away_is_a_retryable_error", unreachable_worker=AwayWithABug())


@pytest.mark.parametrize("cheat", [AwayAndReady, AwayWithoutAWord, AwayWithRoom, AwayWithLoad])
async def test_wrong_report_of_a_worker_that_is_away_is_found(cheat: type[Honest]) -> None:
    await failure_of("test_back_end_that_is_away_is_not_ready_and_says_why", unreachable_worker=cheat())


async def failure_of(test: str, **fixtures: Honest) -> str:
    """What a test of the suite says; it has to fail with one of its parameters."""
    run = getattr(HonestContract(), test)
    said = []
    for values in parameters_of(run):
        try:
            await run(**fixtures, **values)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    assert said, f"{test} found nothing"
    return "\n".join(said)


def parameters_of(test: Any) -> list[dict[str, Any]]:
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    return [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]


async def test_the_honest_worker_is_let_go() -> None:
    """Else the tests of cancelling would say nothing."""
    worker = Honest()
    outputs = start(worker, [HonestContract().endless()])
    await anext(outputs)
    assert worker.running == 1
    await outputs.aclose()
    assert worker.running == 0


def test_a_chat_of_the_suite_has_messages_and_no_prompt() -> None:
    chat = HonestContract().generation(messages=({"role": "user", "content": "hello"},))
    assert (chat.prompt, chat.messages) == (None, ({"role": "user", "content": "hello"},))
