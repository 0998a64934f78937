"""Writes of the engine wait while Redis is away, and are timed."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError

from scheduler.engine.calls import PatientWrites, ScriptCalls
from scheduler.engine.patience import Patience
from scheduler.observations import NOBODY, Observer, Observers, RoundTrip
from scheduler.queue.records import WriteOutcome

REFUSED = frozenset({("job", 1)})


class FailingQueue:
    """Raises its errors, one a write, and answers then."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.writes = 0

    async def write(self, **_: object) -> WriteOutcome:
        self.writes += 1
        if self.errors:
            raise self.errors.pop(0)
        return WriteOutcome(REFUSED)


class RoundTrips(Observer):
    def __init__(self) -> None:
        self.scripts: list[str] = []

    def round_trip(self, seen: RoundTrip) -> None:
        self.scripts.append(seen.script)


def patient(queue: FailingQueue, observers: Observers = NOBODY) -> PatientWrites:
    calls = ScriptCalls(Patience(Redis()), observers)
    return PatientWrites(queue, calls)  # type: ignore[arg-type]  # a queue that writes alone


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr("scheduler.engine.patience.asyncio.sleep", at_once)


@pytest.mark.parametrize(
    "error",
    [
        RedisConnectionError("gone"),
        TimeoutError(),
        OSError("gone"),
        ReadOnlyError("You can't write against a read only replica."),
        ResponseError("MISCONF Errors writing to the AOF file: No space left on device"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
    ids=["gone", "late", "no route", "failed over", "disk full", "no replicas"],
)
async def test_a_write_is_repeated_while_redis_is_away_or_takes_none(error: Exception) -> None:
    queue = FailingQueue(error, error)
    outcome = await patient(queue).write()
    assert (outcome.refused, queue.writes) == (REFUSED, 3)


async def test_an_error_that_stays_is_raised() -> None:
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await patient(FailingQueue(ResponseError("WRONGTYPE"))).write()


async def test_observers_see_the_round_trips_that_were_answered() -> None:
    seen = RoundTrips()
    await patient(FailingQueue(RedisConnectionError("gone")), Observers.of([seen])).write()
    await asyncio.sleep(0)
    assert seen.scripts == ["write"]
