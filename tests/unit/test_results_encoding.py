from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.events import Delta, Done, Event, Expired, Failed, Retrying, Started, decode_event
from scheduler.model import JobError
from scheduler.results.encoding import EventEncoder, encode, encode_error

texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    job_id=texts,
    token=st.integers(1, 2**53),
    attempt=st.integers(1, 1000),
    seq=st.integers(1, 10**6),
    text=texts,
    reasoning=texts,
)
def test_events_come_back_as_they_went(
    *, job_id: str, token: int, attempt: int, seq: int, text: str, reasoning: str
) -> None:
    encode = EventEncoder(job_id, token, attempt)
    same: dict[str, Any] = {"id": f"{token}-{seq}", "job_id": job_id, "attempt": attempt}
    error = JobError(code="c", message=text)
    error_json = encode_error("c", text)
    calls = [{"index": 0, "function": {"arguments": text}}]
    assert decode_event(encode.started(seq, text)) == Started(**same, worker=text)
    assert decode_event(encode.delta(seq, text, reasoning, [])) == Delta(
        **same, text=text, reasoning=reasoning
    )
    assert decode_event(encode.delta(seq, "", "", calls)) == Delta(**same, tool_calls=calls)
    assert decode_event(encode.retrying(seq, error_json, 1500)) == Retrying(**same, error=error, delay_s=1.5)
    assert decode_event(encode.failed(seq) + error_json + b"}") == Failed(**same, error=error)
    assert decode_event(encode.expired(seq) + b"}") == Expired(**same)
    done = decode_event(encode.done(seq) + orjson.dumps({"text": text}) + b"}")
    assert isinstance(done, Done)
    assert done.result.text == text


def test_what_is_empty_is_left_out() -> None:
    assert orjson.loads(EventEncoder("j", 7, 1).delta(2, "hi", "", [])) == {
        "id": "7-2",
        "type": "delta",
        "job_id": "j",
        "attempt": 1,
        "text": "hi",
    }


def test_words_that_are_no_utf8_are_replaced() -> None:
    assert orjson.loads(encode_error("c", "bad \ud800")) == {"code": "c", "message": "bad ?"}


@pytest.mark.parametrize(
    "value",
    [2**64, -(2**70), 10**400, float("nan"), float("-inf"), {1: {2: "\udfff"}}, {"a": {b"b"}}, (1, {2})],
)
def test_whatever_is_encoded_can_be_decoded(value: object) -> None:
    orjson.loads(encode({"value": [value, "\ud800"]}))


def test_an_error_without_a_code_of_text_can_be_read() -> None:
    failed = decode_event(EventEncoder("j", 7, 1).failed(2) + encode_error(None, "words") + b"}")
    assert isinstance(failed, Failed)
    assert failed.error == JobError(code="unknown", message="words")


def test_documentation_shows_one_event_of_each_type() -> None:
    page = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
    examples = page.split("```json\n")[1].split("```")[0].splitlines()
    shown = {decode_event(line).type for line in examples}
    assert shown == {cls.type for cls in get_args(Event)}
