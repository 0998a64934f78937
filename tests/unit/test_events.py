"""Events as types and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import orjson
import pytest

from scheduler.errors import JobCancelled, JobEnded, JobExpired, JobFailed, JobShed, SchedulerError
from scheduler.events import (
    Cancelled,
    Delta,
    Done,
    Event,
    Expired,
    Failed,
    Queued,
    Retrying,
    Shed,
    Started,
    decode_event,
    ended_error,
    parse_event_id,
    raw_event,
)
from scheduler.model import JobError, JobResult

ERROR = {"code": "worker_timeout", "message": "no token in 30 s"}
HEAD = {"id": "7-3", "job_id": "job", "attempt": 2}
BASE: dict[str, Any] = {"id": "7-3", "job_id": "job", "attempt": 2}

EVENTS: list[tuple[dict[str, Any], Event]] = [
    ({"type": "queued"}, Queued(**BASE)),
    ({"type": "started", "worker": "w"}, Started(**BASE, worker="w")),
    ({"type": "delta", "text": "Hi", "index": 1}, Delta(**BASE, text="Hi", index=1)),
    ({"type": "delta", "tool_calls": [{"index": 0}]}, Delta(**BASE, tool_calls=[{"index": 0}])),
    (
        {"type": "retrying", "error": ERROR, "delay_s": 0.5},
        Retrying(**BASE, error=JobError(**ERROR), delay_s=0.5),
    ),
    ({"type": "done", "result": {"text": "Hi"}}, Done(**BASE, result=JobResult(text="Hi"))),
    ({"type": "failed", "error": ERROR}, Failed(**BASE, error=JobError(**ERROR))),
    ({"type": "cancelled", "reason": "replaced"}, Cancelled(**BASE, reason="replaced")),
    ({"type": "expired"}, Expired(**BASE)),
    ({"type": "shed"}, Shed(**BASE)),
]


@pytest.mark.parametrize(("raw", "event"), EVENTS, ids=[raw["type"] for raw, _ in EVENTS])
def test_json_becomes_the_event_of_its_type(raw: dict[str, Any], event: Event) -> None:
    assert decode_event(orjson.dumps(HEAD | raw)) == event
    assert decode_event(orjson.dumps(HEAD | raw).decode()) == event


def test_every_type_of_event_is_tried_here() -> None:
    assert {type(event) for _, event in EVENTS} == set(get_args(Event))


def test_terminal_events_are_the_five_ends() -> None:
    assert {cls for cls in get_args(Event) if cls.terminal} == {Done, Failed, Cancelled, Expired, Shed}


def test_fields_of_a_newer_version_are_ignored() -> None:
    assert decode_event(orjson.dumps(HEAD | {"type": "queued", "mood": "good"})) == Queued(**BASE)


def test_attempt_is_0_where_none_is_named() -> None:
    assert decode_event(b'{"type": "queued", "id": "0-1", "job_id": "job"}').attempt == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no json",
        b"[1]",
        b"null",
        b"5",
        b"{}",
        b'{"type": "queued"}',
        b'{"type": "sung", "id": "1-1", "job_id": "j"}',
        b'{"type": ["queued"], "id": "1-1", "job_id": "j"}',
        b'{"type": "done", "id": "1-1", "job_id": "j"}',
        b'{"type": "failed", "id": "1-1", "job_id": "j", "error": "text"}',
    ],
)
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(SchedulerError, match="not an event of this version"):
        decode_event(data)


def test_cursor_orders_by_number_and_token_first() -> None:
    ids = ["10-1", "9-2", "9-10", "2-99"]
    assert sorted(ids, key=parse_event_id) == ["2-99", "9-2", "9-10", "10-1"]
    assert Queued(id="9-10", job_id="job").cursor == (9, 10)


@pytest.mark.parametrize(
    "data",
    [
        b'{"id":"7-2","type":"delta","job_id":"j","attempt":1,"text":"x"}',
        b'{"job_id": "j", "type": "delta", "id": "7-2"}',
    ],
)
def test_a_raw_event_has_id_and_type_and_the_bytes_as_they_are(data: bytes) -> None:
    event = raw_event(data)
    assert (event.id, event.cursor, event.type, event.data) == ("7-2", (7, 2), "delta", data)
    assert not event.terminal
    assert raw_event(data.replace(b"delta", b"done")).terminal


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no json",
        b"[1]",
        b"{}",
        b'{"id":"7","type":"done"}',
        b'{"id":"7-1"}',
        b'{"id":"%s-1","type":"done"}' % (b"9" * 5000),
    ],
    ids=lambda data: data[:24].decode(),
)
def test_what_is_not_an_event_has_no_raw_event(data: bytes) -> None:
    with pytest.raises(SchedulerError, match="not an event"):
        raw_event(data)


def test_events_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Queued(**BASE).attempt = 3  # type: ignore[misc]  # frozen: that is what is tested


@pytest.mark.parametrize(
    ("event", "error", "reason"),
    [
        (Failed(**BASE, error=JobError(**ERROR)), JobFailed, "worker_timeout"),
        (Cancelled(**BASE, reason="purged"), JobCancelled, "purged"),
        (Expired(**BASE), JobExpired, "deadline"),
        (Shed(**BASE), JobShed, "queue_full"),
    ],
)
def test_end_without_a_result_becomes_its_error(
    event: Failed | Cancelled | Expired | Shed, error: type[JobEnded], reason: str
) -> None:
    made = ended_error(event)
    assert type(made) is error
    assert (made.job_id, made.reason, made.attempts) == ("job", reason, 2)
    assert "job" in str(made)
    assert made.state == event.type
