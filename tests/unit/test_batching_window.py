from __future__ import annotations

import pytest

from scheduler.batching.window import Window


def test_window_counts_what_is_taken_and_given_back() -> None:
    window = Window(4)
    window.acquire(3)
    assert (window.in_flight, window.free) == (3, 1)

    window.release(2)
    assert (window.in_flight, window.free) == (1, 3)


def test_window_gives_no_more_than_it_has() -> None:
    window = Window(2)

    with pytest.raises(ValueError, match="2 are free"):
        window.acquire(3)
    assert window.in_flight == 0


def test_window_takes_back_no_more_than_it_gave() -> None:
    window = Window(2)
    window.acquire(1)

    with pytest.raises(ValueError, match="1 are taken"):
        window.release(2)
    assert window.in_flight == 1


def test_release_tells_of_room() -> None:
    window = Window(2)
    seen: list[int] = []
    window.on_room.append(lambda: seen.append(window.free))
    window.acquire(2)
    window.release()

    assert seen == [1]


def test_higher_limit_tells_of_room() -> None:
    window = Window(1)
    seen: list[int] = []
    window.on_room.append(lambda: seen.append(window.free))
    window.acquire()
    window.limit = 3

    assert seen == [2]


def test_lower_limit_stops_nothing_and_frees_nothing_until_enough_has_ended() -> None:
    window = Window(4)
    window.acquire(4)
    seen: list[int] = []
    window.on_room.append(lambda: seen.append(window.free))

    window.limit = 2
    window.release(2)
    assert (window.in_flight, window.free, seen) == (2, 0, [])

    window.release()
    assert seen == [1]


def test_listener_may_leave_while_it_is_told() -> None:
    window = Window(1)
    seen: list[str] = []

    def once() -> None:
        seen.append("once")
        window.on_room.remove(once)

    window.on_room += [once, lambda: seen.append("other")]
    for _ in range(2):
        window.acquire()
        window.release()

    assert seen == ["once", "other", "other"]


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Window(0)
    window = Window(1)
    with pytest.raises(ValueError, match="at least 1"):
        window.limit = 0
    assert window.limit == 1
