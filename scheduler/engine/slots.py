"""How many jobs a process may claim at one moment. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

CLAIM_AT_ONCE = 64
"""The most jobs of one claim: few enough that Redis works while the process does, many for one round trip."""


class Slots(NamedTuple):
    """How many more jobs may be claimed; `reserved` of those slots are for priorities 8 and 9."""

    free: int
    reserved: int

    @property
    def for_all(self) -> int:
        """How many jobs of any priority may be claimed."""
        return self.free - self.reserved


NO_SLOTS = Slots(0, 0)


class Room(NamedTuple):
    """What a process may claim at one moment: from each lane, and from all lanes together."""

    lanes: Mapping[str, Slots]
    over_all: Slots

    def wanted_lanes(self) -> frozenset[tuple[str, bool]]:
        """The lanes to wait for: each for work of any priority, or (True) for urgent work alone."""
        full = not self.over_all.for_all
        return frozenset(
            (name, bool(full or not slots.for_all)) for name, slots in self.lanes.items() if slots.free
        )


def room_in(lanes: Mapping[str, Slots], *, running: int, max_running: int, reserved: int) -> Room:
    """The room of a process that runs `running` jobs and whose endpoints reserve `reserved` slots.

    At most half of the process is reserved for priorities 8 and 9.
    """
    if not any(slots.free for slots in lanes.values()):
        return Room(lanes, NO_SLOTS)
    free = min(max_running - running, CLAIM_AT_ONCE)
    for_all = min(free, max(0, max_running - min(reserved, max_running // 2) - running))
    if not any(slots.for_all for slots in lanes.values()):
        for_all = 0
    return Room(lanes, Slots(free, free - for_all))
