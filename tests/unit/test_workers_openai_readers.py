"""Any JSON, read as an answer: outputs of their types, or an error that is the server's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from workers import Completed, MemberFailed, Output, Piece
from workers.calls import MALFORMED, AnswerReader, ReportedError
from workers.counts import MAX_TOKENS
from workers.finish_reasons import UNKNOWN
from workers.openai_chat_answer import ChatReader
from workers.openai_completion_answer import CompletionReader

KEYS = st.sampled_from(
    [
        "choices",
        "delta",
        "message",
        "content",
        "text",
        "index",
        "finish_reason",
        "usage",
        "model",
        "error",
        "tool_calls",
        "function_call",
        "function",
        "name",
        "arguments",
        "id",
        "type",
        "refusal",
        "reasoning",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "x_groq",
        "code",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2**63)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "a", "stop", "length", "error", "{}", '{"x":1}', "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


def field(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=len(names))


CALLS = st.lists(field("index", "id", "type", "function", "custom"), max_size=3)
DELTAS = st.fixed_dictionaries(
    {}, optional={"content": VALUES, "tool_calls": CALLS | VALUES, "refusal": VALUES}
)
CHOICES = st.fixed_dictionaries(
    {}, optional={"delta": DELTAS | VALUES, "index": VALUES, "text": VALUES, "finish_reason": VALUES}
)
EVENTS = st.lists(
    st.fixed_dictionaries({}, optional={"choices": st.lists(CHOICES, max_size=2) | VALUES, "usage": VALUES})
    | st.dictionaries(KEYS, VALUES, max_size=4),
    max_size=6,
)


def outputs_of(reader: AnswerReader, events: list[dict[str, Any]]) -> list[Output]:
    outputs: list[Output] = []
    with suppress(ReportedError, *MALFORMED):
        for event in events:
            outputs += reader.read(event)
        outputs += reader.finish()
    return outputs


def check(output: Output) -> None:
    if isinstance(output, Piece):
        assert output.text or output.reasoning or output.tool_calls or output.extra
        assert isinstance(output.text, str)
        assert isinstance(output.reasoning, str)
        orjson.dumps(output.tool_calls)
        for call in output.tool_calls:
            assert type(call["index"]) is int
            assert isinstance(call.get("id", ""), str)
            assert all(isinstance(part, str) for part in call.get("function", {}).values())
    elif isinstance(output, Completed):
        assert output.finish_reason in {"stop", "length", "tool_calls", "content_filter", UNKNOWN}
        assert output.model is None or isinstance(output.model, str)
        assert all(count is None or 0 <= count <= MAX_TOKENS for count in output.usage[:7])


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_any_events_make_a_chat_or_are_malformed(events: list[dict[str, Any]]) -> None:
    outputs = outputs_of(ChatReader(), events)
    for output in outputs:
        check(output)
    assert sum(not isinstance(output, Piece) for output in outputs) <= 1


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_any_events_make_completions_or_are_malformed(events: list[dict[str, Any]]) -> None:
    for total in (1, 2):
        outputs = outputs_of(CompletionReader(total), events)
        for output in outputs:
            check(output)
        ended = [output.member for output in outputs if isinstance(output, Completed | MemberFailed)]
        assert len(ended) == len(set(ended))
