"""Members on their way into a call, and calls on their way through the engine: bookkeeping, no decisions."""

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
"""What a member of a call asks for."""

Deliver: TypeAlias = Callable[[Piece], None]


class Member:
    """One prompt, or one task of another kind of work, in the batcher.

    Two things end apart from each other. Its caller may leave: `listening` turns false. The engine may be
    done with it: `open` turns false, and its slot in the window is free. `streamed`: the engine has sent
    something for it. Without a key to share a call by it is `solo`, and has one that no other has.
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
        self.key: Hashable = object() if key is None else key  # not itself, which would be a circle
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
        """Whether it may have the slots that are kept for urgent members."""
        return is_urgent(self.work.priority)


class Group:
    """Members that may share a call and wait for it, `urgent` or not. `solo`: one that takes no others."""

    __slots__ = ("due", "key", "members", "solo", "urgent")

    def __init__(self, first: Member) -> None:
        self.key = first.key
        self.solo = first.solo
        self.urgent = first.urgent
        self.members = [first]
        self.due = first.due

    def add(self, member: Member) -> None:
        """Let a member wait with the others."""
        self.members.append(member)
        self.due = min(self.due, member.due)

    def rank(self) -> None:
        """Put the most urgent first."""
        self.members.sort(key=_urgency)

    def urgencies(self, count: int) -> list[Urgency]:
        """Return the ranks of the first `count` members."""
        return [member.urgency for member in self.members[:count]]

    def take(self, count: int) -> list[Member]:
        """Take the first `count` members out."""
        taken = self.members[:count]
        self._keep(self.members[count:])
        return taken

    def drop_cancelled(self) -> int:
        """Take out the members whose callers have gone; return how many."""
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
    """Members that the engine works on together. `open` and `listening` count those of them that are so.

    `completed`: the engine has done its part for a member; `error` is the last that a single member ended
    with. `whole`: its answers are wanted whole. `began_at`, and `heard_at`, when something came last, are on
    the event loop's clock. `overdue` is why it is ended from outside, if it is; `left`: its task does not let
    go, and is left to itself. `watched` is the watcher's.
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
        """Whether the engine works on for nobody."""
        return self.open > 0 and self.listening == 0

    def leave(self, member: Member) -> None:
        """Nobody listens to this member any more; what comes for it is dropped. Safe to call twice."""
        if member.listening:
            member.listening = False
            self.listening -= 1

    def close(self, member: Member) -> bool:
        """Note that the engine is done with this member; return False if it was before."""
        if not member.open:
            return False
        member.open = False
        self.open -= 1
        return True

    def forget(self) -> None:
        """Let go of the members, which hold on to the call: a circle of all that a job is made of."""
        for member in self.members:
            if member.call is self:
                member.call = None
        self.members = ()
        self.task = None

    def unended(self) -> list[Member]:
        """Return the members without an end, apart from those that have gone on to another call."""
        return [member for member in self.members if member.open and member.call is self]
