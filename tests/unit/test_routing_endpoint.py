from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from scheduler.routing import BreakerState, Endpoint, report_of
from tests.patience import SOON_S
from tests.unit.scripted_endpoint import Clock, Worker, endpoint, fail, half_open, opened
from workers.base import Generation
from workers.errors import (
    ContextOverflow,
    ModelNotFound,
    RequestRejected,
    WorkerAuthError,
    WorkerError,
    WorkerOverloaded,
    WorkerProtocolError,
    WorkerTimeout,
    WorkerUnavailable,
)

HALF_OPEN = BreakerState.HALF_OPEN


def end(one: Endpoint, error: WorkerError | None = None, *, prompts: int = 1) -> None:
    """A call that begins and ends."""
    one.call_ended(one.call_began(), prompts, error)


# Shares


@pytest.mark.parametrize(("processes", "expected"), [(1, 8), (2, 4), (8, 1), (0, 0)])
def test_process_lets_in_its_share(processes: int, expected: int) -> None:
    one = endpoint(limit=8)
    one.divide(processes, 0)
    assert (one.limit, one.room, one.share) == (expected, expected, expected)
    assert one.admits is (expected > 0)


def test_endpoint_that_is_shared_has_nothing_until_it_is_divided() -> None:
    one = endpoint(limit=8, shared=True)
    assert (one.limit, one.room, one.admits) == (0, 0, False)
    one.divide(2, 0)
    assert one.limit == 4


def test_share_of_nothing_lets_through_what_is_here_already() -> None:
    one = endpoint(limit=1)
    one.divide(0, 0)
    assert one.window.free == 1


def test_share_that_shrinks_leaves_no_room_until_prompts_have_ended() -> None:
    one = endpoint(limit=8)
    one.window.acquire(6)
    one.divide(2, 0)
    assert (one.limit, one.room) == (4, 0)
    one.window.release(3)
    assert one.room == 1


def test_share_that_grows_is_told_of_even_from_nothing_to_one() -> None:
    one = endpoint(limit=1)
    one.divide(0, 0)
    told = []
    one.on_change = lambda: told.append(one.limit)
    one.divide(1, 0)
    assert told == [1]


# What the back end says that it holds


def test_what_the_back_end_says_replaces_the_guess_at_once() -> None:
    one = endpoint(limit=None)
    assert (one.limit, one.max_in_flight) == (8, None)
    one.holds(96)
    assert (one.limit, one.max_in_flight) == (96, 96)
    one.divide(2, 0)
    one.holds(6)
    assert one.limit == 3


def test_settings_go_before_what_the_back_end_says() -> None:
    one = endpoint(limit=4)
    one.holds(96)
    assert (one.limit, one.max_in_flight) == (4, 4)


async def test_same_answer_again_changes_nothing() -> None:
    one = endpoint(limit=None)
    one.holds(16)
    end(one, WorkerOverloaded("full"))
    assert one.limit == 8
    one.holds(16)
    assert one.limit == 8


# The adaptive limit


async def test_refusal_halves_the_limit_and_says_nothing_against_the_endpoint() -> None:
    one = endpoint(limit=8, breaker={"failures": 1})
    end(one, WorkerOverloaded("full"))
    assert (one.limit, one.window.limit) == (4, 4)
    assert one.breaker.state is BreakerState.CLOSED
    assert one.paused, "it is left alone for a moment, although it has not said for how long"


async def test_limit_grows_back_while_the_window_is_full_and_only_then() -> None:
    one = endpoint(limit=8)
    end(one, WorkerOverloaded("full"))
    for _ in range(20):
        end(one)
    assert one.limit == 4
    one.window.acquire(4)
    told = []
    one.on_change = lambda: told.append(one.limit)
    end(one, prompts=4)
    assert one.limit == 5
    assert told == [5]
    end(one)
    assert one.limit == 5, "the window has a free place now"


def test_crowded_engine_gets_less() -> None:
    one = endpoint(limit=20)
    one.crowded()
    assert one.limit == 18


# The breaker


@pytest.mark.parametrize(
    "error",
    [
        WorkerUnavailable("gone"),
        WorkerTimeout("no token"),
        WorkerProtocolError("cut off after a minute"),
        WorkerAuthError("no key"),
        WorkerError("odd"),
    ],
)
def test_failed_call_counts_against_the_endpoint(error: WorkerError) -> None:
    one = endpoint(breaker={"failures": 2})
    end(one, error)
    end(one, error)
    assert one.breaker.suspected
    assert one.in_doubt.is_set()
    assert one.admits, "it may be the requests' fault"
    assert report_of(one).last_error == str(error)


def test_model_that_is_not_served_has_the_endpoint_checked_at_once() -> None:
    one = endpoint()
    end(one, ModelNotFound("no such model"))
    assert one.in_doubt.is_set()


@pytest.mark.parametrize(
    "error", [None, RequestRejected("bad"), ContextOverflow("long"), WorkerOverloaded("")]
)
async def test_call_that_the_endpoint_did_its_part_in_counts_for_it(error: WorkerError | None) -> None:
    one = endpoint(breaker={"failures": 2})
    for _ in range(3):
        fail(one)
        end(one, error)
    assert not one.breaker.suspected
    await one.aclose()


