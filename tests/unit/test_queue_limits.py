"""The arithmetic of limits, as the scripts do it, at times of the test's own."""

from __future__ import annotations

import asyncio
import bisect
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate

import fakeredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.queue.keys import lua_keys
from scheduler.queue.limits import Limits, RateLimit, parse_limit

START_US = 1_800_000_000_000_000
MINUTE_US = 60_000_000

# One job of one tenant after the other: at what time, its estimate, what it used or -1.
SCRIPT = """
local now_us
local function text(number) return string.format('%.0f', number) end
{library}
local replies = {{}}
for i = 1, #ARGV, 3 do
  now_us, gates = tonumber(ARGV[i]), {{}}
  local gate = tenant_gate('acme')
  local passes = gate.passable()
  replies[#replies + 1] = passes and '' or text(gate.passable_at())
  if passes then
    gate.charge(tonumber(ARGV[i + 1]))
    if ARGV[i + 2] ~= '-1' then gate.correct(tonumber(ARGV[i + 2]), tonumber(ARGV[i + 1])) end
    save_gates()
  end
end
return replies
"""


@dataclass(frozen=True)
class Arrival:
    """A job that wants to begin."""

    at_us: int
    estimate: int = 0
    used: int = -1


def ask(limit: RateLimit, arrivals: list[Arrival]) -> list[int]:
    """For each arrival, in order: 0 if it passes, else from when on one would."""
    library = resources.files("scheduler.queue").joinpath("lua", "lib", "limit.lua").read_text()
    body = SCRIPT.format(library=library)
    args = [str(value) for one in arrivals for value in (one.at_us, one.estimate, one.used)]
    script = lua_keys(body)

    async def run() -> list[bytes]:
        async with fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer()) as redis:
            limits = Limits(tenants={"acme": limit})
            await redis.hset("q:conf", "limits", "t")  # type: ignore[misc]  # redis-py has one type for sync and async
            await redis.hset("q:limits", mapping=limits.fields())  # type: ignore[misc]  # redis-py has one type for sync and async
            replies: list[bytes] = await redis.eval(script, 1, "q:", *args)  # type: ignore[misc]  # redis-py has one type for sync and async
            return replies

    return [int(reply or 0) for reply in asyncio.run(run())]


def times(gaps: list[int]) -> list[int]:
    return list(accumulate(gaps, initial=START_US))[1:]


def most_in_a_minute(at_us: list[int], amounts: list[int]) -> int:
    """The most that any 60 seconds have; they begin with one that passes, and have their end outside."""
    sums = list(accumulate(amounts, initial=0))
    return max(
        (sums[bisect.bisect_left(at_us, at + MINUTE_US)] - sums[i] for i, at in enumerate(at_us)), default=0
    )


def gaps_for(limit: int) -> st.SearchStrategy[list[int]]:
    interval = MINUTE_US // limit
    gap = st.one_of(
        st.just(0),
        st.integers(0, 3 * interval),
        st.sampled_from([1, interval - 1, interval, interval + 1, MINUTE_US - 1, MINUTE_US, 2 * MINUTE_US]),
    )
    return st.lists(gap, min_size=1, max_size=150)


LIMITS = st.one_of(st.integers(1, 60), st.sampled_from([100, 600, 999, 6000, 10**6, 10**8]))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_minute_has_more_requests_than_the_limit(data: st.DataObject) -> None:
    limit = data.draw(LIMITS)
    at_us = times(data.draw(gaps_for(limit)))
    replies = ask(RateLimit(requests=limit), [Arrival(at) for at in at_us])
    passed = [at for at, reply in zip(at_us, replies, strict=True) if not reply]
    assert most_in_a_minute(passed, [1] * len(passed)) <= limit


