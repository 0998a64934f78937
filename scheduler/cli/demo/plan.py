"""The prompts that the demo sends, and when; the same ones each time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from scheduler.model import DedupMode, Priority, PromptRequest

PROMPTS = 200
FEWEST = 50
MOST = 1000

DUPLICATES_SHARE = 0.2
# Shares of the different prompts; the rest is background.
SHARES = {
    Priority.CRITICAL: 0.075,
    Priority.HIGH: 0.15,
    Priority.NORMAL: 0.325,
    Priority.LOW: 0.225,
}
# Shares of the answers after which prompts are sent: critical ones one by one, high ones in two waves.
CRITICAL_UNTIL = 0.15
HIGH_WAVES = (0.07, 0.13)
LAST_DUPLICATE = 0.9

_TASKS = {
    Priority.CRITICAL: "Pager alert {n}: say in one line what the disk array is doing right now.",
    Priority.HIGH: "Chat user {n} asks: how do I change the address of my order, please?",
    Priority.NORMAL: "Ticket {n}: sum up what the customer wrote and propose a polite answer.",
    Priority.LOW: "Draft {n}: rewrite this paragraph so that a child of ten can follow it.",
    Priority.BACKGROUND: "Archive page {n}: list the names of all people and places in this text.",
}
_WISHES = ("Be brief.", "Name your sources.", "Give one example.", "Say what is missing.")


@dataclass(frozen=True, slots=True)
class Sending:
    """One prompt to send."""

    after: int
    """How many different prompts must have been answered before."""
    request: PromptRequest


def make_plan(model: str, params: dict[str, Any], *, prompts: int = PROMPTS) -> list[Sending]:
    """All prompts in the order of sending: a backlog at once, urgent ones and duplicates while it drains.

    Later prompts wait for answers, not for a clock, so that slow and fast machines show the same.
    """
    chance = random.Random(11)
    different = prompts - round(prompts * DUPLICATES_SHARE)
    firsts = [
        Sending(after, _request(priority, n, model, params, chance))
        for priority, count in _mix(different).items()
        for n, after in enumerate(_arrivals(priority, count, different), 1)
    ]
    chance.shuffle(firsts)
    copied = chance.sample(firsts, prompts - different)
    latest = round(different * LAST_DUPLICATE)
    # Every second duplicate is sent together with its original, the others some time later.
    seconds = [
        Sending(first.after if at % 2 else chance.randint(first.after, latest), first.request)
        for at, first in enumerate(copied)
    ]
    return sorted(firsts + seconds, key=lambda sending: sending.after)


def _mix(different: int) -> dict[Priority, int]:
    counts = {priority: round(different * share) for priority, share in SHARES.items()}
    return counts | {Priority.BACKGROUND: different - sum(counts.values())}


def _arrivals(priority: Priority, count: int, different: int) -> list[int]:
    if priority is Priority.CRITICAL:
        return [round(different * CRITICAL_UNTIL * n / count) for n in range(1, count + 1)]
    if priority is Priority.HIGH:
        return [round(different * HIGH_WAVES[n * len(HIGH_WAVES) // count]) for n in range(count)]
    return [0] * count


def _request(
    priority: Priority, n: int, model: str, params: dict[str, Any], chance: random.Random
) -> PromptRequest:
    wishes = chance.sample(_WISHES, chance.randint(0, 3))
    return PromptRequest(
        prompt=" ".join((_TASKS[priority].format(n=n), *wishes)),
        model=model,
        priority=int(priority),
        dedup_key=f"{priority.name}-{n}",
        dedup=DedupMode.WINDOW,
        params=params,
    )
