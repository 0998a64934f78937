from __future__ import annotations

from collections import Counter

from scheduler.routing import BreakerState, Endpoint, choose_endpoint
from tests.unit.scripted_endpoint import Clock, endpoint, fail, half_open, opened
from workers.errors import RequestRejected

SESSIONS = [f"session {n}" for n in range(600)]


def homes(endpoints: list[Endpoint]) -> dict[str, Endpoint | None]:
    return {session: choose_endpoint(endpoints, session=session) for session in SESSIONS}


# Least outstanding work


def test_an_endpoint_with_room_for_the_urgent_alone_is_full_to_others() -> None:
    reserving, other = endpoint("reserving", limit=2, reserved=1), endpoint("other", limit=8, weight=0.1)
    reserving.window.acquire(1)
    assert choose_endpoint([reserving, other], priority=7) is other
    assert choose_endpoint([reserving, other], priority=8) is reserving


def test_of_equals_the_first_is_chosen() -> None:
    first, second = endpoint("first"), endpoint("second")
    assert choose_endpoint([first, second]) is first


def test_least_outstanding_work_is_chosen() -> None:
    first, second = endpoint("first"), endpoint("second")
    first.window.acquire(1)
    assert choose_endpoint([first, second]) is second


def test_work_is_spread_by_weight() -> None:
    light, heavy = endpoint("light", weight=1), endpoint("heavy", weight=3)
    chosen: Counter[str] = Counter()
    for _ in range(8):
        one = choose_endpoint([light, heavy])
        assert one is not None
        one.window.acquire(1)
        chosen[one.name] += 1
    assert chosen == {"light": 2, "heavy": 6}


def test_endpoint_with_room_comes_before_one_without() -> None:
    small, large = endpoint("small", limit=1, weight=100), endpoint("large", limit=64)
    small.window.acquire(1)
    large.window.acquire(32)
    assert choose_endpoint([small, large]) is large


def test_full_endpoints_are_still_chosen_among() -> None:
    fuller, full = endpoint("fuller", limit=2), endpoint("full", limit=1)
    fuller.window.acquire(2)
    full.window.acquire(1)
    assert choose_endpoint([fuller, full]) is full


# Who is left alone


async def test_endpoint_that_is_open_paused_or_without_a_share_is_passed_over() -> None:
    down, paused, divided = opened(endpoint("down")), endpoint("paused"), endpoint("divided")
    paused.pause(60)
    divided.divide(0, 0)
    last = endpoint("last")
    assert choose_endpoint([down, paused, divided, last]) is last
    assert choose_endpoint([down, paused, divided]) is None
    await paused.aclose()


def test_nobody_is_chosen_where_there_is_nobody() -> None:
    assert choose_endpoint([]) is None


def test_endpoint_that_is_half_open_gets_nothing() -> None:
    other, checked = endpoint("other"), half_open(endpoint("checked"))
    other.window.acquire(1)
    assert choose_endpoint([other, checked]) is other
    assert choose_endpoint([checked]) is None


# Who fails at once


def test_endpoint_that_fails_at_once_draws_no_traffic() -> None:
    broken, busy = endpoint("broken"), endpoint("busy")
    busy.window.acquire(4)
    asked = 0
    for _ in range(100):
        if choose_endpoint([broken, busy]) is broken:
            asked += 1
            fail(broken)
    assert asked <= 5


def test_failures_are_forgotten_with_time_and_with_success() -> None:
    clock = Clock()
    one, other = endpoint("one", clock=clock), endpoint("other")
    other.window.acquire(1)
    fail(one, 4)
    assert choose_endpoint([one, other]) is other
    clock.now += 60
    assert choose_endpoint([one, other]) is one
    fail(one, 4)
    for _ in range(4):
        one.call_ended(one.call_began(), 1, None)
    assert choose_endpoint([one, other]) is one


def test_failures_are_forgotten_by_an_endpoint_that_is_found_to_be_well() -> None:
    one, other = endpoint("one", breaker={"failures": 3}), endpoint("other")
    other.window.acquire(1)
    fail(one, 3)
    assert choose_endpoint([one, other]) is other
    one.checked(well=True)
    assert choose_endpoint([one, other]) is one


def test_endpoint_that_refuses_all_it_gets_draws_no_traffic_either() -> None:
    refuses, busy = endpoint("refuses"), endpoint("busy")
    busy.window.acquire(4)
    asked = 0
    for _ in range(200):
        if choose_endpoint([refuses, busy]) is refuses:
            asked += 1
            refuses.call_ended(refuses.call_began(), 1, RequestRejected("unknown field"))
    assert asked <= 20


def test_failing_endpoint_that_is_alone_still_gets_all() -> None:
    one = endpoint(limit=2)
    fail(one, 50)
    assert choose_endpoint([one]) is one
    assert one.room == 2, "how many prompts it may hold is another matter"


# Sessions


def test_prompts_of_a_session_stay_together_and_sessions_spread() -> None:
    endpoints = [endpoint(f"chat.{at}") for at in range(4)]
    found = homes(endpoints)
    for at, one in enumerate(endpoints):
        one.window.acquire(at + 1)
    assert homes(endpoints) == found, "however much each of them has to do"
    assert homes(endpoints[::-1]) == found, "and in whatever order they are"
    for count in Counter(one.name for one in found.values() if one).values():
        assert 90 < count < 220


def test_sessions_are_spread_by_weight() -> None:
    found = homes([endpoint("light", weight=1), endpoint("heavy", weight=3)])
    heavy = sum(one is not None and one.name == "heavy" for one in found.values())
    assert 390 < heavy < 510, "three of four"


def test_only_the_sessions_of_an_endpoint_that_goes_move_and_they_come_back() -> None:
    endpoints = [endpoint(f"chat.{at}") for at in range(4)]
    before = homes(endpoints)
    gone = opened(endpoints[1])
    during = homes(endpoints)
    moved = {session for session in SESSIONS if during[session] is not before[session]}
    assert moved == {session for session in SESSIONS if before[session] is gone}
    assert len(set(during.values())) == 3

    gone.breaker.probed(ready=True)
    gone.breaker.checked(well=True)
    assert gone.breaker.state is BreakerState.CLOSED
    assert homes(endpoints) == before


def test_session_yields_when_its_endpoint_is_full() -> None:
    endpoints = [endpoint(f"chat.{at}") for at in range(3)]
    home = choose_endpoint(endpoints, session="s")
    assert home is not None
    home.window.acquire(home.room)
    assert choose_endpoint(endpoints, session="s") not in (home, None)
    home.window.release(1)
    assert choose_endpoint(endpoints, session="s") is home


def test_an_urgent_prompt_of_a_session_takes_the_place_that_its_home_has_kept() -> None:
    endpoints = [endpoint(name, limit=2, reserved=1) for name in ("one", "two")]
    home = choose_endpoint(endpoints, session="s")
    assert home is not None
    home.window.acquire(1)
    assert choose_endpoint(endpoints, session="s", priority=7) is not home
    assert choose_endpoint(endpoints, session="s", priority=8) is home