@pytest.mark.parametrize("limit", [7, 11, 44, 999])
def test_no_minute_has_more_where_the_limit_does_not_divide_it(limit: int) -> None:
    burst = max(1, limit // 10)
    rest = [START_US + n * (MINUTE_US // (limit - burst + 1)) for n in range(1, 3 * limit)]
    at_us = [START_US] * burst + rest
    replies = ask(RateLimit(requests=limit), [Arrival(at) for at in at_us])
    passed = [at for at, reply in zip(at_us, replies, strict=True) if not reply]
    assert most_in_a_minute(passed, [1] * len(passed)) <= limit


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_who_is_told_a_time_passes_then_and_not_before(data: st.DataObject) -> None:
    limit = data.draw(LIMITS)
    at_us = times(data.draw(gaps_for(limit)))
    told = 0
    for at, reply in zip(at_us, ask(RateLimit(requests=limit), [Arrival(at) for at in at_us]), strict=True):
        if told:
            assert reply == (0 if at >= told else told)
        assert reply == 0 or reply > at
        told = reply
    if told:
        again = [*map(Arrival, at_us), Arrival(told - 1), Arrival(told)]
        assert ask(RateLimit(requests=limit), again)[-2:] == [told, 0]


@pytest.mark.parametrize("limit", [1, 9, 10, 19, 20, 60, 100, 600])
def test_a_tenth_goes_at_once_and_nine_tenths_in_every_minute(limit: int) -> None:
    burst = max(1, limit // 10)
    at_us = [START_US] * (burst + 1)
    assert [reply == 0 for reply in ask(RateLimit(requests=limit), [*map(Arrival, at_us)])] == [
        *[True] * burst,
        False,
    ]
    step = MINUTE_US // limit // 4 + 1
    busy = list(range(START_US, START_US + 3 * MINUTE_US, step))
    passed = ask(RateLimit(requests=limit), [*map(Arrival, busy)]).count(0)
    assert 0.8 * 3 * (limit - burst + 1) <= passed <= 3 * limit


@settings(max_examples=60, deadline=None)
@given(
    limit=st.sampled_from([1, 10, 1000, 100_000, 10**7]),
    arrivals=st.lists(st.tuples(st.integers(0, MINUTE_US // 4), st.integers(0, 3000)), max_size=80),
)
def test_no_minute_has_more_tokens_than_the_limit_and_the_last_request(
    limit: int, arrivals: list[tuple[int, int]]
) -> None:
    at_us = times([gap for gap, _ in arrivals])
    amounts = [tokens for _, tokens in arrivals]
    replies = ask(RateLimit(tokens=limit), [Arrival(at, n) for at, n in zip(at_us, amounts, strict=True)])
    passed = [(at, n) for at, n, reply in zip(at_us, amounts, replies, strict=True) if not reply]
    begun = [at for at, _ in passed]
    # what is charged before the last in a minute is within the limit
    for i, at in enumerate(begun):
        inside = [n for _, n in passed[i : bisect.bisect_left(begun, at + MINUTE_US)]]
        assert sum(inside[:-1]) <= limit


@settings(max_examples=60, deadline=None)
@given(
    limit=st.sampled_from([10, 1000, 100_000]),
    estimate=st.integers(0, 5000),
    used=st.integers(0, 5000),
)
def test_a_correction_leaves_what_a_right_estimate_would_have_left(
    limit: int, estimate: int, used: int
) -> None:
    guessed, known = (
        ask(RateLimit(tokens=limit), [first, Arrival(START_US)])[1] or START_US
        for first in (Arrival(START_US, estimate, used), Arrival(START_US, used))
    )
    assert abs(guessed - known) <= 2, "apart from rounding to microseconds"


def test_a_whole_gate_is_no_reason_to_wait_a_microsecond() -> None:
    limit = RateLimit(requests=600, tokens=1000)
    assert ask(limit, [Arrival(START_US, 1), Arrival(START_US, 1)]) == [0, 0]


def test_limits_are_stored_as_they_are_read() -> None:
    limits = Limits(
        {"acme": RateLimit(60, None), "*": RateLimit(None, 1000), "vip": RateLimit()},
        {"chat.0": RateLimit(1, 2)},
    )
    fields = limits.fields()
    assert fields == {"t:acme": "60 0", "t:*": "0 1000", "t:vip": "0 0", "e:chat.0": "1 2"}
    assert {name: parse_limit(value.encode()) for name, value in fields.items()} == {
        "t:acme": RateLimit(60, None),
        "t:*": RateLimit(None, 1000),
        "t:vip": RateLimit(),
        "e:chat.0": RateLimit(1, 2),
    }


@pytest.mark.parametrize("stored", [None, b"", b"60", b"a b", b"1 2 3", b"-1 0"])
def test_what_is_no_limit_is_none(stored: bytes | None) -> None:
    assert parse_limit(stored) is None
