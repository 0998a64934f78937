"""Choices, errors and more fields, from the worker process to those who follow, join or ask later."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler import DedupMode, Delta, JobFailed
from tests.integration.engine_room import Room, puppet_of
from tests.patience import SOON_S
from workers.base import ChoiceEnd, Completed, Piece
from workers.errors import EngineError, RequestRejected

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


async def test_those_who_join_ask_later_or_read_again_get_all_choices(room: Room) -> None:
    engine = await room.engine()
    client = await room.client()
    same: dict[str, Any] = {"model": "echo", "dedup_key": "k", "dedup": DedupMode.WINDOW}
    first = await client.enqueue("hello", **same)
    call = await puppet_of(engine).next_call()
    joined = await client.enqueue("hello", **same)
    assert joined.id == first.id
    told = {"content": [{"token": "a", "logprob": -0.5}]}
    call.outputs.put_nowait(Piece(0, "a", extra={"logprobs": told}))
    call.outputs.put_nowait(Piece(0, "b", choice=1, extra={"note": "n", "images": [PICTURE]}))
    ends = (ChoiceEnd(0, "stop"), ChoiceEnd(1, "length", "max"))
    call.outputs.put_nowait(Completed(0, "stop", extra={"id": "r1"}, choices=ends))
    result = await first.result(timeout_s=SOON_S)
    assert await joined.result(timeout_s=SOON_S) == result
    late = await client.enqueue("hello", **same)
    reused = await late.result(timeout_s=SOON_S)
    for each in (result, reused):
        assert [choice.text for choice in each.choices] == ["a", "b"]
        assert each.choices[0].logprobs == each.logprobs == told
        assert each.choices[1].message == {
            "role": "assistant",
            "content": "b",
            "note": "n",
            "images": [PICTURE],
        }
        assert each.extra == {"id": "r1"}
    deltas = [event async for event in client.job(first.id).events() if isinstance(event, Delta)]
    assert [(delta.index, delta.text, delta.logprobs) for delta in deltas] == [(0, "a", told), (1, "b", None)]
    assert deltas[1].extra == {"note": "n", "images": [{"type": "image_url"}]}, (
        "the bytes are in the result alone"
    )


async def test_a_failed_job_has_the_engines_own_error(room: Room) -> None:
    engine = await room.engine()
    client = await room.client()
    job = await client.enqueue("hello", model="echo")
    call = await puppet_of(engine).next_call()
    said = EngineError(400, "invalid_request_error", "messages", "bad_value")
    call.fail(RequestRejected("no", engine_error=said))
    with pytest.raises(JobFailed) as failed:
        await job.result(timeout_s=SOON_S)
    error = failed.value
    assert (error.reason, error.status, error.type) == ("request_rejected", 400, "invalid_request_error")
    assert (error.param, error.engine_code) == ("messages", "bad_value")
    info = await job.info()
    assert info.error is not None
    assert (info.error.status, info.error.engine_code) == (400, "bad_value")
