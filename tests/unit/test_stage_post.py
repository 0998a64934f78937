from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.settings import PostSettings
from scheduler.stages.base import AnswerFilter, PromptContext
from scheduler.stages.post import PostStage, StopFilter, TrimFilter
from workers.base import Completed, Piece, TokenUsage


def make_context(params: Mapping[str, Any] | None = None, **request: Any) -> PromptContext:
    return PromptContext(
        job_id="j1",
        attempt=1,
        route="chat",
        tenant="default",
        priority=5,
        prompt="Hi",
        messages=None,
        params=params or {},
        request=request,
    )


async def answered(
    stage: PostStage, context: PromptContext, *deltas: str, finish_reason: str = "length"
) -> str:
    stage.open(context)
    for delta in deltas:
        context.deliver(Piece(member=0, text=delta))
    context.completed = Completed(member=0, finish_reason=finish_reason)
    await stage.run(context)
    return "".join(context.texts)


def streamed(answer_filter: AnswerFilter, deltas: list[str]) -> str:
    return "".join(map(answer_filter.feed, deltas)) + answer_filter.flush()


def cut(text: str, seed: int) -> list[str]:
    choose = random.Random(seed)
    cuts = sorted(choose.randint(0, len(text)) for _ in range(choose.randint(0, len(text))))
    return [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True) if begin < end]


async def test_white_space_at_both_ends_is_dropped_and_within_is_kept() -> None:
    context = make_context()
    assert await answered(
        PostStage(PostSettings(trim=True)), context, " \n", " Hello", " ", "\n", "world", "  ", "\n"
    ) == ("Hello \nworld")


async def test_without_settings_answers_pass_as_they_are() -> None:
    context = make_context()
    assert await answered(PostStage(PostSettings()), context, " a ", "\n") == " a \n"
    assert context.filters == []


@given(text=st.text(alphabet="ab \n\t\u00a0"), seed=st.integers(0, 2**32))
def test_trimming_a_stream_equals_trimming_the_whole(text: str, seed: int) -> None:
    assert streamed(TrimFilter(), cut(text, seed)) == text.strip()


async def test_the_answer_ends_before_a_stop_string_that_the_engine_let_through() -> None:
    context = make_context({"stop": ["###", "END"]})
    assert await answered(PostStage(PostSettings()), context, "one #", "#", "# two") == "one "
    assert context.stopped
    assert context.completed == Completed(member=0, finish_reason="stop")


async def test_nothing_is_given_out_after_a_stop_string() -> None:
    context = make_context({"stop": "END"})
    assert await answered(PostStage(PostSettings()), context, "aEN", "Db", "c END d") == "a"


async def test_the_beginning_of_a_stop_string_is_given_out_when_nothing_follows() -> None:
    context = make_context({"stop": "END"})
    assert await answered(PostStage(PostSettings()), context, "the EN") == "the EN"
    assert not context.stopped
    assert context.completed is not None
    assert context.completed.finish_reason == "length"


async def test_a_stop_before_the_engine_says_anything_of_its_own_completes_the_answer() -> None:
    stage, context = PostStage(PostSettings()), make_context({"stop": "END"})
    stage.open(context)
    context.deliver(Piece(member=0, text="aEND"))
    await stage.run(context)
    assert context.completed == Completed(member=0, finish_reason="stop")


@pytest.mark.parametrize(
    "option",
    [
        {"include_stop_str_in_output": True},
        {"no_stop_trim": True},
        {"min_tokens": 5},
        {"min_new_tokens": 5},
        {"echo": True},
        {"min_length": 5},
        {"echo_last": True},
        {"return_full_text": True},
    ],
    ids=str,
)
async def test_a_stop_string_that_the_engine_was_told_to_keep_is_left_in(option: dict[str, Any]) -> None:
    context = make_context({"stop": "END"}, extra_body=option)
    assert await answered(PostStage(PostSettings()), context, "a END b") == "a END b"
    assert not context.stopped
    context = make_context({"stop": "END", **option})
    assert await answered(PostStage(PostSettings()), context, "a END b") == "a END b"


@pytest.mark.parametrize("option", [{"min_tokens": 0}, {"echo": False}, {"n_keep": 3}], ids=str)
async def test_an_option_that_keeps_nothing_lets_stop_strings_end_the_answer(option: dict[str, Any]) -> None:
    context = make_context({"stop": "END"}, extra_body=option)
    assert await answered(PostStage(PostSettings()), context, "a END b") == "a "


async def test_the_usage_of_an_answer_that_was_stopped_is_kept() -> None:
    stage, context = PostStage(PostSettings()), make_context({"stop": "END"})
    stage.open(context)
    context.deliver(Piece(member=0, text="a END b"))
    context.completed = Completed(0, "length", TokenUsage(3, 9), "served")
    await stage.run(context)
    assert context.completed == Completed(0, "stop", TokenUsage(3, 9), "served")


def cut_at_stop(text: str, stops: list[str]) -> str:
    """Read as an engine does, one character after the other, up to the first stop string that is complete."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)]
    return text


@settings(max_examples=300)
@given(
    text=st.text(alphabet="ab.", max_size=30),
    stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_stop_strings_cut_a_stream_where_they_cut_the_whole(text: str, stops: list[str], seed: int) -> None:
    assert streamed(StopFilter(stops, make_context()), cut(text, seed)) == cut_at_stop(text, stops)


async def test_text_and_reasoning_are_redacted_and_tool_calls_are_not() -> None:
    stage, context = PostStage(PostSettings(redact=["email"])), make_context()
    seen: list[Piece] = []
    context.sink = seen.append
    call = {"index": 0, "function": {"name": "mail", "arguments": '{"to": "joe@x.org"}'}}
    stage.open(context)
    context.deliver(Piece(member=0, reasoning="joe@x."))
    context.deliver(Piece(member=0, reasoning="org"))
    context.deliver(Piece(member=0, text="Ask joe@x"))
    context.deliver(Piece(member=0, text=".org", tool_calls=(call,)))
    await stage.run(context)
    assert "".join(context.texts) == "Ask [email]" == "".join(piece.text for piece in seen)
    assert "".join(context.reasonings) == "[email]" == "".join(piece.reasoning for piece in seen)
    assert context.tool_calls == [call]


async def test_the_stop_string_is_found_before_anything_is_redacted() -> None:
    context = make_context({"stop": "@x.org"})
    assert await answered(PostStage(PostSettings(redact=["email"])), context, "joe@x.", "org") == "joe"


async def test_filters_belong_to_one_job() -> None:
    stage, first, second = PostStage(PostSettings()), make_context({"stop": "X"}), make_context({"stop": "Y"})
    assert await answered(stage, first, "aXb") == "a"
    assert await answered(stage, second, "aXb") == "aXb"


@pytest.mark.parametrize("deltas", [[], [" "]])
async def test_an_empty_answer_stays_empty(deltas: list[str]) -> None:
    assert await answered(PostStage(PostSettings(trim=True, redact=["card"])), make_context(), *deltas) == ""
