"""Dead letters: found, changed, run again, forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import fakeredis
import orjson
import pytest

from scheduler.admin import (
    DeadFilter,
    dead,
    dead_letter_ids,
    dead_letters,
    purge_dead_letters,
    read_dead_letter,
    requeue_dead_letters,
)
from scheduler.admin.dead import changed_request
from scheduler.errors import InvalidRequest, InvalidTransition, JobNotFound
from scheduler.model import JobState
from scheduler.queue import PromptQueue
from scheduler.queue.inspection.jobs import read_job
from scheduler.queue.inspection.status import read_status
from tests.contracts.queue_driver import LANE, QueueDriver, new_job

REQUEST = {"prompt": "hello", "params": {"max_tokens": 8, "stop": ["x"]}}


@pytest.fixture
async def q() -> AsyncIterator[QueueDriver]:
    async with fakeredis.FakeAsyncRedis() as redis:
        yield QueueDriver(PromptQueue(redis, script_flags=False))


async def fail(q: QueueDriver, name: str, *, code: str = "engine", **fields: Any) -> None:
    await q.enqueue(new_job(name, payload=orjson.dumps(REQUEST), **fields))
    job = await q.claim(lanes={fields.get("lane", LANE): 1})
    error = orjson.dumps({"code": code, "message": f"{name} failed"})
    assert await q.finish(job, JobState.FAILED, value=error, reason=code)
    await q.pass_ms(10)


@pytest.mark.parametrize(
    ("which", "found"),
    [
        (DeadFilter(), ["a", "b", "c", "d"]),
        (DeadFilter(lane="code"), ["b"]),
        (DeadFilter(tenant="acme"), ["c"]),
        (DeadFilter(error="refused"), ["d"]),
        (DeadFilter(error="refused", tenant="acme"), []),
        (DeadFilter(older_than_s=3600), ["a", "b"]),
    ],
)
async def test_a_filter_finds_its_own_the_oldest_first(
    q: QueueDriver, which: DeadFilter, found: list[str]
) -> None:
    await fail(q, "a")
    await fail(q, "b", lane="code")
    await fail(q, "c", tenant="acme")
    await fail(q, "d", code="refused")
    await q.enqueue(new_job("waits"))
    for name in "ab":
        ended_ms = int((await q.record(name))["e"])
        await q.redis.hset(q.queue.keys.of("record", name), "e", ended_ms - 3_600_000)
    assert await dead_letter_ids(q.queue, which) == found
    assert [job.id async for job in dead_letters(q.queue, which)] == found[::-1]


async def test_a_request_of_an_unknown_kind_is_shown_and_cannot_be_changed(q: QueueDriver) -> None:
    await fail(q, "a")
    stored = {"kind": "film", "input": ["text"]}
    await q.redis.set(q.queue.keys.of("payload", "a"), orjson.dumps(stored))
    assert (await read_dead_letter(q.queue, "a"))[1] == stored
    outcome = await requeue_dead_letters(q.queue, ["a"], {"prompt": "text"})
    assert outcome.requeued == []
    assert "asks for 'film' work" in outcome.refused["a"]


async def test_a_dead_letter_is_read_with_its_errors_and_its_request(q: QueueDriver) -> None:
    await fail(q, "a")
    job, request = await read_dead_letter(q.queue, "a")
    assert request == REQUEST
    assert job.error is not None
    assert (job.error.code, job.history[-1].detail) == ("engine", "engine: a failed")
    await q.redis.set(q.queue.keys.of("payload", "a"), b"\xff")
    assert (await read_dead_letter(q.queue, "a"))[1] is None
    await q.enqueue(new_job("waits"))
    with pytest.raises(InvalidTransition, match="job waits is waiting, not a dead letter"):
        await read_dead_letter(q.queue, "waits")
    with pytest.raises(JobNotFound):
        await read_dead_letter(q.queue, "nobody")


async def test_they_run_again_in_the_order_in_which_they_are_named(q: QueueDriver) -> None:
    for name in "abc":
        await fail(q, name)
    await q.redis.delete(q.queue.keys.of("payload", "b"))
    await q.queue.requeue("c")
    outcome = await requeue_dead_letters(q.queue, ["a", "b", "c", "nobody"])
    assert outcome.requeued == ["a"]
    assert outcome.refused.keys() == {"b"}
    assert "its stored request is gone" in outcome.refused["b"]
    assert await q.claimed_ids() == ["c", "a"]


async def test_a_changed_request_is_what_runs_and_gives_up_the_key(q: QueueDriver) -> None:
    await fail(q, "a", key="K")
    changes = {"prompt": "good bye", "params.max_tokens": 4, "params.stop": None, "metadata.by": "me"}
    outcome = await requeue_dead_letters(q.queue, ["a"], changes)
    assert outcome.requeued == ["a"]
    assert await q.owner("K") is None
    job = await q.claim()
    assert orjson.loads(job.payload) == {
        "prompt": "good bye",
        "params": {"max_tokens": 4},
        "metadata": {"by": "me"},
    }
    info = await read_job(q.queue, "a")
    assert info is not None
    assert info.dedup is None
    assert [entry.detail for entry in info.history if entry.what == "requeued"] == ["failed: engine; edited"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"priority": 9}, "priority: cannot be changed; these can: extra_body,"),
        ({"prompt.text": "x"}, "prompt.text: prompt has no fields"),
        ({"params.max_tokens": -1}, "max_tokens"),
        ({"prompt": None}, "give either prompt or messages"),
        ({"params.nonsense": 1}, "nonsense"),
    ],
)
def test_a_wrong_change_is_refused_with_its_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        changed_request(REQUEST, changes, model="chat")
    assert REQUEST["params"] == {"max_tokens": 8, "stop": ["x"]}


async def test_a_field_that_cannot_be_changed_is_refused_before_anything_runs(q: QueueDriver) -> None:
    await fail(q, "a")
    with pytest.raises(InvalidRequest, match="cannot be changed"):
        await requeue_dead_letters(q.queue, ["a"], {"prompt": "x", "modell": "y"})
    assert await q.state("a") == "failed"


async def test_a_value_that_does_not_suit_one_of_them_leaves_that_one(q: QueueDriver) -> None:
    await fail(q, "a")
    outcome = await requeue_dead_letters(q.queue, ["a"], {"params.max_tokens": "many"})
    assert (outcome.requeued, list(outcome.refused)) == ([], ["a"])
    assert "max_tokens" in outcome.refused["a"]
    assert await q.state("a") == "failed"


async def test_the_purged_are_gone_and_the_others_are_not(
    q: QueueDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "DISCARD_CHUNK", 2)
    for name in "abcd":
        await fail(q, name)
    await q.queue.requeue("d")
    assert await purge_dead_letters(q.queue, ["a", "b", "c", "d", "nobody"]) == 3
    assert [await q.state(name) for name in "abcd"] == [None, None, None, "waiting"]
    assert await dead_letter_ids(q.queue) == []
    assert (await read_status(q.queue)).totals["dead_purged"] == 3
