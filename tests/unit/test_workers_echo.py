"""What the echo worker does beyond the port."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import (
    Completed,
    EndpointConfig,
    Generation,
    MemberFailed,
    Piece,
    RequestRejected,
    TokenUsage,
    WorkerConfigError,
    WorkerTimeout,
    WorkerUnavailable,
)
from workers.contract import collect
from workers.echo import EchoWorker


def echo(*, timeout_s: float = 120.0, first_token_timeout_s: float = 30.0, **options: Any) -> EchoWorker:
    return EchoWorker(
        EndpointConfig(
            "echo", options=options, timeout_s=timeout_s, first_token_timeout_s=first_token_timeout_s
        )
    )


def prompt(text: str, **params: Any) -> Generation:
    return Generation("echo", prompt=text, params=params)


def chat(*messages: dict[str, Any]) -> Generation:
    return Generation("echo", messages=messages)


async def outputs_of(worker: EchoWorker, *batch: Generation) -> list[Any]:
    return [output async for output in worker.generate(batch)]


async def test_members_speak_in_turns() -> None:
    assert await outputs_of(echo(), prompt("a b"), prompt("c")) == [
        Piece(0, "a"),
        Piece(1, "c"),
        Completed(1, "stop", TokenUsage(1, 1), "echo"),
        Piece(0, " b"),
        Completed(0, "stop", TokenUsage(2, 2), "echo"),
    ]


@given(st.text())
async def test_words_join_to_the_very_prompt(text: str) -> None:
    (answer,) = await collect(echo(), [prompt(text)])
    assert answer.text == text
    assert all(piece.text.strip() for piece in answer.pieces) or not text.strip()


async def test_max_tokens_cuts_the_answer() -> None:
    (answer,) = await collect(echo(), [prompt("a b c d", max_tokens=2)])
    assert answer.text == "a b"
    assert answer.completed == Completed(0, "length", TokenUsage(4, 2), "echo")


async def test_max_tokens_that_just_suffices_cuts_nothing() -> None:
    (answer,) = await collect(echo(), [prompt("a b", max_tokens=2)])
    assert answer.completed.finish_reason == "stop"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "hello you"}], "hello you"),
        ([{"role": "user", "content": "first"}, {"role": "assistant", "content": "x"}], "first"),
        ([{"role": "user", "content": "first"}, {"role": "user", "content": "last"}], "last"),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a "},
                        {"type": "image_url"},
                        {"type": "text", "text": "b"},
                    ],
                }
            ],
            "a b",
        ),
        ([{"role": "system", "content": "x"}], ""),
        ([{"role": "user", "content": None}], ""),
    ],
)
async def test_chat_repeats_the_text_of_the_last_user_message(
    messages: list[dict[str, Any]], said: str
) -> None:
    (answer,) = await collect(echo(), [chat(*messages)])
    assert answer.text == said


async def test_failure_rate_fails_members_by_chance_and_retryably() -> None:
    chances = iter([0.1, 0.9])
    worker = EchoWorker(EndpointConfig("echo", options={"failure_rate": 0.5}), chance=lambda: next(chances))
    first, second = await collect(worker, [prompt("a"), prompt("b")])
    assert isinstance(first.end, MemberFailed)
    assert type(first.end.error) is WorkerUnavailable
    assert second.text == "b"


async def test_fail_text_refuses_only_the_prompt_that_has_it() -> None:
    first, second = await collect(echo(fail_text="bad"), [prompt("a bad one"), prompt("good")])
    assert isinstance(first.end, MemberFailed)
    assert type(first.end.error) is RequestRejected
    assert second.text == "good"


async def test_first_word_that_is_too_late_is_a_timeout() -> None:
    with pytest.raises(WorkerTimeout, match=r"first_token_timeout_s = 0\.01"):
        await outputs_of(echo(first_delay_s=60, first_token_timeout_s=0.01), prompt("a"))


async def test_whole_answer_that_takes_too_long_is_a_timeout() -> None:
    generation = Generation("echo", prompt="a " * 1000, stream=False)
    with pytest.raises(WorkerTimeout, match=r" timeout_s = 0\.02"):
        await outputs_of(echo(delay_s=0.005, timeout_s=0.02), generation)


async def test_answer_that_flows_may_take_longer_than_any_of_its_waits() -> None:
    worker = EchoWorker(EndpointConfig("echo", options={"delay_s": 0.002}, timeout_s=0.5, idle_timeout_s=0.5))
    outputs = await outputs_of(worker, Generation("echo", prompt="a " * 300))
    assert isinstance(outputs[-1], Completed)


@pytest.mark.parametrize("name", ["timeout_s", "idle_timeout_s"])
async def test_word_that_is_too_late_is_a_timeout(name: str) -> None:
    worker = EchoWorker(EndpointConfig("echo", options={"delay_s": 60}, **{name: 0.02}))  # type: ignore[arg-type]  # one of two numbers
    with pytest.raises(WorkerTimeout, match=rf" {name} = 0\.02"):
        await outputs_of(worker, Generation("echo", prompt="a b"))


@pytest.mark.parametrize("stream", [True, False])
async def test_whole_call_has_a_limit_if_it_is_asked_for(stream: bool) -> None:
    worker = EchoWorker(EndpointConfig("echo", options={"delay_s": 0.005}, total_timeout_s=0.02))
    with pytest.raises(WorkerTimeout, match=r" total_timeout_s = 0\.02"):
        await outputs_of(worker, Generation("echo", prompt="a " * 1000, stream=stream))


async def test_capacity_and_model_are_as_configured() -> None:
    worker = EchoWorker(EndpointConfig("echo", model="parrot", options={"capacity": 3}))
    assert await worker.capacity() == 3
    assert (await worker.health()).models == ("parrot",)
    assert await echo().capacity() is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dealy_s": 1}, r"options\.dealy_s: .* did you mean delay_s\?"),
        ({"zzz": 1}, r"options\.zzz: .* it takes capacity, delay_s"),
        ({"delay_s": "1"}, r"options\.delay_s: is str; give a number"),
        ({"delay_s": True}, r"options\.delay_s: is bool"),
        ({"delay_s": -1}, r"options\.delay_s: is -1; give a number of 0 or more"),
        ({"delay_s": float("inf")}, r"options\.delay_s: is inf"),
        ({"failure_rate": 2}, r"options\.failure_rate: is 2; give a number from 0 to 1"),
        ({"capacity": 0}, r"options\.capacity: .* whole number of 1 or more"),
        ({"capacity": 1.5}, r"options\.capacity"),
        ({"fail_text": ""}, r"options\.fail_text"),
    ],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkerConfigError, match=message):
        echo(**options)
