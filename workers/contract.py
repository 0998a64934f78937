"""What a model worker promises, as pytest suites: one for each kind of work.

Your adapter is done when its suite passes. For text generation:

    class TestMyWorker(GenerationContract):
        @pytest.fixture
        async def worker(self):
            worker = MyWorker(EndpointConfig(backend="mine", base_url=...))
            yield worker
            await worker.aclose()

Needs pytest and pytest-asyncio. For readable failures put
`pytest.register_assert_rewrite("workers.contract")` into a conftest.py, before anything imports this module.
"""
# ruff: noqa: S101 - a test suite asserts

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import pytest

from workers.base import Completed, Generation, GenerationWorker, MemberFailed, ModelWorker, Output, Piece
from workers.errors import WorkerError, WorkerTimeout, WorkerUnavailable

_FINISH_REASONS = {"stop", "length", "tool_calls", "content_filter", "unknown"}


@dataclass(slots=True)
class Answer:
    """The outputs of one member of a batch."""

    pieces: list[Piece] = field(default_factory=list)
    end: Completed | MemberFailed | None = None

    @property
    def text(self) -> str:
        """All text of the answer."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def completed(self) -> Completed:
        """The `Completed` of the member.

        Raises:
            WorkerError: the member has failed.
        """
        if isinstance(self.end, MemberFailed):
            raise self.end.error
        assert self.end is not None, "the member has no end"
        return self.end


def start(worker: GenerationWorker, batch: Sequence[Generation]) -> AsyncGenerator[Output, None]:
    """Run a batch; closing what this returns must cancel it."""
    outputs = worker.generate(batch)
    assert hasattr(outputs, "aclose"), "generate() must return an iterator that can be closed"
    return cast("AsyncGenerator[Output, None]", outputs)


async def collect(worker: GenerationWorker, batch: Sequence[Generation]) -> list[Answer]:
    """Run a batch to its end, and check that its outputs come in the order that the port demands."""
    answers = [Answer() for _ in batch]
    async with aclosing(start(worker, batch)) as outputs:
        async for output in outputs:
            assert 0 <= output.member < len(batch), f"there is no member {output.member}"
            answer = answers[output.member]
            assert answer.end is None, f"member {output.member} has an output after its end"
            if isinstance(output, Piece):
                assert any(output[1:4]) or output.extra, "a piece with nothing in it"
                answer.pieces.append(output)
            else:
                answer.end = output
    for member, answer in enumerate(answers):
        assert answer.end is not None, f"member {member} has no end"
    return answers


class ModelWorkerContract:
    """What every model worker promises, whatever its kind of work.

    The suite of a kind of work derives from it. Give your subclass the fixture `worker`.
    """

    pytestmark = pytest.mark.asyncio

    @pytest.fixture
    def worker(self) -> Any:
        """A worker on a back end that is up. Close it after the test."""
        raise NotImplementedError("give your subclass a fixture `worker`")

    @pytest.fixture
    def unreachable_worker(self) -> Any:
        """A worker on an address where nobody listens; None if there is no such thing."""
        return None

    @pytest.fixture
    def silent_url(self) -> Iterator[str]:
        """The URL of a server that takes connections and never answers."""
        with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"

    @pytest.fixture
    def silent_worker(self) -> Any:
        """A worker with `timeout_s` of half a second, on a back end that takes calls and never answers.

        Make it from `silent_url` if it speaks HTTP; None if a back end cannot be silent.
        """
        return None

    async def test_health_is_ready(self, worker: ModelWorker) -> None:
        health = await worker.health()
        assert health.ready
        assert all(health.warnings), "a warning says something"

    async def test_capacity_is_unknown_or_some(self, worker: ModelWorker) -> None:
        capacity = await worker.capacity()
        assert capacity is None or capacity >= 1

    async def test_load_is_unknown_or_counts(self, worker: ModelWorker) -> None:
        load = await worker.load()
        assert load is None or min(load.running, load.waiting) >= 0

    async def test_back_end_that_is_away_is_not_ready_and_says_why(
        self, unreachable_worker: ModelWorker | None
    ) -> None:
        if unreachable_worker is None:
            pytest.skip("the back end cannot be away")
        health = await unreachable_worker.health()
        assert not health.ready
        assert health.detail, "health must say why it is not ready"
        assert await unreachable_worker.capacity() is None
        assert await unreachable_worker.load() is None
        await unreachable_worker.aclose()

    async def test_closing_twice_is_safe(self, worker: ModelWorker) -> None:
        await worker.aclose()
        await worker.aclose()


class GenerationContract(ModelWorkerContract):
    """What a model worker that generates promises.

    Subclass it, give the subclass the fixture `worker`, and override whatever does not suit your back end.
    """

    model: ClassVar[str] = "tiny"
    """The name of a model that the back end serves."""
    prompts: ClassVar[tuple[str, ...]] = (
        "one two three four five six seven eight nine ten",
        "red green blue yellow black white grey pink orange brown violet teal",
        "north south east west up down left right in out on off here there",
    )
    """Prompts of different lengths, each with an answer of at least `answer_tokens`."""
    answer_tokens: ClassVar[int] = 6
    """`max_tokens` of most tests: more than one, and fewer than the words of each prompt."""
    endless_prompt: ClassVar[str] = "again and again"
    """A prompt with an answer of `endless_tokens`, which keeps the back end busy until it is stopped."""
    endless_tokens: ClassVar[int] = 100_000
    """`max_tokens` for `endless_prompt`."""
    deterministic: ClassVar[bool] = True
    """Whether the back end gives the same answer twice with `sampling`."""
    sampling: ClassVar[dict[str, Any]] = {"temperature": 0.0, "seed": 1}
    """Parameters of every request."""
    stop_within_s: ClassVar[float] = 5.0
    """How long the back end may take to notice that a call was cancelled, in seconds."""

    def refused(self) -> Generation | None:
        """A request that the back end refuses; None if it refuses nothing."""
        return None

    async def generating(self, worker: GenerationWorker) -> int | None:
        """How many prompts the back end is running, by its own count; None if you cannot find out."""
        return None

    def generation(self, prompt: str | None = None, *, stream: bool = True, **changes: Any) -> Generation:
        """A plain prompt with a short answer, or a chat if you give `messages`."""
        if "messages" not in changes:
            prompt = prompt or self.prompts[0]
        params = {"max_tokens": self.answer_tokens, **self.sampling}
        return replace(Generation(self.model, prompt=prompt, params=params, stream=stream), **changes)

    def endless(self) -> Generation:
        """A prompt whose answer continues until it is stopped."""
        params = {"max_tokens": self.endless_tokens, **self.sampling}
        return self.generation(self.endless_prompt, params=params)

    @pytest.mark.parametrize("stream", [True, False])
    async def test_answer_is_text_and_then_one_good_end(self, worker: GenerationWorker, stream: bool) -> None:
        (answer,) = await collect(worker, [self.generation(stream=stream)])
        assert answer.text
        assert answer.completed.finish_reason in _FINISH_REASONS

    async def test_streaming_brings_the_answer_in_several_pieces(self, worker: GenerationWorker) -> None:
        if not worker.capabilities.streaming:
            pytest.skip("the back end does not stream")
        (answer,) = await collect(worker, [self.generation()])
        assert len(answer.pieces) > 1

    @pytest.mark.parametrize("stream", [True, False])
    async def test_streamed_or_whole_the_answer_is_the_same(
        self, worker: GenerationWorker, stream: bool
    ) -> None:
        if not self.deterministic:
            pytest.skip("the back end is not deterministic")
        (first,) = await collect(worker, [self.generation()])
        (second,) = await collect(worker, [self.generation(stream=stream)])
        assert second.text == first.text

    @pytest.mark.parametrize("stream", [True, False])
    async def test_max_tokens_ends_the_answer_with_reason_length(
        self, worker: GenerationWorker, stream: bool
    ) -> None:
        (answer,) = await collect(worker, [self.generation(stream=stream)])
        assert answer.completed.finish_reason == "length"
        assert answer.completed.usage.output_tokens in {None, self.answer_tokens}

    @pytest.mark.parametrize("stream", [True, False])
    async def test_members_of_a_list_get_their_own_answers_and_usage(
        self, worker: GenerationWorker, stream: bool
    ) -> None:
        if not worker.capabilities.lists:
            pytest.skip("the back end takes no lists")
        batch = [
            self.generation(prompt, stream=stream, priority=priority, request_id=f"job-{priority}")
            for priority, prompt in enumerate(self.prompts, start=4)
        ]
        together = await collect(worker, batch)
        alone = [(await collect(worker, [generation]))[0] for generation in batch]
        counts = [answer.completed.usage.input_tokens for answer in together]
        assert counts == [answer.completed.usage.input_tokens for answer in alone]
        assert None not in counts, "the worker must report each member's own tokens"
        assert [answer.completed.finish_reason for answer in together] == ["length"] * len(batch)
        if self.deterministic:
            assert [answer.text for answer in together] == [answer.text for answer in alone]

    @pytest.mark.parametrize("stream", [True, False])
    async def test_chat_is_answered(self, worker: GenerationWorker, stream: bool) -> None:
        if not worker.capabilities.chat:
            pytest.skip("the back end has no chat")
        messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": self.prompts[0]})
        (answer,) = await collect(worker, [self.generation(stream=stream, messages=messages)])
        assert answer.text or any(piece.reasoning for piece in answer.pieces)
        assert answer.completed.finish_reason == "length"
        assert answer.completed.usage.input_tokens != 0

    async def test_concurrent_calls_do_not_mix(self, worker: GenerationWorker) -> None:
        batches = [[self.generation(prompt)] for prompt in self.prompts for _ in range(3)]
        together = await asyncio.gather(*(collect(worker, batch) for batch in batches))
        for batch, (answer,) in zip(batches, together, strict=True):
            (alone,) = await collect(worker, batch)
            assert answer.completed.usage.input_tokens == alone.completed.usage.input_tokens
            assert answer.text == alone.text or not self.deterministic

    async def test_closing_the_iterator_stops_the_back_end(self, worker: GenerationWorker) -> None:
        outputs = start(worker, [self.endless()])
        await anext(outputs)
        await outputs.aclose()
        await self._assert_idle_and_usable(worker)

    @pytest.mark.parametrize("waits", ["in the worker", "in its own work"])
    async def test_cancelling_the_reader_stops_the_back_end(
        self, worker: GenerationWorker, waits: str
    ) -> None:
        began = asyncio.Event()

        async def read() -> None:
            async with aclosing(start(worker, [self.endless()])) as outputs:
                async for _ in outputs:
                    began.set()
                    if waits == "in its own work":  # the cancellation can strike there, too
                        await asyncio.sleep(0)

        reader = asyncio.create_task(read())
        first = asyncio.create_task(began.wait())
        await asyncio.wait({reader, first}, return_when=asyncio.FIRST_COMPLETED)
        assert not reader.done(), "the answer ended before it could be cancelled"
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader
        assert reader.cancelled(), "the worker swallowed the cancellation"
        await self._assert_idle_and_usable(worker)

    async def test_an_iterator_that_was_never_read_can_be_closed(self, worker: GenerationWorker) -> None:
        await start(worker, [self.generation()]).aclose()
        await collect(worker, [self.generation()])

    async def test_refused_request_is_a_final_error(self, worker: GenerationWorker) -> None:
        if (generation := self.refused()) is None:
            pytest.skip("the back end refuses nothing")
        with pytest.raises(WorkerError) as caught:
            _ = (await collect(worker, [generation]))[0].completed
        assert not caught.value.retryable
        await collect(worker, [self.generation()])

    async def test_back_end_that_is_away_is_a_retryable_error(
        self, unreachable_worker: GenerationWorker | None
    ) -> None:
        if unreachable_worker is None:
            pytest.skip("the back end cannot be away")
        with pytest.raises(WorkerUnavailable):
            _ = (await collect(unreachable_worker, [self.generation()]))[0].completed
        await unreachable_worker.aclose()

    @pytest.mark.parametrize("stream", [True, False])
    async def test_back_end_that_never_answers_is_a_timeout(
        self, silent_worker: GenerationWorker | None, stream: bool
    ) -> None:
        if silent_worker is None:
            pytest.skip("the back end cannot be silent")
        call = asyncio.ensure_future(collect(silent_worker, [self.generation(stream=stream)]))
        done, _ = await asyncio.wait([call], timeout=self.stop_within_s)
        call.cancel()
        assert done, "the worker does not keep timeout_s"
        with pytest.raises(WorkerTimeout):
            _ = call.result()[0].completed
        await silent_worker.aclose()

    async def test_worker_has_the_port(self, worker: GenerationWorker) -> None:
        assert isinstance(worker, GenerationWorker)
        assert worker.capabilities == worker.capabilities

    async def _assert_idle_and_usable(self, worker: GenerationWorker) -> None:
        async with asyncio.timeout(self.stop_within_s):
            while await self.generating(worker):  # noqa: ASYNC110  a back end has no event to wait for
                await asyncio.sleep(0.02)
        await collect(worker, [self.generation()])


__all__ = ["Answer", "GenerationContract", "ModelWorkerContract", "collect", "start"]
