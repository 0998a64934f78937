"""Counts the prompts that one endpoint holds for this process."""

from __future__ import annotations

from collections.abc import Callable


class Window:
    """Counts the prompts that an endpoint holds for this process, up to a limit.

    The last `kept` free slots are for urgent prompts: `free_for(urgent)` respects that. Batchers of several
    routes may share the window of one endpoint. The functions in `on_room` are called when slots become free,
    by a release or a higher limit; they must be cheap and must not raise.
    """

    __slots__ = ("_in_flight", "_kept", "_limit", "on_room")

    def __init__(self, limit: int) -> None:
        self._limit = _checked(limit)
        self._kept = 0
        self._in_flight = 0
        self.on_room: list[Callable[[], None]] = []

    @property
    def limit(self) -> int:
        """The most prompts that may be in flight."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        """Set the limit. A lower one takes effect as prompts end; no running prompt is stopped."""
        self._limit = _checked(limit)
        self._tell_of_room()

    @property
    def kept(self) -> int:
        """How many of the free slots are for urgent prompts only."""
        return self._kept

    @kept.setter
    def kept(self, kept: int) -> None:
        self._kept = max(0, kept)
        self._tell_of_room()

    @property
    def in_flight(self) -> int:
        """How many prompts are held now."""
        return self._in_flight

    @property
    def free(self) -> int:
        """How many more prompts may be sent now."""
        return max(0, self._limit - self._in_flight)

    def free_for(self, urgent: bool) -> int:
        """How many more prompts may be sent now, urgent ones or others."""
        return self.free if urgent else max(0, self.free - self._kept)

    def acquire(self, count: int = 1) -> None:
        """Take `count` slots.

        Raises:
            ValueError: fewer are free.
        """
        if not 0 < count <= self.free:
            raise ValueError(f"window: {count} slots asked for, {self.free} of {self._limit} are free")
        self._in_flight += count

    def release(self, count: int = 1) -> None:
        """Give `count` slots back.

        Raises:
            ValueError: fewer are taken.
        """
        if not 0 < count <= self._in_flight:
            raise ValueError(f"window: {count} slots given back, {self._in_flight} are taken")
        self._in_flight -= count
        self._tell_of_room()

    def _tell_of_room(self) -> None:
        if self._in_flight < self._limit:
            for tell in tuple(self.on_room):
                tell()


def _checked(limit: int) -> int:
    if limit < 1:
        raise ValueError(f"window: limit is {limit}; an endpoint holds at least 1 prompt")
    return limit
