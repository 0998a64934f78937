"""Bookkeeping for members that wait for a call and for calls in flight. Makes no decisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

from scheduler.batching.policy import Due, Urgency
from scheduler.logs import attempt_ids
from scheduler.model import is_urgent
from workers.base import Generation, Piece
from workers.embedding import EmbeddingTask
from workers.errors import WorkerError
from workers.rerank import RerankTask

Work: TypeAlias = Generation | EmbeddingTask | RerankTask
"""The work of one member of a call."""

Deliver: TypeAlias = Callable[[Piece], None]


class Member:
    """One prompt, or one task of another kind of work, in the batcher.

    Two things end independently. When its caller leaves, `listening` turns false. When the engine is done
    with it, `open` turns false and its slot in the window is free. `streamed` says that the engine has sent
    something for it. A member without a key to share a call by is `solo` and gets a unique key.
    """

    __slots__ = (
        "arrived_at",
        "call",
        "deliver",
        "due",
        "future",
        "ids",
        "key",
        "listening",
        "open",
        "solo",
        "streamed",
        "tokens",
        "urgency",
        "work",
    )

    def __init__(
        self,
        work: Work,
        deliver: Deliver,
        future: asyncio.Future[Any],
        *,
        key: Hashable | None,
        tokens: int,
        arrived_at: float,
        due: Due,
        urgency: Urgency,
    ) -> None:
        self.work = work
        self.deliver = deliver
        self.future = future
        self.solo = key is None
        self.key: Hashable = object() if key is None else key  # not itself: that would be a reference cycle
        self.tokens = tokens
        self.arrived_at = arrived_at
        self.due = due
        self.urgency = urgency
        self.ids = attempt_ids()
        self.call: Call | None = None
        self.listening = True
        self.open = True
        self.streamed = False

    @property
    def urgent(self) -> bool:
        """Whether it may use the slots kept for urgent members."""
        return is_urgent(self.work.priority)


class Group:
    """Members that wait to share a call, all `urgent` or none. A `solo` group has one member."""

    __slots__ = ("due", "key", "members", "solo", "urgent")

    def __init__(self, first: Member) -> None:
        self.key = first.key
        self.solo = first.solo
        self.urgent = first.urgent
        self.members = [first]
        self.due = first.due

    def add(self, member: Member) -> None:
        """Add a waiting member."""
        self.members.append(member)
        self.due = min(self.due, member.due)

    def rank(self) -> None:
        """Sort the most urgent member first."""
        self.members.sort(key=_urgency)

    def urgencies(self, count: int) -> list[Urgency]:
        """Return the ranks of the first `count` members."""
        return [member.urgency for member in self.members[:count]]

    def take(self, count: int) -> list[Member]:
        """Remove and return the first `count` members."""
        taken = self.members[:count]
        self._keep(self.members[count:])
        return taken

    def drop_cancelled(self) -> int:
        """Remove the members whose callers have left; return how many."""
        staying = [member for member in self.members if not member.future.done()]
        gone = len(self.members) - len(staying)
        if gone:
            self._keep(staying)
        return gone

    def _keep(self, members: list[Member]) -> None:
        self.members = members
        if members:
            self.due = min(member.due for member in members)


_urgency = attrgetter("urgency")


class Call:
    """Members that the engine works on together. `open` and `listening` count the members in that state.

    `completed`: the engine has done its part for some member. `error` is the latest error of a single member.
    `whole`: the answers are not streamed. `began_at` and `heard_at`, when the last output arrived, are on the
    event loop's clock. `overdue` is the reason if the call was ended for taking too long. `left`: its task
    ignored the cancellation and is no longer awaited. `watched` belongs to the watcher.
    """

    __slots__ = (
        "began_at",
        "completed",
        "error",
        "heard_at",
        "left",
        "listening",
        "members",
        "open",
        "overdue",
        "task",
        "watched",
        "whole",
    )

    def __init__(self, members: Sequence[Member], now: float = 0.0) -> None:
        self.began_at = self.heard_at = now
        self.whole = not members[0].work.stream
        self.overdue: WorkerError | None = None
        self.left = False
        self.watched: object = None
        self.members: Sequence[Member] = members
        self.open = len(members)
        self.listening = len(members)
        self.task: asyncio.Task[None] | None = None
        self.completed = False
        self.error: WorkerError | None = None
        for member in members:
            member.call = self

    @property
    def abandoned(self) -> bool:
        """Whether the engine still works although every caller has left."""
        return self.open > 0 and self.listening == 0

    def leave(self, member: Member) -> None:
        """Stop listening to this member: its further outputs are dropped. Safe to call twice."""
        if member.listening:
            member.listening = False
            self.listening -= 1

    def close(self, member: Member) -> bool:
        """Note that the engine is done with this member. Returns False if that was known."""
        if not member.open:
            return False
        member.open = False
        self.open -= 1
        return True

    def forget(self) -> None:
        """Break the reference cycle of call and members, which would keep whole jobs in memory."""
        for member in self.members:
            if member.call is self:
                member.call = None
        self.members = ()
        self.task = None

    def unended(self) -> list[Member]:
        """Return the members without an end, except those moved to another call."""
        return [member for member in self.members if member.open and member.call is self]