def test_call_that_is_given_up_says_nothing() -> None:
    one = endpoint(breaker={"failures": 1})
    one.call_given_up(one.call_began())
    assert not one.breaker.suspected


def test_open_endpoint_has_no_room_and_says_when_to_look_again() -> None:
    clock = Clock()
    one = opened(endpoint(breaker={"open_s": 3}, clock=clock))
    assert (one.room, one.admits, one.usable_in_s) == (0, False, 3.0)
    assert one.in_doubt.is_set()
    clock.now += 2
    assert one.usable_in_s == 1.0
    clock.now += 2
    assert one.usable_in_s == 0.0


def test_half_open_endpoint_has_no_room() -> None:
    one = half_open(endpoint())
    assert (one.room, one.admits) == (0, False)


def test_it_tells_of_each_change_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    one = endpoint("chat.0", breaker={"failures": 1})
    states = []
    one.on_change = lambda: states.append(one.breaker.state)
    with caplog.at_level(logging.INFO):
        fail(one)
        one.breaker.checked(well=False)
        one.breaker.probed(ready=True)
        one.breaker.checked(well=True)
    assert states == [BreakerState.OPEN, HALF_OPEN, BreakerState.CLOSED]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "endpoint chat.0 is unused for 2 s: worker_unavailable"),
        ("INFO", "endpoint chat.0 is well again"),
    ]


