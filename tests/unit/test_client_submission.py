from __future__ import annotations

import math
import time
import uuid
from typing import Any

import orjson
import pytest

from scheduler import InvalidRequest, PromptRequest
from scheduler.client.ids import new_job_id
from scheduler.client.routes import KnownRoute
from scheduler.client.submission import new_job
from scheduler.model import MAX_REQUEST_BYTES
from scheduler.queue.records import NewJob


def job_of(
    *, route: str = "echo", revision: str = "r1", uses_metadata: bool = False, **fields: Any
) -> NewJob:
    request = PromptRequest.parse(**{"prompt": "x", **fields})
    return new_job(request, KnownRoute(route, revision, uses_metadata))


def test_ids_are_uuids_of_version_7_that_sort_by_time() -> None:
    first = new_job_id()
    time.sleep(0.002)
    second = new_job_id()
    assert uuid.UUID(first).version == 7
    assert uuid.UUID(first).variant == uuid.RFC_4122
    assert first < second
    assert abs((uuid.UUID(first).int >> 80) - time.time() * 1000) < 60_000


def test_ids_do_not_repeat() -> None:
    assert len({new_job_id() for _ in range(10_000)}) == 10_000


def test_the_payload_has_what_a_worker_needs_and_no_defaults() -> None:
    job = job_of(priority=7, tenant="t", params={"seed": 1}, metadata={"a": 1}, max_attempts=2)
    assert orjson.loads(job.payload) == {"prompt": "x", "params": {"seed": 1}, "metadata": {"a": 1}}
    assert (job.priority, job.tenant, job.max_attempts) == (7, "t", 2)


def test_durations_are_whole_milliseconds_and_never_round_down_to_none() -> None:
    job = job_of(deadline_s=0.0001, delay_s=0, result_ttl_s=1.5)
    assert (job.deadline_ms, job.delay_ms, job.result_ttl_ms) == (1, 0, 1500)


def test_a_parameter_that_no_endpoint_of_the_route_takes_is_refused_unless_it_asks_for_nothing() -> None:
    route = KnownRoute("claude", "r1", uses_metadata=False, lacks=frozenset({"n", "store"}))
    new_job(PromptRequest.parse(prompt="x", params={"n": 1, "store": False, "top_p": 0.5}), route)
    with pytest.raises(InvalidRequest, match=r"params\.n: no endpoint of route 'claude' has such") as refused:
        new_job(PromptRequest.parse(prompt="x", params={"n": 2}), route)
    assert refused.value.field == "params.n"


def test_a_result_may_not_be_kept_for_longer_than_the_queue_does() -> None:
    route = KnownRoute("echo", "r1", uses_metadata=False, max_result_ttl_s=60)
    assert new_job(PromptRequest.parse(prompt="x", result_ttl_s=60), route).result_ttl_ms == 60_000
    with pytest.raises(
        InvalidRequest, match="result_ttl_s: 3,600 s is longer than the queue keeps"
    ) as refused:
        new_job(PromptRequest.parse(prompt="x", result_ttl_s=3600), route)
    assert refused.value.field == "result_ttl_s"


def test_without_a_key_there_is_nothing_to_compare() -> None:
    job = job_of()
    assert (job.dedup_hash, job.content_hash) == (None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "y"},
        {"route": "other"},
        {"params": {"temperature": 0.5}},
        {"tools": [{"type": "function"}]},
        {"tool_choice": "auto"},
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"a": 1}},
    ],
)
def test_what_changes_the_answer_changes_the_content(change: dict[str, Any]) -> None:
    assert job_of(dedup_key="k", **change).content_hash != job_of(dedup_key="k").content_hash


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"a": 1}},
        {"session": "s"},
        {"stream": False},
        {"priority": 9},
        {"deadline_s": 3.0},
        {"tenant": "t"},
    ],
)
def test_what_does_not_change_the_answer_leaves_the_content(change: dict[str, Any]) -> None:
    assert job_of(dedup_key="k", **change).content_hash == job_of(dedup_key="k").content_hash


def test_the_order_of_keys_is_no_content() -> None:
    one = job_of(dedup_key="k", extra_body={"a": 1, "b": {"c": 1, "d": 2}})
    two = job_of(dedup_key="k", extra_body={"b": {"d": 2, "c": 1}, "a": 1})
    assert one.content_hash == two.content_hash


def test_metadata_is_content_where_the_route_uses_it() -> None:
    one = job_of(dedup_key="k", uses_metadata=True, metadata={"a": 1})
    assert one.content_hash != job_of(dedup_key="k", uses_metadata=True).content_hash


def test_an_automatic_key_is_made_from_content_and_revision() -> None:
    auto = job_of(dedup_key="auto")
    assert auto.dedup_hash == auto.content_hash
    assert job_of(dedup_key="auto").dedup_hash == auto.dedup_hash
    assert job_of(dedup_key="auto", revision="r2").dedup_hash != auto.dedup_hash
    assert job_of(dedup_key="auto", prompt="y").dedup_hash != auto.dedup_hash


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused_where_they_stand(number: float) -> None:
    with pytest.raises(InvalidRequest, match=r"^extra_body\.a\.1\.b: is not a finite number") as refused:
        job_of(extra_body={"a": [0, {"b": number}]})
    assert refused.value.field == "extra_body"
    assert job_of(extra_body={"a": [0.0, {"b": 1e308}]}).payload


def test_the_words_of_a_refusal_do_not_repeat_the_prompt() -> None:
    with pytest.raises(InvalidRequest) as refused:
        job_of(prompt="a private matter", metadata={"x": object()})
    assert "private" not in str(refused.value)


def test_a_request_that_is_too_big_is_refused_at_the_edge() -> None:
    job_of(metadata={"m": "x" * (MAX_REQUEST_BYTES - 100)})
    with pytest.raises(InvalidRequest, match=r"has 8,388,\d{3} bytes as JSON; at most 8,388,608 are allowed"):
        job_of(metadata={"m": "x" * MAX_REQUEST_BYTES})


def test_a_request_may_be_as_big_as_the_bound() -> None:
    text_bytes = MAX_REQUEST_BYTES - len(job_of(metadata={"m": ""}).payload)
    assert len(job_of(metadata={"m": "x" * text_bytes}).payload) == MAX_REQUEST_BYTES
    with pytest.raises(InvalidRequest, match="has 8,388,609 bytes"):
        job_of(metadata={"m": "x" * (text_bytes + 1)})
