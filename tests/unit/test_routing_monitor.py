from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from scheduler.routing import BreakerState, Endpoint, EndpointMonitor, check, monitor, report_of
from tests.patience import SOON_S
from tests.unit.scripted_endpoint import Worker, endpoint, fail
from workers.base import Capabilities, Completed, Generation, Health, Load, Output
from workers.errors import (
    ModelNotFound,
    RequestRejected,
    WorkerAuthError,
    WorkerFailed,
    WorkerOverloaded,
)

QUICK = {"failures": 1, "open_s": 0.01}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN_S", "CAPACITY_S", "UNTIL_KNOWN_S", "LOAD_S"):
        monkeypatch.setattr(monitor, name, 0.01)


@asynccontextmanager
async def watched(one: Endpoint) -> AsyncIterator[EndpointMonitor]:
    watcher = EndpointMonitor(one)
    await watcher.start()
    try:
        yield watcher
    finally:
        await watcher.stop()


class Said:
    """Gives answers one after the other, the last for ever; one that is an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)
        self._count = 0
        self._asked = asyncio.Event()

    def __call__(self) -> object:
        answer = self._answers[min(self._count, len(self._answers) - 1)]
        self._count += 1
        self._asked.set()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def asked(self, times: int) -> None:
        async with asyncio.timeout(SOON_S):
            while self._count < times:
                self._asked.clear()
                await self._asked.wait()

    @property
    def count(self) -> int:
        return self._count


async def until(one: Endpoint, true: Callable[[], bool]) -> None:
    changed = asyncio.Event()
    one.on_change = changed.set
    async with asyncio.timeout(SOON_S):
        while not true():
            await changed.wait()
            changed.clear()


def worker_that(**said: Said) -> Worker:
    worker = Worker()
    for what, answers in said.items():
        setattr(worker, what, answers)
    return worker


NOT_READY = Health(ready=False, detail="loading")
READY = Health(ready=True)


# Health


async def test_back_end_that_is_not_ready_at_the_start_gets_nothing_until_it_is() -> None:
    one = endpoint(worker=worker_that(healths=Said(NOT_READY, NOT_READY, NOT_READY, READY)), breaker=QUICK)
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)
        assert one.last_error == "loading"
        await until(one, lambda: one.breaker.state is BreakerState.CLOSED)


async def test_back_end_that_is_well_is_not_asked_again() -> None:
    said = Said(READY)
    one = endpoint(worker=worker_that(healths=said), breaker=QUICK)
    async with watched(one):
        await said.asked(1)
        await asyncio.sleep(0.05)
    assert said.count == 1
    assert one.admits


async def test_endpoint_that_opens_is_asked_each_time_and_only_then() -> None:
    said = Said(READY)
    one = endpoint(worker=worker_that(healths=said), breaker=QUICK)
    async with watched(one):
        await said.asked(1)
        for times in range(2, 5):
            one.breaker.trip()
            await until(one, lambda: one.breaker.state is BreakerState.CLOSED)
            assert said.count == times


async def test_back_end_that_is_never_ready_is_asked_at_intervals() -> None:
    said = Said(NOT_READY)
    one = endpoint(worker=worker_that(healths=said), breaker={"open_s": 60})
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)
        await asyncio.sleep(0.05)
    assert said.count == 1


@pytest.mark.parametrize("failure", [LookupError("sk-secret"), TimeoutError()])
async def test_adapter_that_raises_is_taken_as_not_ready_and_asked_again(failure: Exception) -> None:
    one = endpoint(worker=worker_that(healths=Said(failure, failure, READY)), breaker=QUICK)
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)
        assert one.last_error
        assert "secret" not in one.last_error
        await until(one, lambda: one.breaker.state is BreakerState.CLOSED)


async def test_adapter_that_never_answers_is_taken_as_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ASK_S", 0.01)
    worker = Worker()

    async def never() -> Health:
        await asyncio.Event().wait()
        raise AssertionError

    worker.health = never
    one = endpoint(worker=worker, breaker=QUICK)
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)
    assert "did not answer" in one.last_error


async def test_adapter_that_cancels_or_answers_nonsense_does_not_end_the_watching() -> None:
    one = endpoint(worker=worker_that(healths=Said(asyncio.CancelledError(), None, NOT_READY)), breaker=QUICK)
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)


async def test_warnings_are_logged_when_they_are_first_known_and_when_they_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = Said(
        NOT_READY,
        Health(ready=True, warnings=("it knows no priorities",)),
        Health(ready=True, warnings=("it knows no priorities",)),
        Health(ready=True, warnings=("it knows no lists",)),
        READY,
    )
    one = endpoint("chat.0", worker=worker_that(healths=said), breaker=QUICK)
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)
        await until(one, lambda: one.breaker.state is BreakerState.CLOSED)
        for _ in range(2):
            one.breaker.trip()
            await until(one, lambda: one.breaker.state is BreakerState.CLOSED)
    assert caplog.text.count("endpoint chat.0: it knows no priorities") == 1
    assert caplog.text.count("endpoint chat.0: it knows no lists") == 1


async def test_pause_is_waited_for_before_the_back_end_is_asked() -> None:
    said = Said(READY)
    one = endpoint(worker=worker_that(healths=said), breaker=QUICK)
    async with watched(one):
        await said.asked(1)
        one.pause(60)
        one.breaker.trip()
        await asyncio.sleep(0.05)
        assert said.count == 1
    await one.aclose()


# Checks


async def settled(one: Endpoint) -> None:
    """Return once the endpoint is suspected no more."""
    async with asyncio.timeout(SOON_S):
        while one.breaker.suspected:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("failure", "well"),
    [
        (None, True),
        (RequestRejected("max_tokens: too few"), True),
        (WorkerOverloaded("busy"), True),
        (WorkerFailed("CUDA error"), False),
        (WorkerAuthError("no key"), False),
        (ModelNotFound("no such model"), False),
        (ValueError("sk-secret"), False),
    ],
)
async def test_endpoint_that_is_suspected_gets_a_prompt_that_is_known_to_be_good(
    failure: Exception | None, well: bool
) -> None:
    worker = Worker(failure=failure)
    one = endpoint(worker=worker, breaker={"failures": 3, "open_s": 60})
    async with watched(one):
        fail(one, 3)
        await settled(one)
    assert one.breaker.state is (BreakerState.CLOSED if well else BreakerState.OPEN)
    assert "secret" not in one.last_error
    sent = worker.batches[0][0]
    assert (sent.model, sent.messages, sent.params) == (
        "served",
        ({"role": "user", "content": "Hi"},),
        {"max_tokens": 1},
    )


async def test_plain_prompt_checks_a_back_end_without_chats() -> None:
    worker = Worker()
    worker.capabilities = Capabilities(chat=False)
    one = endpoint(worker=worker, breaker={"failures": 1})
    async with watched(one):
        fail(one)
        await settled(one)
    assert worker.batches[0][0].prompt == "Hi"
    assert one.admits


class WithoutChats(Worker):
    """A back end that has plain completions alone."""

    async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        if batch[0].messages is not None:
            raise ModelNotFound("404: there is no /v1/chat/completions")
        yield Completed(0, "stop")


async def test_back_end_that_answers_plain_prompts_alone_is_well() -> None:
    one = endpoint(worker=WithoutChats(), breaker={"failures": 1})
    async with watched(one):
        fail(one)
        await settled(one)
    assert one.admits


async def test_answer_that_does_not_begin_is_a_check_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "ANSWER_S", 0.01)
    for worker in (Worker(hangs=True), Deaf()):
        one = endpoint(worker=worker, breaker={"failures": 1, "open_s": 60})
        async with watched(one):
            fail(one)
            await settled(one)
        assert one.breaker.state is BreakerState.OPEN
        assert "did not answer" in one.last_error


class Deaf(Worker):
    """Never answers, and ignores that nobody wants it to."""

    async def generate(self, batch: Sequence[Generation]) -> AsyncIterator[Output]:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.2)
        yield Completed(0, "stop")


async def test_back_end_that_is_ready_and_answers_nothing_stays_open_longer_each_time() -> None:
    worker = Worker(failure=WorkerFailed("CUDA error"))
    one = endpoint(worker=worker, breaker={"failures": 1, "open_s": 0.01, "max_open_s": 0.1})
    async with watched(one):
        fail(one)
        async with asyncio.timeout(SOON_S):
            while len(worker.batches) < 4:
                await asyncio.sleep(0.001)
        assert not one.admits
        worker.failure = None
        await until(one, lambda: one.breaker.state is BreakerState.CLOSED)


# Models


SMALL = Health(ready=True, models=("small",))
BOTH = Health(ready=True, models=("small", "large"), exclusive=True)
SMALL_ALONE = Health(ready=True, models=("small",), exclusive=True)
NOT_FOUND = ModelNotFound("no such model")


@pytest.mark.parametrize(
    ("health", "failure"),
    [
        (SMALL_ALONE, None),
        (SMALL, NOT_FOUND),  # it may take other names than it lists, and does not take this one
    ],
)
async def test_endpoint_that_does_not_serve_its_model_takes_no_prompts(
    health: Health, failure: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    worker = worker_that(healths=Said(health))
    worker.failure = failure
    one = endpoint("chat.0", worker=worker, model="large", breaker={"open_s": 0.01})
    one.model = "large"
    async with watched(one):
        await until(one, lambda: one.breaker.state is BreakerState.OPEN)
        await asyncio.sleep(0.05)  # it is asked several times
    assert not one.admits
    assert caplog.text.count("it does not serve the model large, but small") == 1
    assert "does not serve the model large" in report_of(one).last_error


@pytest.mark.parametrize(
    ("model", "health"),
    [
        ("large", BOTH),
        ("large", SMALL),
        ("large", Health(ready=True, exclusive=True)),  # its list is empty: it does not say
        (None, SMALL_ALONE),  # nobody has said which: the first answer will tell
    ],
)
async def test_endpoint_that_serves_its_model_or_may_do_so_takes_prompts(
    model: str | None, health: Health
) -> None:
    said = Said(health)
    one = endpoint(worker=worker_that(healths=said), model=model)
    async with watched(one):
        await said.asked(1)
        await asyncio.sleep(0.02)
    assert one.admits


def test_long_list_of_models_is_cut() -> None:
    said = check.missing_model("large", [f"m{at}" for at in range(100)])
    assert "m4 and 95 more" in said
    assert "m5" not in said


# Capacity


async def test_capacity_is_asked_for_until_it_is_known_and_kept_up_to_date() -> None:
    one = endpoint(limit=None, worker=worker_that(capacities=Said(None, None, 12, 12, 3)))
    async with watched(one):
        await until(one, lambda: one.limit == 12)
        await until(one, lambda: one.limit == 3)


async def test_capacity_is_not_asked_for_where_the_settings_say_it() -> None:
    said, healths = Said(12), Said(READY)
    one = endpoint(limit=4, worker=worker_that(capacities=said, healths=healths))
    async with watched(one):
        await healths.asked(1)
        await asyncio.sleep(0.05)
    assert (said.count, one.limit) == (0, 4)


async def test_adapter_whose_capacity_fails_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    one = endpoint("chat.0", limit=None, worker=worker_that(capacities=Said(KeyError("slots"), 5)))
    async with watched(one):
        await until(one, lambda: one.max_in_flight == 5)
    assert "endpoint chat.0 cannot be watched" in caplog.text


# Load


@pytest.mark.parametrize(
    ("loads", "falls"),
    [
        ([Load(10, 5)], True),
        ([Load(10, 1)], False),  # what a step of the engine leaves behind
        ([Load(10, 5), Load(10, 0)] * 50, False),  # never twice in a row
        ([None], False),
    ],
)
async def test_queue_in_the_engine_that_stays_makes_the_limit_smaller(
    loads: list[Load | None], falls: bool
) -> None:
    said = Said(*loads)
    one = endpoint(limit=100, worker=worker_that(loads=said))
    one.window.acquire(1)
    async with watched(one):
        await said.asked(4)
    assert (one.limit < 100) is falls
    assert one.breaker.state is BreakerState.CLOSED


async def test_idle_back_end_is_not_asked_for_its_load() -> None:
    said = Said(Load(10, 10))
    one = endpoint(worker=worker_that(loads=said))
    async with watched(one):
        await asyncio.sleep(0.1)
    assert said.count == 0


# Beginning and ending


async def test_start_and_stop_may_be_called_twice_and_leave_no_task() -> None:
    before = asyncio.all_tasks()
    watcher = EndpointMonitor(endpoint(limit=None))
    await watcher.start()
    running = asyncio.all_tasks()
    await watcher.start()
    assert asyncio.all_tasks() == running
    assert len(running - before) == 3
    await watcher.stop()
    await watcher.stop()
    assert asyncio.all_tasks() == before


def test_monitor_ends_with_its_event_loop() -> None:
    async def leave() -> None:
        await EndpointMonitor(endpoint(limit=None)).start()
        await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(leave(), SOON_S))