def test_probes_that_fail_are_no_news(caplog: pytest.LogCaptureFixture) -> None:
    one = endpoint("chat.0", breaker={"failures": 1})
    caplog.set_level(logging.INFO)
    for _ in range(2):
        fail(one)
        one.breaker.checked(well=False)
        for _ in range(3):
            one.breaker.probed(ready=True)
            one.breaker.checked(well=False)
        one.breaker.probed(ready=True)
        one.breaker.checked(well=True)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"] * 2


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkerUnavailable("it said: secret"), "worker_unavailable"),
        (WorkerUnavailable("it said: secret", log_text="it answered 500"), "it answered 500"),
        (WorkerTimeout("secret", log_text="x" * 300), "x" * 200),
    ],
)
def test_what_a_back_end_said_is_for_administrators_and_not_for_the_log(
    error: WorkerError, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = endpoint("chat.0", breaker={"failures": 1})
    end(one, error)
    one.breaker.checked(well=False)
    assert report_of(one).last_error == str(error)
    assert caplog.messages == [f"endpoint chat.0 is unused for 2 s: {said}"]


# Pauses


async def test_wait_that_the_back_end_asks_for_is_kept() -> None:
    clock = Clock()
    one = endpoint(clock=clock)
    end(one, WorkerOverloaded("slow down", retry_after_s=5.0))
    assert (one.paused, one.admits, one.room, one.usable_in_s) == (True, False, 0, 5.0)
    clock.now += 5
    assert (one.paused, one.admits) == (False, True)
    await one.aclose()


async def test_refusal_that_may_be_repeated_at_once_pauses_nothing() -> None:
    one = endpoint()
    end(one, WorkerOverloaded("full", retry_after_s=0.0))
    assert not one.paused


@pytest.mark.parametrize("wait_s", [None, -1.0, float("nan")])
async def test_refusals_that_do_not_say_for_how_long_pause_it_for_longer_each_time(
    wait_s: float | None,
) -> None:
    clock = Clock()
    one, pauses = endpoint(clock=clock), []
    for _ in range(12):
        calls = [one.call_began() for _ in range(4)]
        for call in calls:
            one.call_ended(call, 1, WorkerOverloaded("full", retry_after_s=wait_s))
        pauses.append(one.usable_in_s)
        clock.now += one.usable_in_s
    assert all(0.25 <= pause <= 30.0 for pause in pauses)
    assert pauses[0] <= 0.5, "those that went together count once"
    assert pauses[-1] >= 15.0
    end(one)
    end(one, WorkerOverloaded("full", retry_after_s=wait_s))
    assert one.usable_in_s <= 0.5, "a success ends the row"
    await one.aclose()


async def test_longest_wait_counts_and_there_is_an_end_to_it() -> None:
    one = endpoint(clock=Clock())
    one.pause(5)
    one.pause(2)
    assert one.usable_in_s == 5.0
    one.pause(1e9)
    assert one.usable_in_s == 3600.0
    await one.aclose()


async def test_end_of_a_pause_is_told() -> None:
    one = endpoint()
    over = asyncio.Event()
    one.on_change = lambda: None if one.paused else over.set()
    one.pause(0.01)
    one.pause(0.02)
    await asyncio.wait_for(over.wait(), SOON_S)
    assert one.admits


async def test_end_of_a_pause_is_told_although_its_timer_was_early() -> None:
    clock = Clock()
    one = endpoint(clock=clock)
    told = asyncio.Event()
    one.on_change = told.set
    one.pause(0.01)
    told.clear()
    await asyncio.sleep(0.05)
    assert one.paused
    assert not told.is_set(), "by its own clock the pause goes on"
    clock.now += 0.01
    await asyncio.wait_for(told.wait(), 5)
    assert one.admits
    await one.aclose()


async def test_closed_endpoint_leaves_no_timer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []

    def call_later(delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        timers.append(loop.call_at(loop.time() + delay, callback, *args))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", call_later)
    one = endpoint()
    for wait_s in (1, 2, 3):
        one.pause(wait_s)
    await one.aclose()
    await one.aclose()
    assert [timer.cancelled() for timer in timers] == [True] * 3


@pytest.mark.parametrize(("pause_s", "expected"), [(1, 4.0), (9, 9.0)])
async def test_open_and_paused_it_is_left_alone_for_the_longer_of_the_two(
    pause_s: float, expected: float
) -> None:
    clock = Clock()
    one = opened(endpoint(breaker={"open_s": 4}, clock=clock))
    one.pause(pause_s)
    assert one.usable_in_s == expected
    one.breaker.probed(ready=True)
    one.breaker.checked(well=True)
    assert not one.admits, "closed, but asked to be left alone"
    clock.now += expected
    assert one.admits
    await one.aclose()


# What administrators see


def test_reserved_places_stay_free_for_the_urgent() -> None:
    one = endpoint(limit=8, reserved=2)
    assert (one.room_for(7), one.room_for(8)) == (6, 8)
    one.window.acquire(6)
    assert (one.room_for(7), one.room_for(8)) == (0, 2)


def test_reserved_places_are_divided_with_the_others() -> None:
    for processes in range(1, 8):
        parts = []
        for place in range(processes):
            one = endpoint(limit=6, reserved=2, shared=True)
            one.divide(processes, place)
            assert 0 <= one.reserved <= one.share
            parts.append((one.room_for(9), one.room_for(0)))
        assert tuple(map(sum, zip(*parts, strict=True))) == (6, 4)


def test_a_lowered_limit_leaves_a_place_for_everybody() -> None:
    one = endpoint(limit=8, reserved=4)
    while one.limit > 1:
        one.crowded()
    assert (one.room_for(0), one.room_for(9)) == (1, 1)


def test_more_is_not_reserved_than_a_back_end_holds() -> None:
    one = endpoint(limit=None, reserved=4)
    one.holds(2)
    assert (one.room_for(0), one.room_for(9)) == (1, 2)
    one.holds(1)
    assert (one.room_for(0), one.room_for(9)) == (1, 1)


def test_places_that_are_reserved_no_more_are_told_of() -> None:
    one = endpoint(limit=4, reserved=3, shared=True)
    rooms, told = [], []
    one.on_change = lambda: told.append(one.room_for(0))
    for place in range(4):
        one.divide(4, place)
        rooms.append(one.room_for(0))
    assert sorted(rooms) == [0, 0, 0, 1]
    assert told[-1] == rooms[-1]
    assert sum(told) == 1, "the change of the one that serves the others was told"


def test_a_lowered_limit_does_not_grow_by_a_single_prompt_beside_kept_places() -> None:
    one = endpoint(limit=64, reserved=60)
    while one.limit > 4:
        one.crowded()
    for _ in range(100):
        one.window.acquire(1)
        call = one.call_began()
        one.window.release(1)
        one.call_ended(call, 1, None)
    assert one.limit == 4


def test_a_window_that_is_full_but_for_the_reserved_places_may_grow() -> None:
    one = endpoint(limit=None, reserved=2)
    start = one.limit
    one.window.acquire(start - one.kept)
    call = one.call_began()
    one.call_ended(call, 4, None)
    assert one.limit > start


def test_description_says_how_it_is_and_no_more() -> None:
    one = endpoint(
        "chat.0", limit=8, base_url="http://user:secret@host", breaker={"failures": 1, "open_s": 7}
    )
    one.window.acquire(2)
    one.call_ended(one.call_began(), 1, WorkerUnavailable("x" * 5000))
    one.breaker.checked(well=False)
    seen = report_of(one, permit_in_s=2.5).model_dump()
    assert {**seen, "last_error": len(seen["last_error"]), "usable_in_s": round(seen["usable_in_s"])} == {
        "name": "chat.0",
        "backend": "scripted",
        "in_flight": 2,
        "gathered": 0,
        "limit": 8,
        "max_in_flight": 8,
        "reserved": 0,
        "breaker": "open",
        "usable_in_s": 7,
        "permit_in_s": 2.5,
        "last_error": 200,
    }
    assert "secret" not in str(seen)


# Through its batcher


async def test_calls_of_its_batcher_are_watched() -> None:
    one = endpoint(worker=Worker(failure=WorkerUnavailable("gone")), breaker={"failures": 2})
    for _ in range(2):
        with pytest.raises(WorkerUnavailable):
            await one.batcher.run(Generation(model="m", prompt="x"), lambda _: None, tokens=1)
    assert one.breaker.suspected
    assert one.outstanding == 0
