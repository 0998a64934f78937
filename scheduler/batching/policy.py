"""Which prompts may share a call, when a call is sent, and in which order. Pure: times are passed in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import orjson

from scheduler.model import is_urgent
from workers.base import TOKEN_DETAILS, Capabilities, Generation

LONG_GENERATION_TOKENS = 1024
"""A prompt that asks for more output tokens than this gets a call of its own.

A list saves HTTP and parsing, which is negligible beside an answer that takes tens of seconds. Its cost grows
with the answer: no member can be aborted alone, so a cancelled one keeps its slot in the engine until it
ends, and one broken connection loses all answers.
"""

DEADLINE_SHARE = 0.1
"""The fraction of the time to its deadline that a member may wait for others."""

# These ask for several choices, which a list numbers together with its members; or for details of each token,
# which the readers of lists ignore; or they pin one slot.
_OWN_CALL_KEYS = TOKEN_DETAILS | {"n", "best_of", "use_beam_search", "id_slot"}


class FlushReason(StrEnum):
    """Why a call was sent: it was full, a member had waited long enough, or waiting had no use."""

    SIZE = "size"
    TOKENS = "tokens"
    AGE = "age"
    DEADLINE = "deadline"
    IDLE = "idle"
    DRAIN = "drain"


class Due(NamedTuple):
    """The latest time to send a member, and why. The earliest compares lowest."""

    at: float
    reason: FlushReason


class Cut(NamedTuple):
    """One call taken from a group: how many members, and why they are sent now."""

    size: int
    reason: FlushReason


Urgency: TypeAlias = tuple[int, int]
"""`(-priority, arrival number)`: the lowest is the most urgent."""


def share_key(generation: Generation, capabilities: Capabilities) -> Hashable | None:
    """The key by which generations share a call: what the engine sees except prompt, priority and request id.

    Urgent generations share calls only with each other: in a list with others they would wait for them. None
    means a call of its own: chat, tools, a response format, a long generation, or an engine without lists.
    """
    if not capabilities.lists or generation.prompt is None:
        return None
    if generation.tools or generation.tool_choice is not None or generation.response_format is not None:
        return None
    params, extra_body = generation.params, generation.extra_body
    if (params.get("max_tokens") or 0) > LONG_GENERATION_TOKENS:
        return None
    if not (_OWN_CALL_KEYS.isdisjoint(extra_body) and _OWN_CALL_KEYS.isdisjoint(params)):
        return None
    urgent = is_urgent(generation.priority)
    if not params and not extra_body:
        return (generation.model, generation.stream, urgent)
    try:
        return (generation.model, generation.stream, urgent, canonical(params), canonical(extra_body))
    except orjson.JSONEncodeError:
        return None  # values without a canonical form cannot be compared


def canonical(values: Mapping[str, Any]) -> bytes:
    """Serialize fields so that equal ones give the same bytes, whatever their order."""
    return orjson.dumps(dict(values), option=orjson.OPT_SORT_KEYS) if values else b"{}"


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """Limits on gathering: prompts and prompt tokens a call, and the wait. `max_size` 1 turns it off."""

    max_size: int = 32
    max_wait_ms: float = 5.0
    max_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.max_size < 1 or self.max_wait_ms < 0 or self.max_tokens < 1:
            raise ValueError(
                "batch: give max_size and max_tokens of at least 1 and a max_wait_ms of at least 0"
            )

    def due(self, arrived_at: float, expires_at: float | None) -> Due:
        """The latest time to send a member: after `max_wait_ms`, or sooner if its deadline is near."""
        by_age = arrived_at + self.max_wait_ms / 1000
        if expires_at is None:
            return Due(by_age, FlushReason.AGE)
        by_deadline = arrived_at + max(0.0, expires_at - arrived_at) * DEADLINE_SHARE
        if by_deadline < by_age:
            return Due(by_deadline, FlushReason.DEADLINE)
        return Due(by_age, FlushReason.AGE)

    def cuts(self, tokens: Sequence[int], *, due: Due, now: float, idle: bool, draining: bool) -> list[Cut]:
        """Return the calls to make from a group now: a prefix of its members, the most urgent first.

        `tokens` are the members' prompt tokens in that order; `due` is the earliest of the group. Full calls
        are always sent. The remainder is sent when it is due, or when waiting has no use.
        """
        rest = self._reason_for_rest(due, now=now, idle=idle, draining=draining)
        if rest is None and len(tokens) < self.max_size and sum(tokens) < self.max_tokens:
            return []
        return list(self._cut(tokens, rest))

    def _reason_for_rest(self, due: Due, *, now: float, idle: bool, draining: bool) -> FlushReason | None:
        if draining:
            return FlushReason.DRAIN
        if now >= due.at:
            return due.reason
        return FlushReason.IDLE if idle else None

    def _cut(self, tokens: Sequence[int], rest: FlushReason | None) -> Iterable[Cut]:
        size = total = 0
        for count in tokens:
            if size and total + count > self.max_tokens:
                yield Cut(size, FlushReason.TOKENS)
                size = total = 0
            size += 1
            total += count
            if size == self.max_size or total >= self.max_tokens:
                yield Cut(size, FlushReason.SIZE if size == self.max_size else FlushReason.TOKENS)
                size = total = 0
        if size and rest is not None:
            yield Cut(size, rest)


def ration(groups: Sequence[Sequence[Urgency]], room: int, *, kept: int = 0) -> list[int]:
    """Share out `room` slots among the groups, the most urgent members first; return each group's number.

    The last `kept` slots are for urgent members only. The groups are sorted, so each number is the
    length of a prefix.
    """
    shares = [0] * len(groups)
    ranked = sorted((urgency, at) for at, group in enumerate(groups) for urgency in group)
    for taken, (urgency, at) in enumerate(ranked[:room]):
        if taken >= room - kept and not is_urgent(-urgency[0]):
            break
        shares[at] += 1
    return shares


def trim(cuts: Sequence[Cut], size: int) -> list[Cut]:
    """Keep the first `size` members of the calls, shortening the last call if needed."""
    kept: list[Cut] = []
    for cut in cuts:
        if size <= 0:
            break
        kept.append(Cut(min(cut.size, size), cut.reason))
        size -= cut.size
    return kept
