"""Several choices, and what an engine says beside the text, on their way through the stages to the result."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from scheduler.model import JobResult
from scheduler.settings import PostSettings
from scheduler.stages.base import PromptContext
from scheduler.stages.post import PostStage
from scheduler.stages.stream import build_result
from workers.base import ChoiceEnd, Completed, Piece, TokenUsage
from workers.errors import WorkerProtocolError

THOUGHT = {"type": "thinking", "thinking": "mail a@example.org", "signature": "s"}


def logprobs(token: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.5}], "refusal": None}


class Answer:
    """An answer on its way: what streams is in `streamed`."""

    def __init__(self, post: PostSettings | None = None, **params: Any) -> None:
        self.streamed: list[Piece] = []
        self.post = PostStage(post or PostSettings(trim=False))
        self.context = PromptContext(
            job_id="job",
            attempt=1,
            route="chat",
            tenant="default",
            priority=5,
            prompt="why?",
            messages=None,
            params=params,
            request={},
            sink=self.streamed.append,
            openers=(self.post.open,),
        )
        self.post.open(self.context)

    async def end(self, *pieces: Piece, completed: Completed | None = None) -> JobResult:
        for piece in pieces:
            self.context.deliver(piece)
        self.context.completed = completed or Completed(0, "stop")
        await self.post.run(self.context)
        made = build_result(self.context, queue_ms=1, claimed_at=time.monotonic())
        self.stored = orjson.loads(made)
        return JobResult.model_validate_json(made, strict=True)

    def streamed_text(self, choice: int = 0) -> str:
        return "".join(piece.text for piece in self.streamed if piece.choice == choice)


async def test_each_choice_is_redacted_stopped_and_trimmed_by_itself() -> None:
    answer = Answer(PostSettings(trim=True, redact=["email"]), n=3, stop=["END"])
    result = await answer.end(
        Piece(0, "  ask a@exam"),
        Piece(0, " b@example.", choice=1),
        Piece(0, "plain EN", choice=2),
        Piece(0, "ple.org "),
        Piece(0, "org END more", choice=1),
        Piece(0, "D", choice=2),
        Piece(0, "late", choice=2),
        completed=Completed(0, "length", choices=(ChoiceEnd(0, "length"), ChoiceEnd(1, "length", "max"))),
    )
    assert [choice.text for choice in result.choices] == ["ask [email]", "[email]", "plain"]
    assert [answer.streamed_text(index) for index in range(3)] == ["ask [email]", "[email]", "plain"]
    assert [choice.finish_reason for choice in result.choices] == ["length", "stop", "stop"]
    assert [choice.raw_finish_reason for choice in result.choices] == ["", "max", ""]
    assert (result.text, result.finish_reason) == ("ask [email]", "length")
    assert not answer.context.all_stopped


async def test_only_when_all_choices_are_stopped_the_answer_is() -> None:
    answer = Answer(n=2, stop="!")
    answer.context.deliver(Piece(0, "a!"))
    assert not answer.context.all_stopped, "the second may yet come"
    answer.context.deliver(Piece(0, "b!", choice=1))
    assert answer.context.all_stopped


async def test_a_single_choice_is_not_stored_twice_and_can_be_read_as_one() -> None:
    answer = Answer()
    result = await answer.end(Piece(0, "hi", extra={"logprobs": logprobs("hi")}))
    assert "choices" not in answer.stored
    (choice,) = result.choices
    assert (choice.index, choice.text, choice.message) == (0, "hi", {"role": "assistant", "content": "hi"})
    assert choice.logprobs == result.logprobs == logprobs("hi")


async def test_log_probabilities_are_put_together_choice_by_choice() -> None:
    result = await Answer(n=2).end(
        *(
            Piece(0, token, choice=at % 2, extra={"logprobs": logprobs(token)})
            for at, token in enumerate("abcd")
        )
    )
    told = [[one["token"] for one in (choice.logprobs or {})["content"]] for choice in result.choices]
    assert told == [["a", "c"], ["b", "d"]]


async def test_a_choice_beyond_reason_is_the_workers_mistake() -> None:
    context = Answer(n=2).context
    for index in (-1, 128, 2**40):
        with pytest.raises(WorkerProtocolError, match=f"choice {index}"):
            context.deliver(Piece(0, "x", choice=index))
    assert context.choices == {}


async def test_the_message_goes_back_as_it_came() -> None:
    annotation = {"type": "url_citation", "url_citation": {"url": "https://example.org"}}
    result = await Answer().end(
        Piece(0, reasoning="mail"),
        Piece(0, extra={"thinking_blocks": [THOUGHT]}),
        Piece(0, extra={"thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]}),
        Piece(0, "text", extra={"annotations": [annotation], "role": "king", "content": "other"}),
        Piece(0, extra={"audio": {"id": "a", "transcript": "he", "data": "AA", "expires_at": 5}}),
        Piece(0, extra={"audio": {"id": "a", "transcript": "llo", "data": "BB"}}),
        Piece(
            0, tool_calls=({"index": 0, "id": "c", "type": "custom", "custom": {"name": "f", "input": "x"}},)
        ),
        Piece(0, tool_calls=({"index": 0, "custom": {"input": "y"}, "extra_content": {"g": {"sig": "z"}}},)),
    )
    assert result.message == {
        "role": "assistant",
        "content": "text",
        "tool_calls": [
            {
                "id": "c",
                "type": "custom",
                "custom": {"name": "f", "input": "xy"},
                "extra_content": {"g": {"sig": "z"}},
            }
        ],
        "thinking_blocks": [THOUGHT, {"type": "redacted_thinking", "data": "x"}],
        "annotations": [annotation],
        "audio": {"id": "a", "transcript": "hello", "data": "AABB", "expires_at": 5},
    }


async def test_a_refusal_is_no_content_and_is_redacted_like_text() -> None:
    answer = Answer(PostSettings(redact=["email"]))
    result = await answer.end(
        Piece(0, "no, a@exam", extra={"refusal": "no, a@exam"}),
        Piece(0, "ple.org", extra={"refusal": "ple.org"}),
    )
    assert result.text == "no, [email]"
    assert result.message == {"role": "assistant", "content": None, "refusal": "no, [email]"}
    assert "".join((piece.extra or {})["refusal"] for piece in answer.streamed) == "no, [email]"


async def test_what_repeats_the_answer_does_not_get_past_redaction() -> None:
    answer = Answer(PostSettings(redact=["email"]), n=2)
    extra = {
        "logprobs": logprobs("a@example.org"),
        "thinking_blocks": [THOUGHT],
        "content_blocks": [THOUGHT],
        "reasoning_details": [{"text": "a@example.org"}],
        "audio": {"id": "audio_1", "transcript": "write to a@example.org"},
        "annotations": [{"title": "a@example.org", "url": "https://example.org"}],
    }
    end = ChoiceEnd(1, "stop", extra={"token_ids": [5], "note": "a@example.org"})
    completed = Completed(
        0, "stop", extra={"id": "x", "token_ids": [5], "note": ["a@example.org"]}, choices=(end,)
    )
    result = await answer.end(
        Piece(0, "a", extra=extra), Piece(0, "b", choice=1, extra=extra), completed=completed
    )
    assert "a@example.org" not in orjson.dumps(answer.stored).decode()
    assert "a@example.org" not in str(answer.streamed)
    assert result.message["audio"] == {"id": "audio_1", "transcript": "write to [email]"}
    assert set(result.choices[1].message) == {"role", "content", "audio", "annotations"}
    assert result.extra == {"id": "x", "note": ["[email]"]}
    assert result.choices[1].extra == {"note": "[email]"}


async def test_the_result_says_what_the_engine_said_at_the_end() -> None:
    usage = TokenUsage(3, 2, cache_write_tokens=1, cost=0.5, extra={"service_tier": "flex"})
    completed = Completed(0, "stop", usage, "m-1", "end_turn", {"id": "msg_1", "rate_limits": {"x": "5"}})
    result = await Answer().end(Piece(0, "hi"), completed=completed)
    assert (result.raw_finish_reason, result.extra) == (
        "end_turn",
        {"id": "msg_1", "rate_limits": {"x": "5"}},
    )
    assert (result.usage.cache_write_tokens, result.usage.cost) == (1, 0.5)
    assert result.usage.extra == {"service_tier": "flex"}
