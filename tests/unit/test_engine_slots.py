"""How many jobs a process may claim."""

from scheduler.engine.slots import CLAIM_AT_ONCE, NO_SLOTS, Room, Slots, room_in


def room(*, running: int = 0, max_running: int = 10, reserved: int = 0, **lanes: Slots) -> Slots:
    return room_in(lanes, running=running, max_running=max_running, reserved=reserved).over_all


def test_a_process_has_room_for_what_it_does_not_run() -> None:
    assert room(running=3, chat=Slots(100, 0)) == Slots(7, 0)


def test_without_free_slots_in_a_lane_there_is_no_room() -> None:
    assert room(chat=NO_SLOTS, small=NO_SLOTS) == NO_SLOTS


def test_one_claim_takes_no_more_than_its_bound() -> None:
    assert room(max_running=1000, chat=Slots(1000, 0)).free == CLAIM_AT_ONCE


def test_slots_that_endpoints_keep_for_the_urgent_are_kept_in_the_process_too() -> None:
    assert room(running=4, reserved=3, chat=Slots(100, 3)) == Slots(6, 3)
    assert room(running=8, reserved=3, chat=Slots(100, 3)) == Slots(2, 2)


def test_at_most_half_of_a_process_is_kept_for_the_urgent() -> None:
    assert room(reserved=100, chat=Slots(100, 50)) == Slots(10, 5)


def test_where_lanes_have_urgent_slots_alone_so_has_the_process() -> None:
    assert room(chat=Slots(2, 2), small=NO_SLOTS) == Slots(10, 10)


def test_a_process_waits_for_any_work_of_lanes_with_slots_for_all_and_for_urgent_work_of_others() -> None:
    lanes = {"any": Slots(2, 1), "urgent": Slots(2, 2), "full": NO_SLOTS}
    assert Room(lanes, Slots(5, 1)).wanted_lanes() == {("any", False), ("urgent", True)}
    assert Room(lanes, Slots(5, 5)).wanted_lanes() == {("any", True), ("urgent", True)}
