"""What a request may hold, and that each mistake gets one clear message that names the field."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from scheduler.errors import InvalidRequest
from scheduler.model import (
    MAX_DEDUP_KEY_BYTES,
    MAX_PROMPT_CHARS,
    DedupMode,
    JobInfo,
    JobResult,
    JobState,
    Priority,
    PromptRequest,
)
from scheduler.payload import payload_of

NAN, INF = float("nan"), float("inf")
USER = {"role": "user", "content": "Hello"}


def request(**fields: Any) -> PromptRequest:
    return PromptRequest.parse(**({} if "messages" in fields else {"prompt": "Hello"}) | fields)


def test_defaults_are_those_that_are_promised() -> None:
    made = request()
    assert (made.model, made.priority, made.tenant) == (None, Priority.NORMAL, "default")
    assert (made.dedup, made.dedup_key, made.deadline_s, made.stream) == (
        DedupMode.UNTIL_FINISHED,
        None,
        None,
        True,
    )


@pytest.mark.parametrize("priority", [*range(10), *Priority])
def test_every_level_and_every_name_is_a_priority(priority: int) -> None:
    assert request(priority=priority).priority == int(priority)
    assert type(request(priority=priority).priority) is int


def test_durations_are_seconds_or_timedeltas() -> None:
    assert request(deadline_s=timedelta(minutes=2)).deadline_s == 120.0
    assert request(delay_s=3).delay_s == 3.0


@pytest.mark.parametrize(
    "content",
    [
        "Hello",
        None,
        [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
    ],
    ids=["text", "none", "parts"],
)
def test_messages_have_the_shape_of_openai(content: Any) -> None:
    made = request(messages=[{"role": "user", "content": content}])
    assert made.messages
    assert made.messages[0].content == content


@pytest.mark.parametrize("stop", ["\n", ["a", "b"], []])
def test_stop_is_a_string_or_several(stop: Any) -> None:
    assert request(params={"stop": stop}).params.stop == stop


def test_request_survives_json() -> None:
    made = request(
        priority=Priority.HIGH, deadline_s=1.5, params={"temperature": 0}, metadata={"a": [1, None]}
    )
    assert PromptRequest.model_validate_json(made.model_dump_json()) == made


def test_request_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        request().priority = 9  # type: ignore[misc]  # frozen: that is what is tested


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": None}, "prompt", "either prompt or messages"),
    ({"prompt": "x", "messages": [USER]}, "prompt", "not both"),
    ({"prompt": ""}, "prompt", "is empty"),
    ({"prompt": " \n"}, "prompt", "is empty"),
    ({"prompt": b"bytes"}, "prompt", "give text"),
    ({"prompt": "a\ud800"}, "prompt", "lone surrogate at character 1"),
    ({"prompt": "x" * (MAX_PROMPT_CHARS + 1)}, "prompt", "1,000,001 characters"),
    ({"messages": []}, "messages", "is empty"),
    ({"messages": "Hello"}, "messages", "give a list"),
    ({"messages": [USER, {"role": "king", "content": "x"}]}, "messages.1.role", "'user'"),
    ({"messages": [{"content": "x"}]}, "messages.0.role", "is missing"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "give text or a list"),
    ({"messages": [{"role": "user", "text": "x"}]}, "messages.0", "content: is missing, and text is no such"),
    ({"priority": 10}, "priority", "give 9 or less"),
    ({"priority": -1}, "priority", "give 0 or more"),
    ({"priority": "high"}, "priority", "give a whole number"),
    ({"priority": 5.0}, "priority", "give a whole number"),
    ({"priority": True}, "priority", "give a whole number"),
    ({"model": ""}, "model", "begin with a letter"),
    ({"model": "two words"}, "model", "begin with a letter"),
    ({"model": "line\n"}, "model", "begin with a letter"),
    ({"tenant": "{tag}"}, "tenant", "begin with a letter"),
    ({"session": "x" * 257}, "session", "256"),
    ({"deadline_s": 0}, "deadline_s", "give more than 0"),
    ({"deadline_s": "60"}, "deadline_s", "number"),
    ({"deadline_s": True}, "deadline_s", "number"),
    ({"deadline_s": NAN}, "deadline_s", "give "),
    ({"deadline_s": INF}, "deadline_s", "give "),
    ({"deadline_s": 1e12}, "deadline_s", "give 315,360,000 or less"),
    ({"deadline_s": timedelta(seconds=-1)}, "deadline_s", "give more than 0"),
    ({"delay_s": -0.1}, "delay_s", "give 0 or more"),
    ({"max_attempts": 0}, "max_attempts", "give 1 or more"),
    ({"result_ttl_s": 0.5}, "result_ttl_s", "give 1 or more"),
    ({"dedup": "sometimes", "dedup_key": "k"}, "dedup", "'window'"),
    ({"dedup": "window"}, "dedup", "needs a dedup_key"),
    ({"dedup": DedupMode.REPLACE}, "dedup", "needs a dedup_key"),
    ({"dedup_key": ""}, "dedup_key", "0 bytes"),
    ({"dedup_key": "ä" * MAX_DEDUP_KEY_BYTES}, "dedup_key", "2,048 bytes"),
    ({"job_id": ""}, "job_id", "begin with a letter"),
    ({"job_id": "a b"}, "job_id", "begin with a letter"),
    ({"stream": 1}, "stream", "give true or false"),
    ({"metadata": [1]}, "metadata", "give a mapping"),
    ({"tools": [5]}, "tools.0", "give a mapping"),
    ({"tool_choice": 5}, "tool_choice", "give text or a mapping"),
    ({"params": 5}, "params", "give a mapping"),
    ({"params": {"temperature": "0.5"}}, "params.temperature", "number"),
    ({"params": {"temperature": True}}, "params.temperature", "number"),
    ({"params": {"temperature": NAN}}, "params.temperature", "finite"),
    ({"params": {"top_p": 0}}, "params.top_p", "give more than 0"),
    ({"params": {"max_tokens": 0}}, "params.max_tokens", "give 1 or more"),
    ({"params": {"max_tokens": 1.0}}, "params.max_tokens", "give a whole number"),
    ({"params": {"seed": 2**63}}, "params.seed", "give less than"),
    ({"params": {"stop": ""}}, "params.stop", "none of them empty"),
    ({"params": {"stop": ["x"] * 17}}, "params.stop", "at most 16"),
    ({"params": {"stop": [1]}}, "params.stop.0", "give text"),
    ({"params": {"logit_bias": {"50256": "x"}}}, "params.logit_bias.50256", "number"),
    ({"params": {"beam": 2}}, "params.beam", "no such field"),
    ({"params": {"functions": []}}, "params.functions", "give tools"),
    ({"prompt": ["a", "b"]}, "prompt", "call enqueue_many"),
    ({"prompt": [[1], [2]]}, "prompt", "call enqueue_many"),
    ({"prompt": []}, "prompt", "token ids"),
    ({"prompt": [1, -1]}, "prompt.1", "0"),
    ({"params": {"n": 0}}, "params.n", "1"),
    ({"params": {"logprobs": "yes"}}, "params.logprobs", "true or false"),
    (
        {"params": {"max_tokens": 1, "max_completion_tokens": 1}},
        "params.max_completion_tokens",
        "another name",
    ),
    ({"params": {"seed": 1}, "extra_body": {"seed": 2}}, "extra_body.seed", "in params too"),
    ({"temperature": 0.5}, "temperature", "no such field; params has it: params={'temperature': …}"),
    ({"priorty": 5}, "priorty", "no such field; did you mean priority?"),
    ({"tenant": "a b"}, "tenant", "begin with a letter or a digit"),
]


def test_fields_of_a_message_that_have_no_name_here_are_kept_in_their_order() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    said = {
        "role": "assistant",
        "content": None,
        "thinking_blocks": [thought],
        "refusal": "no",
        "audio": {"id": "a"},
    }
    request = PromptRequest.parse(messages=[USER, said])
    assert payload_of(request)["messages"] == [
        USER,
        {name: value for name, value in said.items() if value is not None},
    ]


@pytest.mark.parametrize(("fields", "field", "words"), WRONG, ids=[f"{f}-{w}" for _, f, w in WRONG])
def test_mistake_is_told_in_one_line_that_names_the_field(
    fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    message = str(caught.value)
    assert caught.value.field is not None
    # a list of content parts or of stops has its place in the path
    assert caught.value.field == field or caught.value.field.startswith(f"{field}.")
    assert message.startswith(f"{field}")
    assert words in message
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize(
    "fields", [{"prompt": 5, "session": "s3cret" * 50}, {"params": {"stop": {"s3cret": 1}}}]
)
def test_message_never_repeats_what_was_given(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request(**fields)
    assert "s3cret" not in str(caught.value)


def test_ended_states_are_the_last_five() -> None:
    assert [state for state in JobState if state.ended] == list(JobState)[-5:]


def test_result_of_a_newer_worker_can_be_read() -> None:
    assert JobResult.model_validate_json('{"text": "x", "mood": "good"}').text == "x"


def test_job_info_takes_times_by_the_millisecond() -> None:
    info = JobInfo(id="a", state=JobState.WAITING, model="echo", priority=5, enqueued_at_ms=1)
    assert (info.tickets, info.position, info.due_at_ms) == (1, None, None)
