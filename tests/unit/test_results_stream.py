"""The last stage, and the result that a job leaves behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from scheduler.events import Done, decode_event
from scheduler.model import JobResult, Source
from scheduler.results.encoding import EventEncoder
from scheduler.stages.base import PromptContext
from scheduler.stages.choices import merge_tool_calls
from scheduler.stages.completion import believed
from scheduler.stages.stream import StreamStage, build_result
from workers.base import ChoiceEnd, Completed, Piece, TokenUsage
from workers.counts import MAX_TOKENS
from workers.errors import WorkerProtocolError


def context_of(*pieces: Piece, completed: Completed | None = None) -> PromptContext:
    context = PromptContext(
        job_id="job",
        attempt=2,
        route="chat",
        tenant="default",
        priority=5,
        prompt="why?",
        messages=None,
        params={},
        request={},
    )
    for piece in pieces:
        context.deliver(piece)
    context.completed = completed
    return context


def result_of(context: PromptContext) -> JobResult:
    made = build_result(context, queue_ms=12, claimed_at=time.monotonic())
    return JobResult.model_validate_json(made, strict=True)


def fragment(index: int | None, name: str = "", arguments: str = "", **fields: Any) -> Mapping[str, Any]:
    return {"index": index, "function": {"name": name, "arguments": arguments}, **fields}


def test_result_has_all_that_the_attempt_produced() -> None:
    usage = TokenUsage(input_tokens=7, output_tokens=5, cached_tokens=3, reasoning_tokens=1)
    context = context_of(
        Piece(0, "Because ", "hm, "),
        Piece(0, "of light.", "sky"),
        completed=Completed(0, "length", usage, "tiny-1"),
    )
    context.endpoint = "chat/0"
    context.first_token_at = time.monotonic()
    context.stages_ms = {"inference": 1.5}
    context.passages = [Source(path="sky.md", score=1.5, text="Light scatters.")]
    result = result_of(context)
    assert result.text == "Because of light."
    assert result.message == {"role": "assistant", "content": "Because of light."}
    assert result.reasoning == "hm, sky"
    assert (result.finish_reason, result.model, result.endpoint) == ("length", "tiny-1", "chat/0")
    assert (result.attempts, result.reused, result.tool_calls) == (2, False, [])
    assert result.usage.model_dump(exclude_unset=True) == {
        "input_tokens": 7,
        "output_tokens": 5,
        "total_tokens": 12,
        "cached_tokens": 3,
        "reasoning_tokens": 1,
    }
    assert [source.path for source in result.sources] == ["sky.md"]
    assert result.timings.queue_ms == 12
    assert result.timings.first_token_ms is not None
    assert result.timings.stages_ms == {"inference": 1.5}
    assert result.timings.total_ms is not None
    assert result.timings.total_ms >= 12


def test_what_the_engine_did_not_say_stays_unknown() -> None:
    result = result_of(context_of(completed=Completed(0, "stop", TokenUsage(output_tokens=5))))
    assert result.usage.total_tokens is None
    assert result.model == "chat", "the route's name"
    assert result.timings.first_token_ms is None
    assert result.message == {"role": "assistant", "content": ""}


def test_tool_calls_come_out_whole_with_no_content() -> None:
    context = context_of(
        Piece(0, tool_calls=(fragment(0, "look_up", id="call_1", type="function"),)),
        Piece(0, tool_calls=(fragment(0, arguments='{"q":'),)),
        Piece(0, tool_calls=(fragment(0, arguments='"sky"}'),)),
        completed=Completed(0, "tool_calls"),
    )
    calls = [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "look_up", "arguments": '{"q":"sky"}'},
        }
    ]
    result = result_of(context)
    assert result.tool_calls == calls
    assert result.message == {"role": "assistant", "content": None, "tool_calls": calls}


def test_interleaved_tool_calls_are_told_apart_by_index() -> None:
    merged = merge_tool_calls(
        [fragment(1, "b"), fragment(0, "a"), fragment(1, arguments="2"), fragment(0, arguments="1")]
    )
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in merged] == [
        ("a", "1"),
        ("b", "2"),
    ]


def test_tool_calls_without_an_index_are_calls_of_their_own() -> None:
    merged = merge_tool_calls([fragment(None, "a"), {"function": {"name": "b"}}])
    assert [call["function"]["name"] for call in merged] == ["a", "b"]


def test_what_an_engine_adds_to_a_call_stays_with_it() -> None:
    signature = {"google": {"thought_signature": "s"}}
    (call,) = merge_tool_calls([{**fragment(0, "a"), "extra_content": signature}, fragment(0, arguments="1")])
    assert call["extra_content"] == signature


def test_custom_call_is_put_together() -> None:
    opening = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}}
    assert merge_tool_calls([opening, {"index": 0, "custom": {"input": "y"}}]) == [
        {"id": "c", "type": "custom", "custom": {"name": "f", "input": "xy"}}
    ]


def test_half_a_character_does_not_cost_the_answer() -> None:
    assert result_of(context_of(Piece(0, "ok \ud83d"), completed=Completed(0, "stop"))).text == "ok ?"


async def test_stage_refuses_an_attempt_without_an_answer() -> None:
    with pytest.raises(WorkerProtocolError, match="without an answer"):
        await StreamStage().run(context_of(Piece(0, "half")))
    await StreamStage().run(context_of(completed=Completed(0, "stop")))


@pytest.mark.parametrize(
    "completed",
    [
        Completed(0, "stop", TokenUsage(2**64, 1, -1, 10**30)),
        Completed(0, "stop", TokenUsage(2**63, 2**63)),
        Completed(0, "stop", TokenUsage(True, 1.5, "7", float("nan"))),  # type: ignore[arg-type]  # a lie
        Completed(0, "stop", None),  # type: ignore[arg-type]  # a mistake of a worker of somebody's own
        Completed(0, "stop", TokenUsage(), {"name": "m"}),  # type: ignore[arg-type]  # the same
        Completed(0, "stop", TokenUsage(), "half \ud800"),
        Completed(0, None),  # type: ignore[arg-type]  # the same
        Completed(0, ["stop"]),  # type: ignore[arg-type]  # the same
        Completed(0, "stop", TokenUsage(cost=float("inf"), extra=[1], cache_write_tokens=-1)),  # type: ignore[arg-type]  # the same
        Completed(0, "stop", TokenUsage(cost=True, input_audio_tokens=2.5)),  # type: ignore[arg-type]  # the same
        Completed(0, "stop", raw_finish_reason=5, extra="x", choices=(5,)),  # type: ignore[arg-type]  # the same
        Completed(0, "stop", choices=(ChoiceEnd("a", None, 5, 5),)),  # type: ignore[arg-type]  # the same
        Completed(0, "stop", extra={1: {"half \ud800": 2**70}}, raw_finish_reason="\udc00"),  # type: ignore[dict-item]  # the same
    ],
    ids=repr,
)
def test_whatever_a_worker_says_at_the_end_the_result_can_be_read_back(completed: Completed) -> None:
    call = {"index": 0, "id": 7, "extra": {1: float("inf"), "big": 2**70, "half": "\udc00"}}
    context = context_of(Piece(0, "text \ud800", "hm", (call,)), completed=completed)
    context.passages = [Source(path="a.md", score=float("nan"), text="t")]
    made = build_result(context, queue_ms=12, claimed_at=time.monotonic())
    done = decode_event(EventEncoder("job", 7, 1).done(2) + made + b"}")
    assert isinstance(done, Done)
    result = done.result
    assert result.text == "text ?"
    assert result.finish_reason in {"stop", "unknown"}
    assert result.model in {"chat", "half ?"}
    counts = result.usage.model_dump(exclude={"extra"}).values()
    assert all(count is None or 0 <= count <= 2 * MAX_TOKENS for count in counts)


def test_counts_that_can_be_right_stay() -> None:
    completed = Completed(0, "length", TokenUsage(0, MAX_TOKENS, None, 3), "m")
    assert believed(completed) is completed
