"""What a worker process stores about itself, and what is read of it."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.queue.worker_report import (
    EndpointReport,
    RouteReport,
    WorkerReport,
    decode_report,
    encode_report,
)

REPORT = WorkerReport(
    host="box",
    pid=12,
    started_at_ms=1_700_000_000_000,
    running=3,
    max_running=64,
    draining=True,
    metrics_url="http://127.0.0.1:9000/metrics",
    routes={
        "chat": RouteReport(
            running=3,
            stages={"inference": 2},
            endpoints=(
                EndpointReport(name="chat.0", backend="vllm", in_flight=2, limit=8, max_in_flight=16),
                EndpointReport(name="chat.1", breaker="open", usable_in_s=2.5, last_error="gone"),
            ),
        )
    },
)


def test_a_stored_report_is_read_as_it_was_written() -> None:
    assert decode_report(encode_report(REPORT)) == REPORT


@pytest.mark.parametrize("stored", [None, b"", b"not json", b"7", b"[]", b"null", b"\xff"])
def test_what_is_no_report_is_read_as_an_empty_one(stored: bytes | None) -> None:
    assert decode_report(stored) == WorkerReport()


def test_a_report_of_another_version_is_read_as_far_as_it_is_known() -> None:
    stored = {
        "pid": 12,
        "running": "many",
        "later": 1,
        "routes": {"chat": {"endpoints": [{"name": "chat.0", "limit": None, "new": 1}, 7]}, "bad": []},
    }
    assert decode_report(orjson.dumps(stored)) == WorkerReport(
        pid=12,
        routes={
            "chat": RouteReport(endpoints=(EndpointReport(name="chat.0"), EndpointReport())),
            "bad": RouteReport(),
        },
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*WorkerReport.model_fields, *RouteReport.model_fields, *EndpointReport.model_fields]
)


@given(st.recursive(JSON, lambda inner: st.dictionaries(FIELDS, inner), max_leaves=20))
def test_whatever_is_stored_can_be_read(stored: object) -> None:
    assert isinstance(decode_report(orjson.dumps(stored)), WorkerReport)
